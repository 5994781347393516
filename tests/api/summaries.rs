//! Monthly summaries of all clients, and totals of the platform.

use crate::harness::*;
use meterd::proto::{
    GetPlatformUsageRequest, GetPlatformUsageResponse, ListMonthlySummariesRequest, ListMonthlySummariesResponse,
    MonthlySummary, UpdateMonthlySummariesRequest, UsageEvent,
};
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use tonic::Code;

async fn update(server: &TestServer) -> i64 {
    let request = UpdateMonthlySummariesRequest::default();
    server.usage().update_monthly_summaries(request).await.unwrap().into_inner().updated_count
}

async fn list(server: &TestServer, month: &str, client_id: &str) -> ListMonthlySummariesResponse {
    let request =
        ListMonthlySummariesRequest { month: month.into(), client_id: client_id.into(), ..Default::default() };
    server.usage().list_monthly_summaries(request).await.unwrap().into_inner()
}

async fn platform(server: &TestServer, month: &str) -> GetPlatformUsageResponse {
    let request = GetPlatformUsageRequest { month: month.into() };
    server.usage().get_platform_usage(request).await.unwrap().into_inner()
}

fn of(operation: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { operation: operation.into(), ..event }
}

/// Starts a server with usage of three clients in November and October.
async fn server() -> TestServer {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let october = "2026-10-31T23:59:59Z";
    let events = vec![
        of("message", event("acme", "sms", "10")),
        of("mms", event("acme", "sms", "2")),
        of("mms_inbound", event("acme", "twilio_sms", "3")),
        event("acme", "email", "5"),
        model_call("acme", 1_000, 0),
        model_call("acme", 1_000, 0),
        of("minute", event("acme", "voice", "5.25")),
        of("outbound", event("acme", "twilio_voice", "1.5")),
        of("recording", event("acme", "twilio_voice", "100")),
        UsageEvent { amount: "100".into(), ..event("acme", "stripe", "") },
        event("acme", "social", "9"),
        event_at("acme", "sms", "40", october),
        event("beta", "sms", "100"),
        event_at("beta", "sms", "200", october),
        event("gamma", "sms", "100"),
        event_at("delta", "sms", "100", october),
    ];
    server.batch(events, false).await;
    server
}

fn ids(summaries: &[MonthlySummary]) -> Vec<&str> {
    summaries.iter().map(|summary| &*summary.client_id).collect()
}

#[tokio::test]
async fn a_summary_has_the_cost_of_each_service_and_counts_messages_calls_and_minutes() {
    let server = server().await;
    update(&server).await;
    let month = list(&server, "2026-11", "").await;
    let acme = &month.summaries[0];
    assert_eq!((&*acme.client_id, &*acme.month, cost(&acme.totals)), ("acme", "2026-11", "3.70005"));
    let services: Vec<_> = acme.services.iter().map(|row| (&*row.service, cost(&row.totals))).collect();
    let expected = [
        ("stripe", "3.2"),
        ("twilio_voice", "0.271"),
        ("sms", "0.115"),
        ("voice", "0.07875"),
        ("twilio_sms", "0.03"),
        ("email", "0.005"),
        ("openai", "0.0003"),
        ("social", "0"),
    ];
    assert_eq!(services, expected);
    // MMS count as messages. The recording's 100 minutes cost something but are not counted.
    assert_eq!((&*acme.messages, acme.ai_calls, &*acme.voice_minutes), ("20", 2, "6.75"));
    assert_eq!(acme.totals.as_ref().unwrap().unpriced_event_count, 1);
    assert_eq!(
        list(&server, "2026-11", "acme").await.summaries[..],
        month.summaries[..1],
        "the live month and the summary must be equal"
    );
    server.stop().await;
}

#[tokio::test]
async fn clients_are_sorted_by_cost_with_their_change_and_the_months_totals() {
    let server = server().await;
    update(&server).await;
    let month = list(&server, "", "").await;
    let rows: Vec<_> = month
        .summaries
        .iter()
        .map(|row| (&*row.client_id, cost(&row.totals), amount(&row.last_month_cost), row.change_percent.as_deref()))
        .collect();
    let expected = [
        ("acme", "3.70005", "0.3", Some("1133.35")),
        ("beta", "0.75", "1.5", Some("-50")),
        ("gamma", "0.75", "0", None),
    ];
    assert_eq!(rows, expected);
    let totals = month.totals.unwrap();
    assert_eq!((totals.client_count, cost(&totals.totals)), (3, "5.20005"));
    assert_eq!((&*totals.messages, totals.ai_calls, &*totals.voice_minutes), ("220", 2, "6.75"));
    assert_eq!((amount(&totals.last_month_cost), totals.change_percent.as_deref()), ("1.8", Some("188.89")));
    server.stop().await;
}

