//! Verifying and rebuilding sums, and moving events after a change of a time zone.

use crate::harness::*;
use meterd::proto::{
    Client, GetPlatformUsageRequest, ListUsageEventsRequest, RebuildRollupsRequest, RebuildRollupsResponse,
    UpdateClientRequest, UsageEvent,
};
use meterd_engine::clock::Clock;
use prost_types::FieldMask;
use tonic::Code;

async fn rebuild(server: &TestServer, client_id: &str, start: &str, end: &str, rezone: bool) -> RebuildRollupsResponse {
    let (client_id, start_date, end_date) = (client_id.into(), start.into(), end.into());
    let request = RebuildRollupsRequest { client_id, start_date, end_date, rezone };
    server.usage().rebuild_rollups(request).await.unwrap().into_inner()
}

async fn set_zone(server: &TestServer, client_id: &str, time_zone: &str) {
    let client = Client { client_id: client_id.into(), time_zone: time_zone.into(), ..Default::default() };
    let update_mask = Some(FieldMask { paths: vec!["time_zone".into()] });
    server.clients().update_client(UpdateClientRequest { client: Some(client), update_mask }).await.unwrap();
}

async fn server() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await
}

/// Returns the days of a client's events, the oldest event first.
async fn days(server: &TestServer, client_id: &str) -> Vec<String> {
    let request = ListUsageEventsRequest { client_id: client_id.into(), ascending: true, ..Default::default() };
    let events = server.usage().list_usage_events(request).await.unwrap().into_inner().events;
    events.into_iter().map(|event| event.day).collect()
}

#[tokio::test]
async fn every_kind_of_damage_is_found_and_rebuilt_from_the_events() {
    let server = server().await;
    let events = vec![
        event("acme", "sms", "1"),
        event("acme", "social", "2"),
        UsageEvent { cached_input_tokens: 1, ..model_call("acme", 10, 5) },
        event_at("acme", "sms", "4", "2026-10-31T12:00:00Z"),
        event("beta", "sms", "8"),
    ];
    server.batch(events, false).await;
    server.assert_exact(5).await;
    assert_eq!(server.run_job("pending_usage").await, "5 pending rows applied");
    server.assert_exact(5).await;
    let zeros = "0, 0, 0, 0, 0, 0, 0";
    let damages = [
        ("UPDATE usage_days SET cost = cost + 0.000000000001 WHERE client_id = 'acme' AND service = 'openai'", 1),
        ("UPDATE usage_days SET units = 0 WHERE client_id = 'acme' AND service = 'social'", 1),
        ("UPDATE usage_days SET request_count = request_count - 1 WHERE client_id = 'beta'", 1),
        ("UPDATE usage_days SET day = day + 1 WHERE client_id = 'beta'", 2),
        ("UPDATE usage_days SET model = 'other' WHERE service = 'openai'", 2),
        ("UPDATE usage_month_services SET input_tokens = 9, output_tokens = 9 WHERE service = 'openai'", 1),
        ("UPDATE usage_month_services SET cached_input_tokens = 0 WHERE service = 'openai'", 1),
        ("UPDATE usage_months SET unpriced_event_count = 5 WHERE client_id = 'acme'", 2),
        ("DELETE FROM usage_days WHERE client_id = 'acme'", 4),
        ("DELETE FROM usage_month_services", 5),
        ("DELETE FROM usage_months", 3),
        (&format!("INSERT INTO usage_days VALUES ('acme', '2026-11-30', 'sms', 'x', '', 1, 1, {})", &zeros[6..]), 1),
        (&format!("INSERT INTO usage_month_services VALUES ('beta', '2026-12-01', 'sms', 1, 1, {})", &zeros[6..]), 1),
        (&format!("INSERT INTO usage_months VALUES ('nobody', '2026-11-01', 1, 1, {})", &zeros[6..]), 1),
        (&format!("INSERT INTO usage_days VALUES ('acme', '2026-11-30', 'sms', 'x', '', {zeros})"), 1),
        (&format!("INSERT INTO usage_month_services VALUES ('beta', '2026-12-01', 'sms', {zeros})"), 1),
    ];
    for (damage, rows) in damages {
        assert!(server.sql(damage).await > 0, "{damage}");
        assert_eq!(server.verify().await.differences, rows, "{damage}");
        let rebuilt = rebuild(&server, "", "2026-10-15", "2026-12-15", false).await;
        assert_eq!((rebuilt.corrected_row_count, rebuilt.rezoned_event_count), (rows as i64, 0), "{damage}");
        server.assert_exact(5).await;
    }
    let again = rebuild(&server, "", "2026-10-15", "2026-12-15", false).await;
    assert_eq!(again.corrected_row_count, 0);
    assert_eq!(cost(&server.month("acme").await.totals), "0.007504425");
    server.stop().await;
}

