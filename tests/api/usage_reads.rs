//! Reads months, days and summaries in each client's time zone.

use crate::harness::*;
use meterd::proto::{GetUsageSummaryRequest, QueryUsageRequest, UsageDimension, UsageEvent};
use meterd_engine::clock::Clock;
use sqlx::Executor;
use std::time::Duration;

/// Returns the days of a client with the units of each.
async fn units_by_day(server: &TestServer, client_id: &str, start: &str, end: &str) -> Vec<(String, String)> {
    let query = QueryUsageRequest {
        client_ids: vec![client_id.into()],
        start_date: start.into(),
        end_date: end.into(),
        group_by: vec![UsageDimension::Day.into()],
        ..Default::default()
    };
    server.query(query).await.into_iter().map(|row| (row.day.unwrap(), row.totals.unwrap().units)).collect()
}

fn pairs(rows: &[(String, String)]) -> Vec<(&str, &str)> {
    rows.iter().map(|(day, units)| (&**day, &**units)).collect()
}

#[tokio::test]
async fn the_current_month_is_projected_without_scaling_recurring_cost() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-10T12:00:00Z"))).await;
    let phone = UsageEvent { operation: "local".into(), ..event("acme", "twilio_phone", "2") };
    let cached = UsageEvent { cached_input_tokens: 250, ..model_call("acme", 1_000, 500) };
    let events = vec![phone, cached, event("acme", "sms", "100"), event("acme", "social", "7")];
    server.batch(events, false).await;
    server.track(event_at("acme", "sms", "1000", "2026-10-31T23:59:59.999999Z")).await.unwrap();

    let month = server.month("acme").await;
    assert_eq!((&*month.month, &*month.time_zone), ("2026-11", "UTC"));
    assert_eq!((month.days_elapsed, month.days_remaining), (10, 20));
    let totals = month.totals.as_ref().unwrap();
    assert_eq!((totals.request_count, totals.unpriced_event_count), (4, 1));
    assert_eq!((totals.input_tokens, totals.output_tokens, totals.cached_input_tokens), (1_000, 500, 250));
    assert_eq!(cost(&month.totals), "3.05043125");
    // (3.05045 - 2.30) × 30 ÷ 10 + 2.30
    assert_eq!(amount(&month.projected_cost), "4.55129375");
    let services: Vec<_> = month
        .services
        .iter()
        .map(|row| (&*row.service, &*row.display_name, cost(&row.totals), amount(&row.projected_cost)))
        .collect();
    let expected = [
        ("twilio_phone", "Twilio phone numbers", "2.3", "2.3"),
        ("sms", "SMS", "0.75", "2.25"),
        ("openai", "OpenAI", "0.00043125", "0.00129375"),
        ("social", "Social", "0", "0"),
    ];
    assert_eq!(services, expected);
    assert_eq!(month.services[3].totals.as_ref().unwrap().unpriced_event_count, 1);
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_without_usage_has_an_empty_month() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-10T12:00:00Z"))).await;
    server.create_client_in_zone("acme", "UTC").await;
    let month = server.month("acme").await;
    assert_eq!((cost(&month.totals), amount(&month.projected_cost), month.services.len()), ("0", "0", 0));
    assert!(month.complete_as_of_time.unwrap().seconds > 0);
    server.stop().await;
}

