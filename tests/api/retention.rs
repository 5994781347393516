//! Months past their retention are closed: their sums are kept, their events are removed, and open months lose nothing.

use crate::harness::*;
use chrono::TimeDelta;
use chrono_tz::Tz;
use meterd::clock::Clock;
use meterd::proto::{
    BatchTrackUsageRequest, CreatePriceRequest, EventOutcome, GetUsageSummaryRequest, ListUsageEventsRequest,
    RebuildRollupsRequest, RunJobRequest, StreamUsageRequest, TrackUsageRequest, UpdateClientRequest, UsageEvent,
    UsageResult,
};
use meterd_domain::period::{Month, day_of};
use prost_types::FieldMask;
use rand::RngExt;
use sqlx::{AssertSqlSafe, Executor, Postgres, Transaction};
use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Before the current time of any database. Months are closed by the earlier of the two times.
const NOW: &str = "2024-11-21T12:00:00Z";
/// August, September and October stay open, in addition to November.
const THREE_MONTHS: &[&str] = &["--retention-months=3"];

async fn server(flags: &[&str]) -> TestServer {
    TestServer::start_with(flags, Clock::fixed(time(NOW))).await
}

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Returns the UTC months that have a partition.
async fn partitions(server: &TestServer) -> Vec<String> {
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
async fn rows(server: &TestServer, table: &str) -> Option<i64> {
    let count = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&server.pool).await.ok()
}

async fn summary(server: &TestServer, client_id: &str, start_date: &str, end_date: &str) -> (i64, String) {
    let (client_id, start_date, end_date) = (client_id.into(), start_date.into(), end_date.into());
    let request = GetUsageSummaryRequest { client_id, start_date, end_date, top_operation_count: 0 };
    let totals = server.usage().get_usage_summary(request).await.unwrap().into_inner().totals;
    (totals.as_ref().unwrap().request_count, cost(&totals).into())
}

async fn listed(server: &TestServer, client_id: &str) -> Vec<String> {
    let request = ListUsageEventsRequest { client_id: client_id.into(), ascending: true, ..Default::default() };
    let events = server.usage().list_usage_events(request).await.unwrap().into_inner().events;
    events.into_iter().map(|event| event.event.unwrap().idempotency_key).collect()
}

fn rebuild_request(start_date: &str, end_date: &str, rezone: bool) -> RebuildRollupsRequest {
    let (start_date, end_date) = (start_date.into(), end_date.into());
    RebuildRollupsRequest { client_id: String::new(), start_date, end_date, rezone }
}

#[track_caller]
fn assert_closed(status: &Status, through: &str) {
    let (code, reason, _) = error_parts(status);
    assert_eq!((code, &*reason), (Code::FailedPrecondition, "MONTH_CLOSED"), "{status}");
    assert_eq!(status.get_details_error_info().unwrap().metadata["closed_through"], through);
}

#[track_caller]
fn assert_closed_result(result: &UsageResult, through: &str) {
    let error = result.error.as_ref().unwrap_or_else(|| panic!("{result:?}"));
    assert_eq!((result.outcome(), &*error.reason), (EventOutcome::Rejected, "MONTH_CLOSED"), "{result:?}");
    assert!(error.message.contains(through), "{}", error.message);
}

