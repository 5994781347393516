//! New events append pending rows to the sums of days and services. Every reader sees them before and after they are applied.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use meterd_store::locks::PENDING_USAGE_LOCK;
use std::sync::Arc;

/// Returns the number of rows of a table.
async fn rows(server: &TestServer, table: &str) -> i64 {
    let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(count).fetch_one(&server.pool).await.unwrap()
}

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time("2026-11-15T12:00:00Z"))).await
}

/// Returns the answers of all reads of sums as texts, without times.
async fn all_reads(server: &TestServer) -> Vec<String> {
    let mut usage = server.usage();
    let mut month = server.month("acme").await;
    month.complete_as_of_time = None;
    let request = GetUsageSummaryRequest {
        client_id: "acme".into(),
        start_date: "2026-10-01".into(),
        end_date: "2026-11-30".into(),
        ..Default::default()
    };
    let mut summary = usage.get_usage_summary(request).await.unwrap().into_inner();
    summary.complete_as_of_time = None;
    let mut answers = vec![format!("{month:?}"), format!("{summary:?}")];
    for client_ids in [vec![], vec!["acme".to_string()]] {
        let request = QueryUsageRequest {
            client_ids,
            start_date: "2026-10-01".into(),
            end_date: "2026-11-30".into(),
            group_by: vec![UsageDimension::Day.into(), UsageDimension::Service.into(), UsageDimension::Model.into()],
            ..Default::default()
        };
        answers.push(format!("{:?}", server.query(request).await));
    }
    let mut platform = usage.get_platform_usage(GetPlatformUsageRequest::default()).await.unwrap().into_inner();
    platform.complete_as_of_time = None;
    answers.push(format!("{platform:?}"));
    let request = ListMonthlySummariesRequest { client_id: "acme".into(), ..Default::default() };
    let mut live = usage.list_monthly_summaries(request).await.unwrap().into_inner();
    live.complete_as_of_time = None;
    answers.push(format!("{live:?}"));
    answers
}

#[tokio::test]
async fn every_read_includes_pending_usage_and_does_not_change_when_it_is_applied() {
    let server = november().await;
    for round in 1i64..=3 {
        let events = vec![
            event("acme", "sms", "1.5"),
            event("acme", "sms", "2"),
            event("acme", "social", "1"),
            event("acme", "sms", "0"),
            model_call("acme", 100, 20),
            model_call("beta", 7, 3),
            event_at("acme", "sms", "4", "2026-10-31T12:00:00Z"),
        ];
        server.batch(events, false).await;
        server.track(event("acme", "sms", "0.25")).await.unwrap();
        assert!(rows(&server, "pending_usage_days").await >= 5);
        server.assert_exact(8 * round).await;
        let pending = all_reads(&server).await;
        server.run_job("pending_usage").await;
        assert_eq!(rows(&server, "pending_usage_days").await, 0);
        assert_eq!(all_reads(&server).await, pending);
        server.assert_exact(8 * round).await;
        let units = server.month("acme").await.services.into_iter().find(|usage| usage.service == "sms").unwrap();
        assert_eq!(units.totals.unwrap().units, format!("{}", 3.75 * round as f64));
    }
    assert_eq!((rows(&server, "usage_days").await, rows(&server, "usage_month_services").await), (5, 5));
    server.stop().await;
}

#[tokio::test]
async fn usage_of_a_client_with_many_events_is_applied_without_the_job() {
    let server = TestServer::start().await;
    server.track(event("rarely", "sms", "1")).await.unwrap();
    // Lone events and batches, small and large.
    for size in [1, 1, 3, 60, 30, 30, 30] {
        let events = (0..size).map(|n| UsageEvent { model: format!("m{n}"), ..event("often", "sms", "1") }).collect();
        server.batch(events, false).await;
    }
    wait_until(async || rows(&server, "pending_usage_days WHERE client_id = 'often'").await < 32).await;
    assert_eq!(rows(&server, "pending_usage_days WHERE client_id = 'rarely'").await, 1);
    assert!(rows(&server, "usage_days").await >= 60);
    server.assert_exact(156).await;
    server.stop().await;
}

