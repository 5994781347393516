//! Usage without a price is stored with the reason, included in all counts, and priced as soon as a price covers it.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use meterd_engine::jobs::pricing;
use std::sync::Arc;
use std::time::Duration;

async fn create_price(server: &TestServer, price: Price) {
    let request = CreatePriceRequest { price: Some(price), confirm_high_rates: true, ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
}

/// Waits until all pricing is done, by the job of this or another server, or by running it here.
async fn price_all(server: &TestServer) {
    loop {
        while pricing::run_once(
            &server.context.engine.pool,
            &server.context.engine.catalog,
            &server.context.engine.alert_settings,
        )
        .await
        .unwrap()
        {}
        if open_tasks(server).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn open_tasks(server: &TestServer) -> i64 {
    meterd_store::catalog::pricing::open_task_count(&server.pool).await.unwrap()
}

async fn unpriced(server: &TestServer, client_id: &str) -> Vec<RecordedUsageEvent> {
    let client_id = client_id.into();
    let request = ListUsageEventsRequest { client_id, unpriced_only: true, ..Default::default() };
    server.usage().list_usage_events(request).await.unwrap().into_inner().events
}

#[tokio::test]
async fn unpriced_usage_is_kept_with_its_reason_counted_everywhere_and_priced_with_its_price() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let results = server
        .batch(
            vec![
                event("acme", "social", "3"),
                UsageEvent { input_tokens: 5, ..event("acme", "sms", "1") },
                event("acme", "stripe", "1"),
                event_at("acme", "social", "10", "2026-10-31T12:00:00Z"),
                event("acme", "email", "1"),
            ],
            false,
        )
        .await;
    use UnpricedReason::{AmountMissing, NoPrice, TokensNotCovered, Unspecified};
    let reasons: Vec<_> = results.iter().map(|result| result.unpriced_reason()).collect();
    assert_eq!(reasons, [NoPrice, TokensNotCovered, AmountMissing, NoPrice, Unspecified]);
    assert_eq!(unpriced(&server, "acme").await.len(), 4);

    let count = |totals: Option<UsageTotals>| totals.unwrap().unpriced_event_count;
    let days = ("2026-10-01".to_string(), "2026-11-30".to_string());
    let summary = GetUsageSummaryRequest {
        client_id: "acme".into(),
        start_date: days.0.clone(),
        end_date: days.1.clone(),
        top_operation_count: 0,
    };
    let query = QueryUsageRequest { start_date: days.0, end_date: days.1, ..Default::default() };
    let counts = async || {
        let update = UpdateMonthlySummariesRequest::default();
        server.usage().update_monthly_summaries(update).await.unwrap();
        let list = ListMonthlySummariesRequest::default();
        let list = server.usage().list_monthly_summaries(list).await.unwrap().into_inner();
        let platform = GetPlatformUsageRequest::default();
        [
            count(server.month("acme").await.totals),
            count(server.usage().get_usage_summary(summary.clone()).await.unwrap().into_inner().totals),
            count(server.query(query.clone()).await.remove(0).totals),
            count(list.totals.unwrap().totals),
            count(server.usage().get_platform_usage(platform).await.unwrap().into_inner().totals),
        ]
    };
    assert_eq!(counts().await, [3, 4, 4, 3, 3]);
    assert_eq!(cost(&server.month("acme").await.totals), "0.001");

    create_price(&server, unit_price("social", "", "0.1")).await;
    price_all(&server).await;
    assert_eq!(counts().await, [2, 2, 2, 2, 2]);
    assert_eq!(cost(&server.month("acme").await.totals), "0.301");
    let whole = server.usage().get_usage_summary(summary.clone()).await.unwrap().into_inner();
    assert_eq!(cost(&whole.totals), "1.301");
    // A repeated event returns its current charge.
    let left: Vec<_> = unpriced(&server, "acme").await.iter().map(|event| event.unpriced_reason()).collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&AmountMissing) && left.contains(&TokensNotCovered));
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test]
async fn the_pricing_job_starts_by_itself_and_a_repeat_returns_the_charge() {
    let server = TestServer::start().await;
    let event_with_key = UsageEvent { idempotency_key: "k".into(), ..event("acme", "social", "3") };
    assert_eq!(server.track(event_with_key.clone()).await.unwrap().charge, None);
    create_price(&server, unit_price("social", "", "0.1")).await;
    let priced = async {
        while !unpriced(&server, "acme").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Long before the job would run by schedule.
    tokio::time::timeout(Duration::from_secs(3), priced).await.expect("CreatePrice starts the job");
    let again = server.track(event_with_key).await.unwrap();
    assert_eq!((again.outcome(), amount(&again.charge)), (EventOutcome::Duplicate, "0.3"));
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn an_alias_or_an_earlier_price_covers_unpriced_events() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let dated = UsageEvent { model: "gpt-4o-mini-2027".into(), ..model_call("acme", 1_000, 0) };
    assert_eq!(server.track(dated).await.unwrap().unpriced_reason(), UnpricedReason::NoPrice);
    let alias = ModelAlias { service: "openai".into(), alias: "gpt-4o-mini-2027".into(), model: "gpt-4o-mini".into() };
    let request = CreateModelAliasRequest { model_alias: Some(alias), request_id: String::new() };
    server.catalog().create_model_alias(request).await.unwrap();
    price_all(&server).await;
    assert_eq!(cost(&server.month("acme").await.totals), "0.00015");
    server.track(event("acme", "social", "1")).await.unwrap();
    let from = |time: &str| Price { effective_time: Some(timestamp(time)), ..unit_price("social", "", "1") };
    create_price(&server, from("2026-11-21T12:00:00.000001Z")).await;
    price_all(&server).await;
    assert_eq!(unpriced(&server, "acme").await.len(), 1, "a price from a later time does not cover it");
    create_price(&server, from("2026-11-21T12:00:00Z")).await;
    price_all(&server).await;
    assert_eq!(cost(&server.month("acme").await.totals), "1.00015");
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn pricing_continues_after_a_restart_while_events_are_recorded() {
    let database_url = fresh_database().await;
    let server = TestServer::replica(&database_url, &[], Clock::system()).await;
    for client in ["acme", "beta"] {
        server.batch(vec![event(client, "social", "1"); 3_500], false).await;
    }
    // No job can change the month before the stop, because the test has locked it.
    let mut tx = server.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM usage_months WHERE client_id = 'beta' FOR UPDATE").execute(&mut *tx).await.unwrap();
    create_price(&server, unit_price("social", "", "0.01")).await;
    let examined = async |pool: &sqlx::PgPool| -> i64 {
        sqlx::query_scalar("SELECT examined_count FROM pricing_tasks").fetch_one(pool).await.unwrap()
    };
    while examined(&server.pool).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((examined(&server.pool).await, open_tasks(&server).await), (2_000, 1), "the pricing must be unfinished");
    // The stop waits for the running step, and no other step starts.
    tokio::join!(server.stop(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        tx.rollback().await.unwrap();
    });

    let server = Arc::new(TestServer::replica(&database_url, &[], Clock::system()).await);
    let ingest = tokio::spawn({
        let server = server.clone();
        async move {
            for _ in 0..20 {
                server.batch(vec![event("acme", "social", "1"), event("beta", "social", "1")], false).await;
            }
        }
    });
    price_all(&server).await;
    ingest.await.unwrap();
    for client in ["acme", "beta"] {
        assert_eq!(cost(&server.month(client).await.totals), "35.2");
    }
    assert_eq!(examined(&server.pool).await, 7_000, "each unpriced event must be examined once");
    server.assert_exact(7_040).await;
}

#[tokio::test]
async fn usage_of_an_unknown_service_can_be_stored_and_is_priced_once_the_service_exists() {
    let server = TestServer::start_with(&["--unknown-service=keep"], Clock::system()).await;
    let result = server.track(event("acme", "fax", "2")).await.unwrap();
    assert_eq!((result.unpriced_reason(), result.charge), (UnpricedReason::UnknownService, None));
    let month = server.month("acme").await;
    assert_eq!((&*month.services[0].service, month.totals.unwrap().unpriced_event_count), ("fax", 1));
    server.assert_exact(1).await;
    let service = Service { service: "fax".into(), ..Default::default() };
    let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
    server.catalog().create_service(request).await.unwrap();
    create_price(&server, unit_price("fax", "", "0.25")).await;
    price_all(&server).await;
    assert_eq!(cost(&server.month("acme").await.totals), "0.5");
    assert_eq!(unpriced(&server, "acme").await, []);
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_price_created_on_one_replica_applies_on_the_other_at_once() {
    let one = TestServer::start().await;
    let other = TestServer::replica(&one.database_url, &[], Clock::system()).await;
    for round in 0..5 {
        let scope = format!("m{round}");
        let event_of_model = |client: &str| UsageEvent { model: scope.clone(), ..event(client, "social", "1") };
        assert_eq!(other.track(event_of_model("acme")).await.unwrap().charge, None);
        create_price(&one, unit_price("social", &scope, "1")).await;
        assert_eq!(amount(&other.track(event_of_model("acme")).await.unwrap().charge), "1");
    }
    price_all(&one).await;
    assert_eq!(cost(&other.month("acme").await.totals), "10");
    other.assert_exact(10).await;
    other.stop().await;
    one.stop().await;
}

#[tokio::test]
async fn a_model_call_without_tokens_is_unpriced_and_not_free() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let event_of_model = |model: &str| UsageEvent {
        operation: "chat_completion".into(),
        model: model.into(),
        ..event("acme", "openai", "")
    };
    let batch =
        vec![event_of_model("gpt-4o"), event_of_model("gpt-4o-2099-01-01"), event_of_model("text-embedding-3-small")];
    for result in server.batch(batch, false).await {
        assert_eq!((result.unpriced_reason(), &result.charge), (UnpricedReason::TokensMissing, &None));
    }
    let estimate = EstimateCostRequest { service: "openai".into(), model: "gpt-4o".into(), ..Default::default() };
    let estimated = server.catalog().estimate_cost(estimate).await.unwrap().into_inner();
    assert_eq!((estimated.unpriced_reason(), estimated.charge), (UnpricedReason::TokensMissing, None));
    // A call that used nothing has zero units.
    let nothing = server.track(UsageEvent { units: "0".into(), ..event_of_model("gpt-4o") }).await.unwrap();
    assert_eq!(amount(&nothing.charge), "0");

    let listed = unpriced(&server, "acme").await;
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|event| event.unpriced_reason() == UnpricedReason::TokensMissing));
    assert_eq!(server.month("acme").await.totals.unwrap().unpriced_event_count, 3);

    // After a change of the catalogue, each event is examined once. A price per call covers it.
    let tokens = Rates { input_token: Some("0.1".into()), ..Default::default() };
    create_price(&server, Price { rates: Some(tokens), ..unit_price("openai", "another", "1") }).await;
    price_all(&server).await;
    assert_eq!(unpriced(&server, "acme").await.len(), 3);
    let later =
        Price { effective_time: Some(timestamp("2026-11-01T00:00:00Z")), ..unit_price("openai", "gpt-4o", "2") };
    create_price(&server, later).await;
    price_all(&server).await;
    let left: Vec<_> = unpriced(&server, "acme").await;
    assert_eq!(left.iter().map(|e| &*e.event.as_ref().unwrap().model).collect::<Vec<_>>(), ["text-embedding-3-small"]);
    assert_eq!(cost(&server.month("acme").await.totals), "4");
    server.assert_exact(4).await;
    server.stop().await;
}