#[tokio::test]
async fn pages_are_complete_if_costs_are_equal() {
    let server = server().await;
    let crowd = (0..7).map(|number| event(&format!("crowd{number}"), "sms", "1")).collect();
    server.batch(crowd, false).await;
    update(&server).await;
    let whole = list(&server, "2026-11", "").await;
    assert_eq!(whole.summaries.len(), 10);
    let (mut paged, mut page_token) = (vec![], String::new());
    loop {
        let request = ListMonthlySummariesRequest { page_size: 2, page_token, ..Default::default() };
        let page = server.usage().list_monthly_summaries(request).await.unwrap().into_inner();
        assert_eq!(page.totals, whole.totals, "totals must be those of the month, not of the page");
        paged.extend(page.summaries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, whole.summaries);
    server.stop().await;
}

#[tokio::test]
async fn january_is_compared_with_december() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2027-01-05T12:00:00Z"))).await;
    let events = vec![
        event("acme", "sms", "150"),
        event_at("acme", "sms", "100", "2026-12-31T23:59:59Z"),
        event_at("acme", "sms", "7777", "2026-01-05T12:00:00Z"),
    ];
    server.batch(events, true).await;
    update(&server).await;
    for summaries in [list(&server, "2027-01", "").await, list(&server, "2027-01", "acme").await] {
        let january = &summaries.summaries[0];
        assert_eq!((amount(&january.last_month_cost), january.change_percent.as_deref()), ("0.75", Some("50")));
    }
    server.stop().await;
}