#[tokio::test]
async fn corrections_of_usage_that_is_pending_are_exact() {
    let server = november().await;
    let unpriced = UsageEvent { model: "new-model".into(), ..model_call("acme", 100, 10) };
    server.batch(vec![unpriced, event("acme", "sms", "1")], false).await;
    server.track(event_at("acme", "sms", "1", "2026-10-31T23:30:00Z")).await.unwrap();
    assert_eq!(rows(&server, "usage_days").await, 0);

    // A price that comes later.
    let rates = Rates { input_token: Some("0.001".into()), output_token: Some("0.01".into()), ..Default::default() };
    let price = Price {
        service: "openai".into(),
        model: "new-model".into(),
        rates: Some(rates),
        effective_time: Some(timestamp("2026-01-01T00:00:00Z")),
        ..Default::default()
    };
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 0).await;
    server.assert_exact(3).await;
    assert_eq!(
        rows(&server, "pending_usage_days").await,
        0,
        "the pending usage must be applied before it is corrected"
    );

    // A time zone that moves an event to another month, while its usage is pending.
    server.track(event_at("acme", "sms", "8", "2026-10-31T23:45:00Z")).await.unwrap();
    let update = UpdateClientRequest {
        client: Some(Client { client_id: "acme".into(), time_zone: "Pacific/Kiritimati".into(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["time_zone".into()] }),
    };
    server.clients().update_client(update).await.unwrap();
    let rebuild = RebuildRollupsRequest {
        start_date: "2026-10-01".into(),
        end_date: "2026-11-30".into(),
        rezone: true,
        ..Default::default()
    };
    let rebuilt = server.usage().rebuild_rollups(rebuild).await.unwrap().into_inner();
    assert_eq!(rebuilt.rezoned_event_count, 4);
    server.assert_exact(4).await;
    let negative = "all_usage_days WHERE request_count <= 0 OR cost < 0";
    assert_eq!(rows(&server, negative).await, 0, "a row has lost usage that it did not have");

    // Wrong pending rows.
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!(server.sql("UPDATE pending_usage_days SET cost = cost + 1, units = 0").await, 1);
    assert_eq!(server.verify().await.differences, 2);
    let rebuild =
        RebuildRollupsRequest { start_date: "2026-11-01".into(), end_date: "2026-11-30".into(), ..Default::default() };
    let rebuilt = server.usage().rebuild_rollups(rebuild).await.unwrap().into_inner();
    assert_eq!(rebuilt.corrected_row_count, 2);
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_that_several_transactions_apply_at_once_is_applied_once() {
    let server = Arc::new(TestServer::start().await);
    let writer = tokio::spawn({
        let server = server.clone();
        async move {
            for number in 0..300 {
                let events = vec![event("acme", "sms", "1"), event(&format!("c{}", number % 20), "social", "1")];
                server.batch(events, false).await;
            }
        }
    });
    let apply =
        "SELECT FROM apply_pending_usage((SELECT array_agg(client_id) FROM clients)) AS row_count WHERE row_count > 0";
    let mut applied = 0;
    while !writer.is_finished() {
        let results = futures_util::future::join_all((0..4).map(|_| server.sql(apply))).await;
        applied += results.iter().sum::<u64>();
        // Readers are never wrong meanwhile.
        assert_eq!(server.verify().await.differences, 0);
    }
    writer.await.unwrap();
    assert!(applied > 0);
    server.sql(apply).await;
    assert_eq!(rows(&server, "pending_usage_days").await, 0);
    server.assert_exact(600).await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test]
async fn nothing_is_pending_until_replicas_of_the_previous_release_are_replaced() {
    let server = TestServer::start().await;
    server.sql("UPDATE deployment SET usage_pends_from = now() + interval '1 hour'").await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    server
        .batch((0..70).map(|n| UsageEvent { model: format!("m{n}"), ..event("acme", "sms", "1") }).collect(), false)
        .await;
    assert_eq!((rows(&server, "pending_usage_days").await, rows(&server, "usage_days").await), (0, 71));
    server.assert_exact(71).await;
    let by_previous_release = "SELECT FROM add_usage('{}', '{}', ARRAY(SELECT ROW(client_id, day, service, operation, model, 0, 0, 0, 0, 0, 0, 0)
        ::day_delta FROM usage_days), '{}')";
    server.sql(by_previous_release).await;
    server.sql("UPDATE deployment SET usage_pends_from = now()").await;
    let refused = sqlx::query(by_previous_release).execute(&server.pool).await.unwrap_err();
    assert!(refused.to_string().contains("older release of meterd than the database"), "{refused}");
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!((rows(&server, "pending_usage_days").await, rows(&server, "usage_days").await), (1, 71));
    server.assert_exact(72).await;
    server.stop().await;
}

#[tokio::test]
async fn the_job_applies_the_usage_of_any_number_of_clients() {
    let server = TestServer::start().await;
    let events = (0..1_100).map(|number| event(&format!("c{number}"), "sms", "1")).collect();
    server.batch(events, false).await;
    assert_eq!(server.run_job("pending_usage").await, "1100 pending rows applied");
    assert_eq!(rows(&server, "usage_days").await, 1_100);
    server.assert_exact(1_100).await;
    server.stop().await;
}

#[tokio::test]
async fn the_function_takes_the_lock_of_pending_usage() {
    let server = TestServer::start().await;
    let function = format!("pg_proc WHERE proname = 'apply_pending_usage' AND prosrc LIKE '%({PENDING_USAGE_LOCK})%'");
    assert_eq!(rows(&server, &function).await, 1);
    server.stop().await;
}

#[tokio::test]
async fn the_documented_statements_lead_back_to_the_previous_release() {
    let operating = include_str!("../../docs/operating.md");
    let (_, block) = operating.split_once("```sql\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let server = TestServer::start().await;
    server.batch(vec![event("acme", "sms", "1"), event("beta", "sms", "1")], false).await;
    for statement in block.trim().lines() {
        server.sql(statement).await;
    }
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!((rows(&server, "pending_usage_days").await, rows(&server, "usage_days").await), (0, 2));
    server
        .sql("SELECT FROM add_usage('{}', '{}', ARRAY(SELECT ROW(d.*)::day_delta FROM usage_days d LIMIT 0), '{}')")
        .await;
    server.assert_exact(3).await;
    server.stop().await;
}