#[tokio::test]
async fn free_usage_stays_priced() {
    let server = TestServer::start().await;
    let free = Rates { input_token: Some("0".into()), output_token: Some("0".into()), ..Default::default() };
    let price = Price { rates: Some(free), ..unit_price("openai", "local-model", "0") };
    create_price(&server, price).await;
    for event in [
        UsageEvent { model: "local-model".into(), ..event("acme", "openai", "1") },
        event("acme", "api_call", "5"),
        event("acme", "sms", "0"),
    ] {
        assert_eq!(amount(&server.track(event).await.unwrap().charge), "0");
    }
    assert_eq!(unpriced(&server, "acme").await, []);
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_unpriced_events_by_service_and_reason() {
    let server = TestServer::start_with(&["--unknown-service=keep"], Clock::system()).await;
    let service = Service { service: "metered_fax".into(), ..Default::default() };
    let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
    server.catalog().create_service(request).await.unwrap();
    let event_with_key = UsageEvent { idempotency_key: "k".into(), ..event("acme", "metered_fax", "1") };
    server
        .batch(
            vec![event_with_key.clone(), event("acme", "metered_fax", "2"), event("acme", "made-up-4711", "1")],
            false,
        )
        .await;
    server.track(event_with_key).await.unwrap(); // a repeat is not counted again
    let scrape = async || crate::http::get(&server.http_address, "/metrics").await.text().to_string();
    let page = scrape().await;
    assert!(page.contains("meterd_events_unpriced_total{service=\"metered_fax\",reason=\"NO_PRICE\"} 2\n"), "{page}");
    assert!(page.contains("meterd_events_unpriced_total{service=\"unknown\",reason=\"UNKNOWN_SERVICE\"}"), "{page}");
    assert!(!page.contains("made-up-4711"), "the metrics must not have labels that callers choose");

    server.usage().update_monthly_summaries(UpdateMonthlySummariesRequest::default()).await.unwrap();
    let count = meterd_store::usage::summary_totals::unpriced_event_count(&server.pool).await.unwrap();
    assert_eq!(count, 3);
    assert!(page.contains("# TYPE meterd_unpriced_events gauge"), "{page}");
    server.stop().await;
}