#[tokio::test]
async fn summaries_show_their_last_update_and_a_clients_month_is_live() {
    let server = server().await;
    assert_eq!(update(&server).await, 6, "every changed client-month must be updated");
    assert_eq!(update(&server).await, 0, "no unchanged client-month must be updated");
    let before = list(&server, "2026-11", "").await;
    server.track(event("gamma", "sms", "1000")).await.unwrap();
    let stale = list(&server, "2026-11", "").await;
    assert_eq!((stale.summaries, stale.totals), (before.summaries, before.totals));
    let live = list(&server, "2026-11", "gamma").await;
    assert_eq!((ids(&live.summaries), cost(&live.summaries[0].totals)), (vec!["gamma"], "8.25"));
    let recorded: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT max(record_time) FROM usage_events").fetch_one(&server.pool).await.unwrap();
    let complete_as_of = |list: &ListMonthlySummariesResponse| {
        let time = list.complete_as_of_time.unwrap();
        chrono::DateTime::from_timestamp(time.seconds, time.nanos as u32).unwrap()
    };
    let stale = list(&server, "2026-11", "").await;
    assert!(complete_as_of(&stale) <= recorded, "complete_as_of must be before the events that are missing");
    assert!(complete_as_of(&live) > recorded);
    let of_beta = UpdateMonthlySummariesRequest { client_id: "beta".into(), ..Default::default() };
    assert_eq!(server.usage().update_monthly_summaries(of_beta).await.unwrap().into_inner().updated_count, 0);
    let of_october = UpdateMonthlySummariesRequest { month: "2026-10".into(), ..Default::default() };
    assert_eq!(server.usage().update_monthly_summaries(of_october).await.unwrap().into_inner().updated_count, 0);
    assert_eq!(update(&server).await, 1);
    let fresh = list(&server, "2026-11", "").await;
    assert_eq!(ids(&fresh.summaries), ["gamma", "acme", "beta"]);
    assert_eq!(fresh.summaries[0], live.summaries[0]);
    assert!(complete_as_of(&fresh) > recorded);
    let nobody = UpdateMonthlySummariesRequest { client_id: "nobody".into(), ..Default::default() };
    assert_error(server.usage().update_monthly_summaries(nobody).await, Code::NotFound, "CLIENT_NOT_FOUND");
    assert!(list(&server, "2026-11", "nobody").await.summaries.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn platform_totals_include_all_clients_and_count_the_active_ones() {
    let server = server().await;
    let november = platform(&server, "").await;
    assert_eq!((&*november.month, november.client_count, november.active_client_count), ("2026-11", 4, 3));
    assert_eq!((november.totals.as_ref().unwrap().request_count, cost(&november.totals)), (13, "5.20005"));
    let costliest: Vec<_> = november.services.iter().take(2).map(|row| (&*row.service, cost(&row.totals))).collect();
    assert_eq!(costliest, [("stripe", "3.2"), ("sms", "1.615")]);
    let october = platform(&server, "2026-10").await;
    assert_eq!((october.active_client_count, cost(&october.totals)), (3, "2.55"));
    let empty = platform(&server, "2020-01").await;
    assert_eq!((empty.client_count, empty.active_client_count, empty.services.len()), (4, 0, 0));
    server.stop().await;
}

#[tokio::test]
async fn summaries_that_take_too_long_together_are_refreshed_separately() {
    let server = server().await;
    server
        .sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.25); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON monthly_summaries FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let impatient = connect::options(&server.database_url).unwrap().options([("statement_timeout", "1000")]);
    let pool = connect::pool(impatient, 1);
    assert_eq!(meterd_engine::jobs::summaries::refresh(&pool, None, None).await.unwrap(), 6);
    assert_eq!(update(&server).await, 0, "no client-month must be left");
    assert_eq!(ids(&list(&server, "2026-11", "").await.summaries), ["acme", "beta", "gamma"]);
    pool.close().await;
    server.stop().await;
}

/// Returns the cost of the month and of the previous month over all clients.
async fn total_costs(server: &TestServer) -> (String, String) {
    let totals = list(server, "2026-11", "").await.totals.unwrap();
    (cost(&totals.totals).to_owned(), amount(&totals.last_month_cost).to_owned())
}

#[tokio::test]
async fn totals_are_cached_until_summaries_change() {
    let server = server().await;
    server.sql("ALTER TABLE monthly_summaries ENABLE TRIGGER USER").await;
    update(&server).await;
    server.sql("UPDATE monthly_totals SET cost = 999 WHERE month = '2026-11-01'").await;
    assert_eq!(total_costs(&server).await.0, "999", "cached totals must be used");
    // Removes the totals, as a server of an older release does.
    server.sql("UPDATE monthly_summaries SET cost = cost + 1 WHERE client_id = 'gamma' AND month = '2026-11-01'").await;
    assert_eq!(total_costs(&server).await.0, "6.20005");
    update(&server).await;
    server.sql("UPDATE monthly_totals SET cost = 999 WHERE month = '2026-11-01'").await;
    assert_eq!(total_costs(&server).await.0, "999", "totals must be cached again");
    server.sql("DELETE FROM monthly_summaries WHERE client_id = 'gamma' AND month = '2026-11-01'").await;
    assert_eq!(total_costs(&server).await.0, "4.45005");
    server.stop().await;
}

#[tokio::test]
async fn totals_are_cached_until_a_refresh_changes_summaries() {
    let server = server().await;
    update(&server).await;
    server.sql("UPDATE monthly_totals SET cost = 999 WHERE month = '2026-11-01'").await;
    assert_eq!(total_costs(&server).await.0, "999", "cached totals must be used");
    server.track(event("delta", "sms", "100")).await.unwrap();
    assert_eq!(update(&server).await, 1);
    assert_eq!(total_costs(&server).await.0, "5.95005");
    server.stop().await;
}

#[tokio::test]
async fn totals_include_the_latest_previous_month() {
    let server = server().await;
    update(&server).await;
    assert_eq!(total_costs(&server).await, ("5.20005".into(), "1.8".into()));
    server.track(event_at("beta", "sms", "20", "2026-10-31T23:00:00Z")).await.unwrap();
    let late = total_costs(&server).await;
    assert_eq!(late, ("5.20005".into(), "1.95".into()), "the totals must be correct before the summary is written");
    assert_eq!(update(&server).await, 1);
    assert_eq!(total_costs(&server).await, late, "the totals must be correct after the summary is written");
    server.track(event("delta", "sms", "100")).await.unwrap();
    assert_eq!(update(&server).await, 1);
    assert_eq!(
        total_costs(&server).await,
        ("5.95005".into(), "2.7".into()),
        "the totals must include October of the new client"
    );
    server.stop().await;
}