/// Records an event in each month of 2024 from March on. Its key is the month.
async fn record_history(server: &TestServer) {
    let month = |month: u32| {
        let day = format!("2024-{month:02}-15T12:00:00Z");
        keyed(&format!("2024-{month:02}"), event_at("acme", "sms", "2", &day))
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
    let new = |key: &str, day: &str| keyed(key, event_at("acme", "sms", "1", &format!("{day}T12:00:00Z")));

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
        let refused = server.usage().rebuild_rollups(rebuild_request(start, end, false)).await.unwrap_err();
        assert_closed(&refused, "2024-07");
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
    let again = |key: &str, units: &str| keyed(key, event_at("acme", "sms", units, &format!("{key}-15T12:00:00Z")));
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
        keyed("k", event_at("acme", "sms", "1", "2024-07-31T12:00:00Z")),
        keyed("k", event_at("acme", "sms", "2", "2024-07-30T12:00:00Z")),
        keyed("k", event_at("acme", "sms", "3", "2024-08-02T12:00:00Z")),
        keyed("k", event_at("acme", "sms", "4", "2024-08-03T12:00:00Z")),
        keyed("k", event_at("acme", "sms", "3.0", "2024-08-02T12:00:00Z")),
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
    let same = keyed("k", event_at("acme", "sms", "1", "2024-07-31T12:00:00Z"));
    let results = server.batch(vec![same.clone(); 1_000], true).await;
    assert_eq!(results.len(), 1_000);
    results.iter().for_each(|result| assert_closed_result(result, "2024-07"));
    assert_eq!(rows(&server, "idempotency_keys").await, Some(0));

    // They are mixed with events of an open month, which share the key or have their own.
    let event = |number: usize| match number % 4 {
        0 | 1 => same.clone(),
        2 => keyed("k", event_at("acme", "sms", "2", "2024-08-01T12:00:00Z")),
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
        keyed(&format!("{time}-{units}"), event_at(client_id, "sms", units, time))
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

/// Two replicas record backfills while their months are closed one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_during_the_closing_of_its_months_is_counted_or_rejected() {
    const CALLERS: usize = 6;
    const BATCHES: usize = 30;
    let first = TestServer::start_with(&["--retention-months=2"], Clock::fixed(time(NOW))).await;
    let second = TestServer::replica(&first.database_url, &["--retention-months=2"], first.clock.clone()).await;
    let servers = [&first, &second];
    let settled = AtomicUsize::new(0);
    let callers = (0..CALLERS).map(|caller| {
        let mut usage = servers[caller % 2].usage();
        let settled = &settled;
        async move {
            let mut outcomes = [0, 0];
            for batch in 0..BATCHES {
                let day = |number: usize| format!("2024-{:02}-{:02}T12:00:00Z", 1 + number % 6, 1 + number % 28);
                let events =
                    (0..40).map(|number| event_at(&format!("c{}", number % 3), "sms", "1", &day(number + batch)));
                let request = BatchTrackUsageRequest { events: events.collect(), backfill: true, ..Default::default() };
                for result in usage.batch_track_usage(request).await.unwrap().into_inner().results {
                    settled.fetch_add(1, Ordering::Relaxed);
                    match result.outcome() {
                        EventOutcome::Accepted => outcomes[0] += 1,
                        _ => {
                            assert_eq!(result.error.unwrap().reason, "MONTH_CLOSED");
                            outcomes[1] += 1;
                        }
                    }
                }
            }
            outcomes
        }
    });
    let closing = async {
        for month in [7, 8, 9] {
            let part = CALLERS * BATCHES * 40 / 4 * (month - 6);
            while settled.load(Ordering::Relaxed) < part {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            first.clock.set(time(&format!("2024-{month:02}-21T12:00:00Z")));
            // A detach waits only briefly for other transactions, and is retried.
            let request = RunJobRequest { job: "retention".into() };
            first.jobs().run_job(request).await.unwrap();
        }
    };
    first.clock.set(time("2024-07-01T12:00:00Z"));
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(callers), closing);
    let [accepted, refused] = outcomes.into_iter().fold([0, 0], |sum, of| [sum[0] + of[0], sum[1] + of[1]]);
    let closed =
        sqlx::query_scalar::<_, String>("SELECT closed_through::text FROM deployment").fetch_one(&first.pool).await;
    println!("{accepted} accepted, {refused} refused; closed through {}", closed.unwrap());
    assert_eq!(accepted + refused, CALLERS * BATCHES * 40);
    assert!(accepted > 0 && refused > 0, "the months must be closed during the backfill");
    let counted: i64 =
        sqlx::query_scalar("SELECT sum(request_count)::bigint FROM usage_months").fetch_one(&first.pool).await.unwrap();
    assert_eq!(counted as usize, accepted);
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys").fetch_one(&first.pool).await.unwrap();
    assert_eq!(keys as usize, accepted, "each recorded event must have one key");
    first.run_job("retention").await;
    assert_eq!(partitions(&first).await.first().map(String::as_str), Some("2024-06"));
    assert_eq!(first.verify().await.differences, 0);
    second.stop().await;
    first.stop().await;
}

/// Waits until a statement that contains these words waits for a lock.
async fn wait_for_blocked_statement(server: &TestServer, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%')";
    while !sqlx::query_scalar::<_, bool>(waiting).bind(words).fetch_one(&server.pool).await.unwrap() {
        assert!(Instant::now() < deadline, "no statement with {words:?} waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Locks a client's month, so that changes of it wait.
async fn lock_month(server: &TestServer, month: &str) -> Transaction<'static, Postgres> {
    let mut tx = server.pool.begin().await.unwrap();
    let hold = format!("SELECT FROM usage_months WHERE client_id = 'acme' AND month = '{month}-01' FOR UPDATE");
    tx.execute(AssertSqlSafe(hold)).await.unwrap();
    tx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_month_waits_for_batches_that_saw_it_open() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let held = lock_month(&server, "2024-07").await;
    let mut usage = server.usage();
    let events = vec![keyed("late", event_at("acme", "sms", "1", "2024-07-20T12:00:00Z"))];
    let batch = tokio::spawn(async move {
        usage
            .batch_track_usage(BatchTrackUsageRequest { events, backfill: true, ..Default::default() })
            .await
            .unwrap()
            .into_inner()
    });
    wait_for_blocked_statement(&server, "INSERT INTO usage_months").await;
    let mut jobs = server.jobs();
    let job = tokio::spawn(async move { jobs.run_job(RunJobRequest { job: "retention".into() }).await.unwrap() });
    wait_for_blocked_statement(&server, "pg_advisory_xact_lock").await;
    held.rollback().await.unwrap();
    let results = batch.await.unwrap().results;
    job.await.unwrap();
    let july = summary(&server, "acme", "2024-07-01", "2024-07-31").await.0;
    match results[0].outcome() {
        EventOutcome::Accepted => assert_eq!(july, 2),
        _ => {
            assert_closed_result(&results[0], "2024-07");
            assert_eq!(july, 1);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_started_before_its_month_was_closed_finds_all_events() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let held = lock_month(&server, "2024-06").await;
    let mut usage = server.usage();
    let rebuild = tokio::spawn(async move {
        usage.rebuild_rollups(rebuild_request("2024-06-01", "2024-06-30", false)).await.unwrap().into_inner()
    });
    wait_for_blocked_statement(&server, "INSERT INTO usage_months").await;
    let job = server.jobs().run_job(RunJobRequest { job: "retention".into() }).await.unwrap().into_inner().job.unwrap();
    held.rollback().await.unwrap();
    assert_eq!(rebuild.await.unwrap().corrected_row_count, 0);
    assert!(job.last_error.contains("lock timeout"), "the job must not remove the events during the rebuild: {job:?}");
    assert_eq!(summary(&server, "acme", "2024-06-01", "2024-06-30").await, (1, "0.015".into()));
    server.run_job("retention").await;
    assert_eq!(partitions(&server).await[0], "2024-07");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_whose_months_are_closed_meanwhile_names_the_last_closed_month() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let held = lock_month(&server, "2024-05").await;
    let mut usage = server.usage();
    let rebuild =
        tokio::spawn(async move { usage.rebuild_rollups(rebuild_request("2024-05-01", "2024-06-30", false)).await });
    wait_for_blocked_statement(&server, "INSERT INTO usage_months").await;
    // The job closes the months but cannot remove the partitions.
    server.jobs().run_job(RunJobRequest { job: "retention".into() }).await.unwrap();
    held.rollback().await.unwrap();
    assert_closed(&rebuild.await.unwrap().unwrap_err(), "2024-07");
    server.stop().await;
}

#[tokio::test]
async fn a_long_read_keeps_its_events_and_the_job_is_retried() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let mut reader = server.pool.begin().await.unwrap();
    reader.execute("SELECT count(*) FROM usage_events").await.unwrap();
    let request = RunJobRequest { job: "retention".into() };
    let job = server.jobs().run_job(request).await.unwrap().into_inner().job.unwrap();
    assert!(job.last_error.contains("lock timeout"), "{job:?}");
    assert_eq!(partitions(&server).await[0], "2024-03");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(reader);
    server.run_job("retention").await;
    assert_eq!(partitions(&server).await[0], "2024-07");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_read_only_delays_the_run() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let mut reader = server.pool.begin().await.unwrap();
    reader.execute("SELECT count(*) FROM usage_events").await.unwrap();
    let mut jobs = server.jobs();
    let job = tokio::spawn(async move { jobs.run_job(RunJobRequest { job: "retention".into() }).await.unwrap() });
    wait_for_blocked_statement(&server, "DETACH").await;
    let gave_way = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%DETACH%')";
    wait_until(async || sqlx::query_scalar::<_, bool>(gave_way).fetch_one(&server.pool).await.unwrap()).await;
    drop(reader);
    assert_eq!(job.await.unwrap().into_inner().job.unwrap().last_error, "");
    assert_eq!(partitions(&server).await[0], "2024-07");
    server.stop().await;
}

#[tokio::test]
async fn unpriced_events_are_priced_only_in_open_months() {
    let server = server(&["--retention-months=3", "--unknown-service=keep"]).await;
    let days = ["2024-07-15T12:00:00Z", "2024-08-15T12:00:00Z"];
    server.batch(days.iter().map(|day| event_at("acme", "social", "2", day)).collect(), true).await;
    server.run_job("retention").await;
    let price = Some(meterd::proto::Price { effective_time: None, ..unit_price("social", "", "0.5") });
    server.catalog().create_price(CreatePriceRequest { price, request_id: String::new() }).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while meterd_store::pricing::open_task_count(&server.pool).await.unwrap() > 0 {
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