#[tokio::test]
async fn january_starts_at_midnight_and_december_includes_its_last_microsecond() {
    let clock = Clock::fixed(time("2026-12-31T23:59:59.999999Z"));
    let server = TestServer::start_with(&[], clock.clone()).await;
    server.track(event("acme", "sms", "5")).await.unwrap();
    let december = server.month("acme").await;
    assert_eq!((&*december.month, december.days_elapsed, december.days_remaining), ("2026-12", 31, 0));
    assert_eq!(december.projected_cost, december.totals.unwrap().cost);
    clock.set(time("2027-01-01T00:00:00Z"));
    server.track(event("acme", "sms", "7")).await.unwrap();
    let january = server.month("acme").await;
    assert_eq!((&*january.month, january.days_elapsed, january.days_remaining), ("2027-01", 1, 30));
    assert_eq!(january.totals.unwrap().units, "7");
    let days = units_by_day(&server, "acme", "2026-12-31", "2027-01-01").await;
    assert_eq!(pairs(&days), [("2026-12-31", "5"), ("2027-01-01", "7")]);
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn one_instant_is_in_different_months_in_distant_time_zones() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-12-31T10:30:00Z"))).await;
    server.create_client_in_zone("east", "Pacific/Kiritimati").await;
    server.create_client_in_zone("west", "Pacific/Pago_Pago").await;
    for client in ["east", "west"] {
        server.track(event(client, "sms", "1")).await.unwrap();
    }
    let east = server.month("east").await;
    assert_eq!((&*east.month, east.days_elapsed, east.days_remaining), ("2027-01", 1, 30));
    assert_eq!((&*east.time_zone, amount(&east.projected_cost)), ("Pacific/Kiritimati", "0.2325"));
    let west = server.month("west").await;
    assert_eq!((&*west.month, west.days_elapsed, west.days_remaining), ("2026-12", 30, 1));
    assert_eq!(amount(&west.projected_cost), "0.00775");
    let east = units_by_day(&server, "east", "2026-12-01", "2027-01-31").await;
    let west = units_by_day(&server, "west", "2026-12-01", "2027-01-31").await;
    assert_eq!((pairs(&east), pairs(&west)), (vec![("2027-01-01", "1")], vec![("2026-12-30", "1")]));
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn days_of_23_and_25_hours_contain_their_events() {
    let server = TestServer::start().await;
    server.create_client_in_zone("acme", "Europe/Berlin").await;
    let edges = [
        ("2026-03-28T22:59:59.999999Z", "1"),
        ("2026-03-28T23:00:00Z", "10"),
        ("2026-03-29T21:59:59.999999Z", "100"),
        ("2026-03-29T22:00:00Z", "1000"),
        ("2025-10-25T21:59:59.999999Z", "1"),
        ("2025-10-25T22:00:00Z", "10"),
        ("2025-10-26T22:59:59.999999Z", "100"),
        ("2025-10-26T23:00:00Z", "1000"),
    ];
    let events = edges.map(|(time, units)| event_at("acme", "sms", units, time));
    server.batch(events.into(), true).await;
    let spring = units_by_day(&server, "acme", "2026-03-01", "2026-03-31").await;
    assert_eq!(pairs(&spring), [("2026-03-28", "1"), ("2026-03-29", "110"), ("2026-03-30", "1000")]);
    let autumn = units_by_day(&server, "acme", "2025-10-01", "2025-10-31").await;
    assert_eq!(pairs(&autumn), [("2025-10-25", "1"), ("2025-10-26", "110"), ("2025-10-27", "1000")]);
    server.assert_exact(8).await;
    server.stop().await;
}

#[tokio::test]
async fn the_31st_and_the_29th_of_february_are_the_last_day_of_their_month() {
    let clock = Clock::fixed(time("2027-10-31T12:00:00Z"));
    let server = TestServer::start_with(&[], clock.clone()).await;
    for (now, elapsed, remaining) in [
        ("2027-10-31T12:00:00Z", 31, 0),
        ("2028-02-28T12:00:00Z", 28, 1),
        ("2028-02-29T12:00:00Z", 29, 0),
        ("2028-03-01T00:00:00Z", 1, 30),
    ] {
        clock.set(time(now));
        server.track(event("acme", "sms", "1")).await.unwrap();
        let month = server.month("acme").await;
        assert_eq!((&*month.month, month.days_elapsed, month.days_remaining), (&now[..7], elapsed, remaining));
    }
    let days = units_by_day(&server, "acme", "2028-02-28", "2028-03-01").await;
    assert_eq!(pairs(&days), [("2028-02-28", "1"), ("2028-02-29", "1"), ("2028-03-01", "1")]);
    server.assert_exact(4).await;
    server.stop().await;
}

#[tokio::test]
async fn late_events_count_in_the_month_in_which_they_happened() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-02T12:00:00Z"))).await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.track(event_at("acme", "sms", "20", "2026-10-15T08:00:00Z")).await.unwrap();
    server.batch(vec![event_at("acme", "sms", "300", "1970-01-01T00:00:00Z")], true).await;
    assert_eq!(server.month("acme").await.totals.unwrap().units, "1");
    let days = units_by_day(&server, "acme", "2026-10-01", "2026-11-30").await;
    assert_eq!(pairs(&days), [("2026-10-15", "20"), ("2026-11-02", "1")]);
    let days = units_by_day(&server, "acme", "1970-01-01", "1970-12-31").await;
    assert_eq!(pairs(&days), [("1970-01-01", "300")]);
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_summary_sums_any_range_by_service_day_and_operation() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let operation = |operation: &str, event: UsageEvent| UsageEvent { operation: operation.into(), ..event };
    let events = vec![
        operation("message", event_at("acme", "sms", "10", "2026-11-01T00:00:00Z")),
        operation("mms", event_at("acme", "sms", "4", "2026-11-02T00:00:00Z")),
        event_at("acme", "sms", "2", "2026-11-02T10:00:00Z"),
        event_at("acme", "social", "1", "2026-11-02T11:00:00Z"),
        event_at("acme", "sms", "1000", "2026-11-03T00:00:00Z"),
        event_at("acme", "sms", "1000", "2026-10-31T23:59:59Z"),
        event_at("other", "sms", "1000", "2026-11-02T00:00:00Z"),
    ];
    server.batch(events, false).await;
    let request = |top_operation_count| GetUsageSummaryRequest {
        client_id: "acme".into(),
        start_date: "2026-11-01".into(),
        end_date: "2026-11-02".into(),
        top_operation_count,
    };
    let summary = server.usage().get_usage_summary(request(0)).await.unwrap().into_inner();
    let totals = summary.totals.as_ref().unwrap();
    assert_eq!((totals.request_count, &*totals.units, totals.unpriced_event_count), (4, "17", 1));
    assert_eq!(cost(&summary.totals), "0.17");
    let services: Vec<_> = summary.services.iter().map(|row| (&*row.service, cost(&row.totals))).collect();
    assert_eq!(services, [("sms", "0.17"), ("social", "0")]);
    let days: Vec<_> = summary.days.iter().map(|row| (&*row.day, cost(&row.totals))).collect();
    assert_eq!(days, [("2026-11-01", "0.075"), ("2026-11-02", "0.095")]);
    let top: Vec<_> =
        summary.top_operations.iter().map(|row| (&*row.service, &*row.operation, cost(&row.totals))).collect();
    let expected = [("sms", "mms", "0.08"), ("sms", "message", "0.075"), ("sms", "", "0.015"), ("social", "", "0")];
    assert_eq!(top, expected);
    let two = server.usage().get_usage_summary(request(2)).await.unwrap().into_inner();
    assert_eq!(two.top_operations, summary.top_operations[..2]);
    let empty = GetUsageSummaryRequest { end_date: "2020-01-02".into(), start_date: "2020-01-01".into(), ..request(0) };
    let empty = server.usage().get_usage_summary(empty).await.unwrap().into_inner();
    assert_eq!((cost(&empty.totals), empty.days.len(), empty.services.len()), ("0", 0, 0));
    server.stop().await;
}

