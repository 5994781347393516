//! Months past their retention are closed: their sums are kept, their events are removed, and open months lose nothing.

use crate::harness::*;
use chrono::TimeDelta;
use chrono_tz::Tz;
use meterd::proto::{
    CreatePriceRequest, EventOutcome, GetUsageSummaryRequest, ListUsageEventsRequest, RebuildRollupsRequest,
    StreamUsageRequest, TrackUsageRequest, UpdateClientRequest, UsageEvent, UsageResult,
};
use meterd_domain::period::{Month, day_of};
use meterd_engine::clock::Clock;
use prost_types::FieldMask;
use rand::RngExt;
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Before the current time of any database. Months are closed by the earlier of the two times.
pub const NOW: &str = "2024-11-21T12:00:00Z";
/// August, September and October stay open, in addition to November.
pub const THREE_MONTHS: &[&str] = &["--retention-months=3"];

pub async fn server(flags: &[&str]) -> TestServer {
    TestServer::start_with(flags, Clock::fixed(time(NOW))).await
}

pub fn event_with_key(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Returns the UTC months that have a partition.
pub async fn partitions(server: &TestServer) -> Vec<String> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'usage_events'::regclass ORDER BY 1",
    )
    .fetch_all(&server.pool)
    .await
    .unwrap();
    names.iter().map(|name| name.trim_start_matches("usage_events_").replace('_', "-")).collect()
}

/// Returns the number of rows of a table, or `None` if the table does not exist.
pub async fn rows(server: &TestServer, table: &str) -> Option<i64> {
    let count = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&server.pool).await.ok()
}

pub async fn summary(server: &TestServer, client_id: &str, start_date: &str, end_date: &str) -> (i64, String) {
    let (client_id, start_date, end_date) = (client_id.into(), start_date.into(), end_date.into());
    let request = GetUsageSummaryRequest { client_id, start_date, end_date, top_operation_count: 0 };
    let totals = server.usage().get_usage_summary(request).await.unwrap().into_inner().totals;
    (totals.as_ref().unwrap().request_count, cost(&totals).into())
}

pub async fn listed(server: &TestServer, client_id: &str) -> Vec<String> {
    let request = ListUsageEventsRequest { client_id: client_id.into(), ascending: true, ..Default::default() };
    let events = server.usage().list_usage_events(request).await.unwrap().into_inner().events;
    events.into_iter().map(|event| event.event.unwrap().idempotency_key).collect()
}

pub fn rebuild_request(start_date: &str, end_date: &str, rezone: bool) -> RebuildRollupsRequest {
    let (start_date, end_date) = (start_date.into(), end_date.into());
    RebuildRollupsRequest { client_id: String::new(), start_date, end_date, rezone }
}

#[track_caller]
pub fn assert_closed(status: &Status, through: &str) {
    let (code, reason, _) = error_parts(status);
    assert_eq!((code, &*reason), (Code::FailedPrecondition, "MONTH_CLOSED"), "{status}");
    assert_eq!(status.get_details_error_info().unwrap().metadata["closed_through"], through);
}

#[track_caller]
pub fn assert_closed_result(result: &UsageResult, through: &str) {
    let error = result.error.as_ref().unwrap_or_else(|| panic!("{result:?}"));
    assert_eq!((result.outcome(), &*error.reason), (EventOutcome::Rejected, "MONTH_CLOSED"), "{result:?}");
    assert!(error.message.contains(through), "{}", error.message);
}

/// Records an event in each month of 2024 from March on. Its key is the month.
pub async fn record_history(server: &TestServer) {
    let month = |month: u32| {
        let day = format!("2024-{month:02}-15T12:00:00Z");
        event_with_key(&format!("2024-{month:02}"), event_at("acme", "sms", "2", &day))
    };
    let results = server.batch((3..=11).map(month).collect(), true).await;
    assert!(results.iter().all(|result| result.outcome() == EventOutcome::Accepted), "{results:?}");
}