#[tokio::test]
async fn a_rebuild_changes_only_the_requested_months_and_client() {
    let server = server().await;
    for client in ["acme", "beta"] {
        for day in ["2026-10-20", "2026-11-01", "2026-11-20"] {
            server.track(event_at(client, "sms", "1", &format!("{day}T12:00:00Z"))).await.unwrap();
        }
    }
    server.run_job("pending_usage").await;
    server.sql("UPDATE usage_days SET cost = 0").await;
    // A day selects its whole month.
    let rebuilt = rebuild(&server, "acme", "2026-11-20", "2026-11-20", false).await;
    assert_eq!((rebuilt.month_count, rebuilt.corrected_row_count), (1, 2));
    assert_eq!(server.verify().await.differences, 4);
    let rebuilt = rebuild(&server, "", "2026-10-31", "2026-11-01", false).await;
    assert_eq!((rebuilt.month_count, rebuilt.corrected_row_count), (4, 4));
    server.assert_exact(6).await;
    let nobody = RebuildRollupsRequest {
        client_id: "nobody".into(),
        start_date: "2026-11-01".into(),
        end_date: "2026-11-01".into(),
        rezone: false,
    };
    assert_error(server.usage().rebuild_rollups(nobody).await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.stop().await;
}

#[tokio::test]
async fn a_changed_time_zone_moves_earlier_events_only_in_a_rebuild_with_rezone() {
    let server = server().await;
    for time in ["2026-10-31T20:00:00Z", "2026-11-01T00:30:00Z", "2026-11-15T03:00:00Z", "2026-11-15T12:00:00Z"] {
        server.track(event_at("acme", "sms", "1", time)).await.unwrap();
    }
    set_zone(&server, "acme", "America/New_York").await;
    let unmoved = ["2026-10-31", "2026-11-01", "2026-11-15", "2026-11-15"];
    assert_eq!(rebuild(&server, "acme", "2026-11-01", "2026-11-30", false).await.rezoned_event_count, 0);
    assert_eq!(days(&server, "acme").await, unmoved);
    let rebuilt = rebuild(&server, "acme", "2026-11-01", "2026-11-30", true).await;
    assert_eq!((rebuilt.month_count, rebuilt.rezoned_event_count), (1, 2));
    assert_eq!(days(&server, "acme").await, ["2026-10-31", "2026-10-31", "2026-11-14", "2026-11-15"]);
    assert_eq!(server.month("acme").await.totals.unwrap().units, "2");
    server.assert_exact(4).await;
    assert_eq!(rebuild(&server, "acme", "2026-11-01", "2026-11-30", true).await.rezoned_event_count, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_rezone_moves_events_into_a_new_month_and_leaves_other_months_unchanged() {
    let server = server().await;
    for time in ["2026-10-10T23:00:00Z", "2026-10-31T23:00:00Z"] {
        server.batch(vec![event_at("acme", "sms", "1", time)], true).await;
    }
    set_zone(&server, "acme", "Pacific/Kiritimati").await;
    let rebuilt = rebuild(&server, "acme", "2026-11-01", "2026-11-01", true).await;
    // One new and one wrong day, and both sums of each month.
    let expected = RebuildRollupsResponse { month_count: 1, corrected_row_count: 6, rezoned_event_count: 1 };
    assert_eq!(rebuilt, expected);
    assert_eq!(days(&server, "acme").await, ["2026-10-10", "2026-11-01"]);
    server.assert_exact(2).await;
    let rebuilt = rebuild(&server, "", "2026-10-01", "2026-10-31", true).await;
    assert_eq!((rebuilt.month_count, rebuilt.rezoned_event_count), (1, 1));
    assert_eq!(days(&server, "acme").await, ["2026-10-11", "2026-11-01"]);
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_month_has_no_usage_after_all_its_events_were_moved_away() {
    let server = server().await;
    server.track(event_at("acme", "sms", "1", "2026-10-31T23:00:00Z")).await.unwrap();
    set_zone(&server, "acme", "Pacific/Kiritimati").await;
    rebuild(&server, "", "2026-10-01", "2026-11-30", true).await;
    let request = GetPlatformUsageRequest { month: "2026-10".into() };
    let october = server.usage().get_platform_usage(request).await.unwrap().into_inner();
    assert_eq!((october.active_client_count, october.services.len()), (0, 0));
    let days: i64 =
        sqlx::query_scalar("SELECT count(*) FROM all_usage_days WHERE day < '2026-11-01' AND request_count > 0")
            .fetch_one(&server.pool)
            .await
            .unwrap();
    assert_eq!(days, 0);
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_rebuild_during_writes_loses_nothing() {
    let server = std::sync::Arc::new(server().await);
    server.create_client_in_zone("acme", "Pacific/Kiritimati").await;
    let writing = tokio::spawn({
        let server = server.clone();
        async move {
            for number in 0..40 {
                let events = (0..20).map(|_| event("acme", "sms", &number.to_string())).collect();
                server.batch(events, false).await;
            }
        }
    });
    while !writing.is_finished() {
        rebuild(&server, "", "2026-11-01", "2026-11-30", true).await;
    }
    writing.await.unwrap();
    server.assert_exact(800).await;
}

#[tokio::test]
async fn an_event_with_a_time_outside_the_month_of_its_day_is_a_difference() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // Required by the partition of that month.
    server.batch(vec![event_at("acme", "sms", "1", "2026-09-10T12:00:00Z")], true).await;
    server.assert_exact(2).await;
    server.sql("UPDATE usage_events SET event_time = event_time - interval '2 months' WHERE day = '2026-11-21'").await;
    // The differences are the day, the service of the month, the month, and the key, which names an event with the
    // previous time.
    assert_eq!(server.verify().await.differences, 5);
    server.stop().await;
}