#[tokio::test]
async fn reads_succeed_right_after_all_database_connections_were_closed() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'meterd reads'";
    // A connection that was idle for a second is checked before a read; any other one fails during the read.
    for idle in [0, 0, 1_100, 0, 1_100] {
        // Reads that wait for a lock at the same time use several connections.
        let mut tx = server.pool.begin().await.unwrap();
        tx.execute("LOCK TABLE clients").await.unwrap();
        let release = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            tx.rollback().await.unwrap();
        };
        tokio::join!(futures_util::future::join_all((0..8).map(|_| server.month("acme"))), release);
        assert!(server.sql(cut).await > 1);
        tokio::time::sleep(Duration::from_millis(idle)).await;
        assert_eq!(server.month("acme").await.totals.unwrap().units, "1");
    }
    server.stop().await;
}

#[tokio::test]
async fn reads_one_after_another_use_one_connection() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    for _ in 0..50 {
        server.month("acme").await;
    }
    let connections = server.sql(
        "SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'meterd reads'",
    );
    assert_eq!(connections.await, 1);
    server.stop().await;
}

/// With 200,000 operations. Run with `cargo test --test api -- --ignored --nocapture very_many_operations`.
#[tokio::test]
#[ignore = "measures for some seconds"]
async fn a_summary_of_very_many_operations_takes_a_second() {
    let (server, started) = (with_operations(200_000).await, std::time::Instant::now());
    assert_most_expensive_operations(&server, 200_000).await;
    println!("GetUsageSummary of 200,000 operations took {:?}", started.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn a_summary_of_many_operations_lists_the_most_expensive_and_sums_all() {
    let server = with_operations(3_000).await;
    assert_most_expensive_operations(&server, 3_000).await;
    server.stop().await;
}

/// Starts a server with a client that has `count` operations on each of two days. The last operations are the most
/// expensive.
async fn with_operations(count: usize) -> TestServer {
    let server = TestServer::start().await;
    server.create_client_in_zone("many", "UTC").await;
    let rows = format!(
        "INSERT INTO usage_days SELECT 'many', day, 'sms', lpad(n::text, 6, '0'), '', 1, 2, 3, 4, 1, n / 1000.0, 0
         FROM generate_series(1, {count}) AS n, (VALUES (date '2026-11-20'), (date '2026-11-21')) AS days (day)"
    );
    assert_eq!(server.sql(&rows).await, 2 * count as u64);
    server
}

async fn assert_most_expensive_operations(server: &TestServer, count: usize) {
    let request = GetUsageSummaryRequest {
        client_id: "many".into(),
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        top_operation_count: 3,
    };
    let summary = server.usage().get_usage_summary(request).await.unwrap().into_inner();
    let top: Vec<_> =
        summary.top_operations.iter().map(|top| (&*top.operation, cost(&top.totals).to_string())).collect();
    let names: Vec<String> = (count - 2..=count).rev().map(|number| format!("{number:06}")).collect();
    let costs: Vec<String> = (count - 2..=count).rev().map(|number| format!("{}", number as f64 / 500.0)).collect();
    let expected: Vec<_> = names.iter().map(String::as_str).zip(costs).collect();
    assert_eq!(top, expected);
    assert_eq!(summary.top_operations[0].totals.as_ref().unwrap().request_count, 2);
    let totals = summary.totals.unwrap();
    assert_eq!((totals.request_count, totals.units), (2 * count as i64, (4 * count).to_string()));
    assert_eq!((summary.services.len(), summary.days.len()), (1, 2));
    assert_eq!(summary.days[1].totals.as_ref().unwrap().request_count, count as i64);
}