#[tokio::test]
async fn closed_months_keep_their_sums_and_lose_their_events_and_open_ones_stay_exact() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let before = summary(&server, "acme", "2024-03-01", "2024-11-30").await;
    assert_eq!(
        server.run_job("retention").await,
        "months through 2024-07 are closed; 4 partitions detached; 0 changes of alerts and 0 notifications pruned"
    );
    assert_eq!(partitions(&server).await, ["2024-07", "2024-08", "2024-09", "2024-10", "2024-11"]);
    assert_eq!(
        rows(&server, "usage_events_2024_06").await,
        Some(1),
        "a detached partition must be left for the operator"
    );
    assert_eq!(summary(&server, "acme", "2024-03-01", "2024-11-30").await, before, "sums must still be readable");
    assert_eq!(summary(&server, "acme", "2024-04-01", "2024-04-30").await, (1, "0.015".into()));
    assert_eq!(listed(&server, "acme").await, ["2024-07", "2024-08", "2024-09", "2024-10", "2024-11"]);
    let verified = server.verify().await;
    assert_eq!((verified.client_months, verified.closed_client_months, verified.differences), (4, 5, 0));
    assert_eq!(
        server.run_job("retention").await,
        "months through 2024-07 are closed; 0 partitions detached; 0 changes of alerts and 0 notifications pruned"
    );
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    let verify = command.arg("verify").env("DATABASE_URL", &server.database_url).stdin(Stdio::null()).output().await;
    assert_eq!(
        String::from_utf8(verify.unwrap().stdout).unwrap(),
        "5 client-months are closed and not compared\n4 client-months, 4 events: 0 differences\n"
    );

    // In December, August is closed and July's partition is removed.
    server.clock.set(time("2024-12-01T00:00:00Z"));
    server.run_job("retention").await;
    assert_eq!(partitions(&server).await[0], "2024-08");
    let url = server.database_url.clone();
    server.stop().await;
    let server = TestServer::replica(&url, &[], Clock::fixed(time(NOW))).await;
    let done = server.run_job("retention").await;
    assert!(
        done.starts_with("months through 2024-08 are closed; 0 partitions"),
        "a closed month must stay closed: {done}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_server_with_a_clock_years_ahead_closes_months_by_the_databases_time() {
    let server = TestServer::start_with(&["--retention-months=2"], Clock::fixed(time("2100-01-15T12:00:00Z"))).await;
    server.run_job("retention").await;
    let open =
        "SELECT closed_through = date_trunc('month', now() AT TIME ZONE 'UTC') - interval '3 months' FROM deployment";
    assert!(sqlx::query_scalar::<_, bool>(open).fetch_one(&server.pool).await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn closed_partitions_are_dropped_if_the_setting_says_so() {
    let server = server(&["--retention-months=3", "--retention-action=drop"]).await;
    record_history(&server).await;
    assert_eq!(
        server.run_job("retention").await,
        "months through 2024-07 are closed; 4 partitions dropped; 0 changes of alerts and 0 notifications pruned"
    );
    assert_eq!(rows(&server, "usage_events_2024_06").await, None);
    assert_eq!(rows(&server, "usage_events_2024_07").await, Some(1));
    assert_eq!(server.verify().await.differences, 0);
    server.stop().await;
}

#[tokio::test]
async fn every_change_of_a_closed_month_is_rejected_and_leaves_no_key() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    server.run_job("retention").await;
    let new = |key: &str, day: &str| event_with_key(key, event_at("acme", "sms", "1", &format!("{day}T12:00:00Z")));

    let events = vec![new("a", "2024-07-31"), new("b", "2024-08-01"), new("c", "2020-01-01"), new("c", "2020-01-01")];
    let results = server.batch(events, true).await;
    for closed in [0, 2, 3] {
        assert_closed_result(&results[closed], "2024-07");
    }
    assert_eq!(results[1].outcome(), EventOutcome::Accepted);

    // A replica with other settings would accept such an event without a backfill.
    let lenient = TestServer::replica(&server.database_url, &["--accept-past-days=300"], server.clock.clone()).await;
    assert_closed(&lenient.track(new("d", "2024-07-31")).await.unwrap_err(), "2024-07");
    let messages = vec![StreamUsageRequest { event: Some(new("e", "2024-07-31")) }];
    let mut acks = lenient.usage().stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let ack = acks.message().await.unwrap().unwrap();
    assert_closed_result(ack.results[0].result.as_ref().unwrap(), "2024-07");

    for (start, end) in [("2024-07-01", "2024-07-31"), ("2024-06-30", "2024-11-30")] {
        let rejected = server.usage().rebuild_rollups(rebuild_request(start, end, false)).await.unwrap_err();
        assert_closed(&rejected, "2024-07");
    }
    server.usage().rebuild_rollups(rebuild_request("2024-08-01", "2024-11-30", true)).await.unwrap();

    let keys: Vec<String> = sqlx::query_scalar(
        "SELECT idempotency_key FROM idempotency_keys WHERE idempotency_key < '2' OR idempotency_key > '3' ORDER BY 1",
    )
    .fetch_all(&server.pool)
    .await
    .unwrap();
    assert_eq!(keys, ["b"], "keys of rejected events must not be used");
    assert_eq!(server.batch(vec![new("a", "2024-08-02")], true).await[0].outcome(), EventOutcome::Accepted);
    assert_eq!(partitions(&server).await[0], "2024-07", "no closed partition must be created again");
    assert_eq!(summary(&server, "acme", "2024-01-01", "2024-07-31").await.0, 5);
    let verified = server.verify().await;
    assert_eq!((verified.events, verified.differences), (6, 0));
    lenient.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_event_of_a_closed_month_is_a_duplicate() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    server.run_job("retention").await;
    let again =
        |key: &str, units: &str| event_with_key(key, event_at("acme", "sms", units, &format!("{key}-15T12:00:00Z")));
    let results = server.batch(vec![again("2024-03", "2"), again("2024-07", "2"), again("2024-03", "3")], true).await;
    let outcomes: Vec<_> = results.iter().map(|result| result.outcome()).collect();
    assert_eq!(outcomes, [EventOutcome::Duplicate, EventOutcome::Duplicate, EventOutcome::Conflict]);
    assert_eq!(results[0].charge, None, "the event and its charge must be removed");
    assert_eq!(amount(&results[1].charge), "0.015", "the event of an open month must still exist");
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_a_rejected_event_can_be_used_by_the_next_event_of_the_batch() {
    let server = server(THREE_MONTHS).await;
    server.run_job("retention").await;
    let events = vec![
        event_with_key("k", event_at("acme", "sms", "1", "2024-07-31T12:00:00Z")),
        event_with_key("k", event_at("acme", "sms", "2", "2024-07-30T12:00:00Z")),
        event_with_key("k", event_at("acme", "sms", "3", "2024-08-02T12:00:00Z")),
        event_with_key("k", event_at("acme", "sms", "4", "2024-08-03T12:00:00Z")),
        event_with_key("k", event_at("acme", "sms", "3.0", "2024-08-02T12:00:00Z")),
    ];
    let results = server.batch(events, true).await;
    let outcomes: Vec<_> = results.iter().map(|result| result.outcome()).collect();
    use EventOutcome::{Accepted, Conflict, Duplicate, Rejected};
    assert_eq!(outcomes, [Rejected, Rejected, Accepted, Conflict, Duplicate]);
    assert_eq!(summary(&server, "acme", "2024-01-01", "2024-12-31").await, (1, "0.0225".into()));
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn each_of_a_thousand_events_of_a_closed_month_with_one_key_is_rejected() {
    let server = server(THREE_MONTHS).await;
    server.run_job("retention").await;
    let same = event_with_key("k", event_at("acme", "sms", "1", "2024-07-31T12:00:00Z"));
    let results = server.batch(vec![same.clone(); 1_000], true).await;
    assert_eq!(results.len(), 1_000);
    results.iter().for_each(|result| assert_closed_result(result, "2024-07"));
    assert_eq!(rows(&server, "idempotency_keys").await, Some(0));

    // They are mixed with events of an open month, which share the key or have their own.
    let event = |number: usize| match number % 4 {
        0 | 1 => same.clone(),
        2 => event_with_key("k", event_at("acme", "sms", "2", "2024-08-01T12:00:00Z")),
        _ => event_at("acme", "sms", "1", "2024-08-01T12:00:00Z"),
    };
    let results = server.batch((0..1_000).map(event).collect(), true).await;
    use EventOutcome::{Accepted, Duplicate, Rejected};
    for (number, result) in results.iter().enumerate() {
        let expected = match number % 4 {
            0 | 1 => Rejected,
            2 if number > 2 => Duplicate,
            _ => Accepted,
        };
        assert_eq!(result.outcome(), expected, "{number}");
    }
    server.assert_exact(251).await;
    // The key is used now, so the events that were rejected before have another payload.
    assert_eq!(server.batch(vec![same], true).await[0].outcome(), EventOutcome::Conflict);
    server.stop().await;
}

#[tokio::test]
async fn a_client_in_an_extreme_time_zone_keeps_all_events_of_its_open_month() {
    let server = server(THREE_MONTHS).await;
    server.create_client_in_zone("kiritimati", "Pacific/Kiritimati").await;
    server.create_client_in_zone("pago-pago", "Pacific/Pago_Pago").await;
    // At UTC+14, August starts on 31 July at 10:00. At UTC-11, July ends on 1 August at 11:00.
    let edges = [
        ("kiritimati", "2024-06-30T09:59:59Z", false),
        ("kiritimati", "2024-07-31T09:59:59Z", false),
        ("kiritimati", "2024-07-31T10:00:00Z", true),
        ("pago-pago", "2024-07-01T10:59:59Z", false),
        ("pago-pago", "2024-08-01T10:59:59Z", false),
        ("pago-pago", "2024-08-01T11:00:00Z", true),
    ];
    let at = |units: &str, (client_id, time, _): &(&str, &str, bool)| {
        event_with_key(&format!("{time}-{units}"), event_at(client_id, "sms", units, time))
    };
    server.batch(edges.iter().map(|edge| at("1", edge)).collect(), true).await;
    server.run_job("retention").await;
    assert_eq!(partitions(&server).await, ["2024-07", "2024-08"], "only the partition of June contained no open month");
    let more = server.batch(edges.iter().map(|edge| at("2", edge)).collect(), true).await;
    for (result, (client_id, time, open)) in more.iter().zip(edges) {
        match open {
            true => assert_eq!(result.outcome(), EventOutcome::Accepted, "{client_id} {time}"),
            false => assert_closed_result(result, "2024-07"),
        }
    }
    for client_id in ["kiritimati", "pago-pago"] {
        assert_eq!(summary(&server, client_id, "2024-08-01", "2024-08-31").await, (2, "0.0225".into()), "{client_id}");
    }
    let verified = server.verify().await;
    assert_eq!((verified.events, verified.client_months, verified.differences), (4, 2, 0));
    server.stop().await;
}

/// Random months, clients in all time zones, most events within a day of the end of a month. The sums of every month
/// must be those of its accepted events, and no event of an open month may be missing.
#[tokio::test]
async fn no_open_month_loses_an_event() {
    const EVENTS: usize = 1_500;
    let zones: [Tz; 6] = [
        chrono_tz::Pacific::Kiritimati,
        chrono_tz::Pacific::Pago_Pago,
        chrono_tz::Etc::GMTPlus12,
        chrono_tz::Europe::Berlin,
        chrono_tz::Asia::Kolkata,
        chrono_tz::UTC,
    ];
    let clock = Clock::fixed(time("2024-06-15T12:00:00Z"));
    let server = TestServer::start_with(&["--retention-months=2"], clock).await;
    for zone in zones {
        server.create_client_in_zone(zone.name(), zone.name()).await;
    }
    let mut rng = rand::rng();
    let mut send = async |server: &TestServer, count: usize, accepted: &mut BTreeMap<(String, Month), i64>| {
        let mut months = vec![];
        let events = (0..count).map(|_| {
            let first = Month::parse(&format!("2024-{:02}", rng.random_range(1..=8))).unwrap().first_day();
            let time = first.and_time(chrono::NaiveTime::MIN).and_utc()
                + TimeDelta::minutes(rng.random_range(-26 * 60..26 * 60));
            let zone = zones[rng.random_range(0..zones.len())];
            months.push((zone.name().to_string(), Month::of(day_of(time, zone))));
            event_at(zone.name(), "sms", "1", &time.to_rfc3339())
        });
        let events = events.collect();
        for (result, month) in server.batch(events, true).await.iter().zip(months) {
            match result.outcome() {
                EventOutcome::Accepted => *accepted.entry(month).or_default() += 1,
                _ => assert!(matches!(&*result.error.as_ref().unwrap().reason, "MONTH_CLOSED" | "EVENT_IN_FUTURE")),
            }
        }
    };
    let mut accepted = BTreeMap::new();
    server.clock.set(time("2024-08-15T12:00:00Z"));
    send(&server, EVENTS, &mut accepted).await;
    let mut left = vec![];
    for now in [
        "2024-05-31T23:59:59Z",
        "2024-06-01T00:00:00Z",
        "2024-07-15T12:00:00Z",
        "2024-08-31T12:00:00Z",
        "2024-10-01T00:00:00Z",
    ] {
        server.clock.set(time(now));
        server.run_job("retention").await;
        send(&server, EVENTS / 10, &mut accepted).await;
        let closed: Option<chrono::NaiveDate> =
            sqlx::query_scalar("SELECT NULLIF(closed_through, '-infinity') FROM deployment")
                .fetch_one(&server.pool)
                .await
                .unwrap();
        let present = Month::of(time(now).date_naive());
        assert_eq!(closed.map(Month::of), Some(present.previous().previous().previous()), "{now}");
        let found: Vec<(String, chrono::NaiveDate, i64)> = sqlx::query_as(
            "SELECT client_id, date_trunc('month', day::timestamp)::date, count(*) FROM usage_events GROUP BY 1, 2",
        )
        .fetch_all(&server.pool)
        .await
        .unwrap();
        let found: HashMap<_, _> =
            found.into_iter().map(|(client, month, count)| ((client, Month::of(month)), count)).collect();
        for (key, count) in
            accepted.iter().filter(|((_, month), _)| closed.is_none_or(|closed| month.first_day() > closed))
        {
            assert_eq!(found.get(key), Some(count), "{key:?} at {now}");
        }
        let sums: Vec<(String, chrono::NaiveDate, i64)> =
            sqlx::query_as("SELECT client_id, month, request_count FROM usage_months WHERE request_count > 0")
                .fetch_all(&server.pool)
                .await
                .unwrap();
        let sums: BTreeMap<_, _> =
            sums.into_iter().map(|(client, month, count)| ((client, Month::of(month)), count)).collect();
        assert_eq!(sums, accepted, "{now}");
        let verified = server.verify().await;
        assert_eq!(verified.differences, 0);
        left.push((verified.closed_client_months, verified.client_months, verified.events));
    }
    println!("closed client-months, open ones, their events, month by month: {left:?}");
    server.stop().await;
}

#[tokio::test]
async fn unpriced_events_are_priced_only_in_open_months() {
    let server = server(&["--retention-months=3", "--unknown-service=keep"]).await;
    let days = ["2024-07-15T12:00:00Z", "2024-08-15T12:00:00Z"];
    server.batch(days.iter().map(|day| event_at("acme", "social", "2", day)).collect(), true).await;
    server.run_job("retention").await;
    let price = Some(meterd::proto::Price { effective_time: None, ..unit_price("social", "", "0.5") });
    server.catalog().create_price(CreatePriceRequest { price, ..Default::default() }).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while meterd_store::catalog::pricing::open_task_count(&server.pool).await.unwrap() > 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(summary(&server, "acme", "2024-07-01", "2024-07-31").await, (1, "0".into()));
    assert_eq!(summary(&server, "acme", "2024-08-01", "2024-08-31").await, (1, "1".into()));
    let unpriced: Vec<String> = sqlx::query_scalar("SELECT day::text FROM usage_events WHERE charge IS NULL")
        .fetch_all(&server.pool)
        .await
        .unwrap();
    assert_eq!(unpriced, ["2024-07-15"]);
    assert_eq!(server.verify().await.differences, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_changed_time_zone_moves_no_event_into_or_out_of_a_closed_month() {
    let server = server(THREE_MONTHS).await;
    server.create_client_in_zone("west", "UTC").await;
    server.create_client_in_zone("east", "UTC").await;
    let events = vec![
        event_at("west", "sms", "1", "2024-08-01T03:00:00Z"),
        event_at("west", "sms", "2", "2024-09-01T03:00:00Z"),
        event_at("east", "sms", "4", "2024-07-31T20:00:00Z"),
        event_at("east", "sms", "8", "2024-08-31T20:00:00Z"),
    ];
    server.batch(events, true).await;
    server.run_job("retention").await;
    for (client_id, time_zone) in [("west", "America/Los_Angeles"), ("east", "Asia/Tokyo")] {
        let client =
            meterd::proto::Client { client_id: client_id.into(), time_zone: time_zone.into(), ..Default::default() };
        let update_mask = Some(FieldMask { paths: vec!["time_zone".into()] });
        server.clients().update_client(UpdateClientRequest { client: Some(client), update_mask }).await.unwrap();
    }
    let rebuilt = server.usage().rebuild_rollups(rebuild_request("2024-08-01", "2024-11-30", true)).await.unwrap();
    assert_eq!(rebuilt.into_inner().rezoned_event_count, 2);
    let day = "SELECT string_agg(day::text || ' ' || trim_scale(units), ', ' ORDER BY units) FROM usage_events";
    let days: String = sqlx::query_scalar(day).fetch_one(&server.pool).await.unwrap();
    assert_eq!(days, "2024-08-01 1, 2024-08-31 2, 2024-07-31 4, 2024-09-01 8");
    assert_eq!(summary(&server, "east", "2024-07-01", "2024-07-31").await.0, 1);
    let verified = server.verify().await;
    assert_eq!((verified.closed_client_months, verified.differences), (1, 0));
    server.stop().await;
}

#[tokio::test]
async fn partitions_of_the_next_three_months_are_created_in_advance() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2024-12-31T23:59:59Z"))).await;
    assert_eq!(server.run_job("partitions").await, "3 partitions made; there are all through 2025-02");
    assert_eq!(partitions(&server).await, ["2024-12", "2025-01", "2025-02"]);
    server.clock.set(time("2025-01-01T00:00:00Z"));
    assert_eq!(server.run_job("partitions").await, "1 partition made; there are all through 2025-03");
    server.stop().await;
}

#[tokio::test]
async fn retention_prunes_old_changes_of_alerts() {
    let server = server(&["--alert-feed-days=10"]).await;
    // 0.0075 each: above the warning threshold of 50 and the critical threshold of 100.
    let request = TrackUsageRequest { event: Some(event("acme", "sms", "20000")) };
    server.usage().track_usage(request).await.unwrap();
    let changes = rows(&server, "alert_feed").await.unwrap();
    assert!(changes > 0);
    server.sql("UPDATE alert_feed SET change_time = change_time - interval '9 days'").await;
    assert_eq!(
        server.run_job("retention").await,
        "every month is kept; 0 changes of alerts and 0 notifications pruned"
    );
    server.sql("UPDATE alert_feed SET change_time = change_time - interval '1 day'").await;
    let done = server.run_job("retention").await;
    assert!(done.starts_with(&format!("every month is kept; {changes} change")), "{done}");
    assert_eq!(rows(&server, "alert_feed").await, Some(0));
    server.stop().await;
}
