//! A common batch is recorded in one call, which the database refuses if an alert could be raised, a key is taken or a version is old.

use crate::alerts::{alerts, check, kinds, metered, server_at, spend};
use crate::harness::*;
use crate::policies::try_update;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::collections::HashMap;

/// Counts calls of functions in the sessions that begin from now on.
async fn count_calls(server: &TestServer) {
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&server.pool).await.unwrap();
    server.sql(&format!("ALTER DATABASE {database} SET track_functions = 'pl'")).await;
}

/// Returns the calls of each function of the write path.
async fn calls(server: &TestServer) -> HashMap<String, i64> {
    let calls = "SELECT funcname::text, sum(calls)::bigint FROM pg_stat_user_functions GROUP BY 1";
    let calls = sqlx::query_as(calls);
    calls.fetch_all(&server.pool).await.unwrap().into_iter().collect()
}

async fn spend_at(server: &TestServer, client_id: &str, amount: &str, time: &str) {
    server.track(event_at(client_id, "metered", amount, time)).await.unwrap();
}

#[tokio::test]
async fn a_lone_event_is_recorded_by_one_call() {
    let url = fresh_database().await;
    let clock = Clock::fixed(time("2026-11-15T12:00:00Z"));
    let server = TestServer::replica(&url, &[], clock.clone()).await;
    count_calls(&server).await;
    server.stop().await;
    let server = TestServer::replica(&url, &[], clock).await;
    metered(&server, "metered").await;
    for _ in 0..20 {
        spend(&server, "acme", "0.01").await;
    }
    wait_until(async || calls(&server).await.get("change_usage") == Some(&20)).await;
    // The first batch of a connection must read the versions.
    let one_call = calls(&server).await["record_events"];
    assert!(one_call >= 12, "{one_call} of 20 events were recorded by one call");
    server.assert_exact(20).await;
    server.stop().await;
}

/// Forwards connections to a Unix socket. Returns the port.
async fn forward(socket: std::path::PathBuf) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = tokio::net::UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    port
}

/// At the end of a COPY over TCP, sqlx 0.9.0 would wait 40 ms.
#[tokio::test]
async fn a_large_batch_is_recorded_by_copy_over_a_unix_socket_and_by_one_call_over_tcp() {
    let local = TestServer::start().await;
    count_calls(&local).await;
    let options = connect::options(&local.database_url).unwrap();
    let (host, port) = (options.get_socket().unwrap(), options.get_port());
    let forwarded = forward(host.join(format!(".s.PGSQL.{port}"))).await;
    let database = options.get_database().unwrap();
    let url = format!("postgres://{}@127.0.0.1:{forwarded}/{database}", options.get_username());
    for (url, is_copied) in [(local.database_url.clone(), true), (url, false)] {
        let server = TestServer::replica(&url, &[], Clock::system()).await;
        let before = calls(&local).await;
        for _ in 0..3 {
            server.batch((0..200).map(|_| event("acme", "sms", "1")).collect(), false).await;
        }
        // The sessions report their calls at their end.
        server.stop().await;
        let called = |after: &HashMap<String, i64>, name| {
            let count = |of: &HashMap<String, i64>| of.get(name).copied().unwrap_or_default();
            count(after) - count(&before)
        };
        wait_until(async || called(&calls(&local).await, "add_new_usage") >= 3).await;
        let after = calls(&local).await;
        let not_copied = called(&after, "record_events") + called(&after, "claim_keys");
        assert_eq!(called(&after, "add_new_usage") > not_copied, is_copied, "{url}: {before:?} {after:?}");
    }
    local.assert_exact(1_200).await;
    local.stop().await;
}

#[tokio::test]
async fn a_spike_is_raised_after_late_usage_has_lifted_the_previous_month_to_the_baseline() {
    let server = server_at("2026-11-15T12:00:00Z").await;
    spend_at(&server, "acme", "0.5", "2026-10-31T12:00:00Z").await;
    for _ in 0..3 {
        spend(&server, "acme", "3").await;
    }
    assert_eq!(kinds(&server, "acme").await, [""; 0], "there is no spike after a month below the baseline");
    spend_at(&server, "acme", "0.6", "2026-10-31T12:00:00Z").await;
    spend(&server, "acme", "0.01").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 SPIKE CRITICAL"]);
    server.stop().await;
}

#[tokio::test]
async fn a_projection_is_raised_from_its_first_day_on() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    for _ in 0..3 {
        spend(&server, "acme", "7").await;
    }
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    // 21 in three days are 210 in the month.
    server.clock.set(time("2026-11-03T12:00:00Z"));
    spend(&server, "acme", "0.000001").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 PROJECTION WARNING"]);
    server.stop().await;
}

#[tokio::test]
async fn a_resolved_alert_is_raised_again_at_its_new_threshold() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "60").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD WARNING"]);
    let monthly_warning = Some("70".into());
    let policy = AlertPolicy { client_id: "acme".into(), monthly_warning, ..Default::default() };
    try_update(&server, policy, &["monthly_warning"]).await.unwrap();
    for _ in 0..9 {
        spend(&server, "acme", "1").await;
        assert!(alerts(&server, "acme").await[0].resolve_time.is_some());
    }
    spend(&server, "acme", "1").await;
    let alert = alerts(&server, "acme").await.remove(0);
    assert_eq!((alert.resolve_time, alert.raise_count), (None, 2));
    server.stop().await;
}

/// One step of the usage of clients on two replicas.
#[derive(Clone, Debug)]
enum Step {
    /// Usage with a cost of this number of hundredths, this number of months ago.
    Spend { replica: usize, client: usize, months_ago: u32, cents: u32 },
    /// An event without a charge, of one of two services, this number of months ago.
    Unpriced { replica: usize, client: usize, months_ago: u32, service: usize },
    /// A void of the last event without a charge.
    Void { replica: usize },
    /// The last event again.
    Repeat { replica: usize },
    /// Another warning threshold of a client.
    Policy { client: usize, warning: u32 },
    /// Another rule about unpriced events of a client. 0: the rule is off.
    Minimum { client: usize, minimum: i32 },
    /// Another time zone of a client, where it may be another day.
    Zone { client: usize, zone: usize },
    /// A later time.
    Wait { hours: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let months_ago = prop_oneof![5 => Just(0), 3 => Just(1), 1 => Just(2)];
    // Often small amounts, because the spike rule does not apply after a month below 1.
    let cents = prop_oneof![2 => 1..60u32, 1 => 1..2_000u32];
    let spend = (0..2usize, 0..2usize, months_ago.clone(), cents);
    let unpriced = (0..2usize, 0..2usize, months_ago, 0..2usize);
    prop_oneof![
        12 => spend.prop_map(|(replica, client, months_ago, cents)| Step::Spend { replica, client, months_ago, cents }),
        6 => unpriced.prop_map(|(replica, client, months_ago, service)| {
            Step::Unpriced { replica, client, months_ago, service }
        }),
        4 => (0..2usize).prop_map(|replica| Step::Void { replica }),
        2 => (0..2usize).prop_map(|replica| Step::Repeat { replica }),
        1 => (0..2usize, 0..4i32).prop_map(|(client, minimum)| Step::Minimum { client, minimum }),
        1 => (0..2usize, 1..100u32).prop_map(|(client, warning)| Step::Policy { client, warning }),
        1 => (0..2usize, 0..3usize).prop_map(|(client, zone)| Step::Zone { client, zone }),
        1 => (1..40i64).prop_map(|hours| Step::Wait { hours }),
    ]
}

const CLIENTS: [&str; 2] = ["acme", "globex"];
/// Services, and models for which they have no price.
const UNPRICED: [(&str, &str); 2] = [("social", ""), ("openai", "new")];
const ZONES: [&str; 3] = ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"];

/// Runs the steps. After each usage of the current time, a check of all rules must find nothing that the usage has not raised.
async fn run(start: &str, steps: &[Step]) {
    let clock = Clock::fixed(time(start));
    let flags = ["--accept-past-days=93"];
    let first = TestServer::start_with(&flags, clock.clone()).await;
    let second = TestServer::replica(&first.database_url, &flags, clock.clone()).await;
    let servers = [&first, &second];
    metered(&first, "metered").await;
    for client in CLIENTS {
        first.create_client_in_zone(client, "UTC").await;
    }
    let mut sent: Vec<UsageEvent> = vec![];
    let (mut unpriced, mut voided): (Vec<UsageEvent>, i64) = (vec![], 0);
    let check_found_nothing = async |server: &TestServer, client_id: &str, number: usize| {
        let mut raised = check(server, client_id).await.raised;
        raised.retain(|alert| alert.r#type() != AlertType::Anomaly);
        assert_eq!(raised, [], "step {number} {:?} of {steps:?}", steps[number]);
    };
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Spend { replica, client, months_ago, cents } => {
                let at = clock.now() - chrono::Months::new(months_ago);
                let amount = format!("{}.{:02}", cents / 100, cents % 100);
                let event = event_at(CLIENTS[client], "metered", &amount, &at.to_rfc3339());
                let event = UsageEvent { idempotency_key: format!("key-{number}"), ..event };
                servers[replica].track(event.clone()).await.unwrap();
                sent.push(event);
                if months_ago == 0 {
                    check_found_nothing(servers[1 - replica], CLIENTS[client], number).await;
                }
            }
            Step::Unpriced { replica, client, months_ago, service } => {
                let at = (clock.now() - chrono::Months::new(months_ago)).to_rfc3339();
                let (service, model) = UNPRICED[service];
                let event = event_at(CLIENTS[client], service, "1", &at);
                let event = UsageEvent { idempotency_key: format!("key-{number}"), model: model.into(), ..event };
                assert_eq!(servers[replica].track(event.clone()).await.unwrap().charge, None);
                sent.push(event.clone());
                unpriced.push(event);
                if months_ago == 0 {
                    check_found_nothing(servers[1 - replica], CLIENTS[client], number).await;
                }
                assert_unpriced_alerts_match(&first, steps).await;
            }
            Step::Void { replica } => {
                let Some(UsageEvent { client_id, idempotency_key, .. }) = unpriced.pop() else { continue };
                let reference = EventReference { idempotency_key, ..Default::default() };
                let (events, reason) = (vec![reference], "sent twice".into());
                let request = VoidUsageRequest { client_id, events, reason, ..Default::default() };
                let results = servers[replica].usage().void_usage(request).await.unwrap().into_inner().results;
                assert_eq!(results[0].error, None);
                voided += 1;
                assert_unpriced_alerts_match(&first, steps).await;
            }
            Step::Repeat { replica } => {
                if let Some(event) = sent.last() {
                    let result = servers[replica].track(event.clone()).await.unwrap();
                    assert_eq!(result.outcome(), EventOutcome::Duplicate);
                }
            }
            Step::Policy { client, warning } => {
                let (client_id, monthly_warning) = (CLIENTS[client].into(), Some(warning.to_string()));
                let policy = AlertPolicy { client_id, monthly_warning, ..Default::default() };
                try_update(&first, policy, &["monthly_warning"]).await.unwrap();
            }
            Step::Minimum { client, minimum } => {
                let policy = AlertPolicy {
                    client_id: CLIENTS[client].into(),
                    unpriced_enabled: Some(minimum > 0),
                    unpriced_events_min: Some(minimum.max(1)),
                    ..Default::default()
                };
                try_update(&first, policy, &["unpriced_enabled", "unpriced_events_min"]).await.unwrap();
            }
            Step::Zone { client, zone } => {
                let (client_id, time_zone) = (CLIENTS[client].into(), ZONES[zone].into());
                let client = Some(Client { client_id, time_zone, ..Default::default() });
                let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
                second.clients().update_client(UpdateClientRequest { client, update_mask }).await.unwrap();
            }
            Step::Wait { hours } => clock.set(clock.now() + chrono::TimeDelta::hours(hours)),
        }
    }
    first.assert_exact(sent.len() as i64 - voided).await;
    first.stop().await;
    second.stop().await;
}

/// Checks that no alert about unpriced events is open for a service that has fewer of them than the policy of its client says, in the
/// current and the previous month. A changed policy does not resolve alerts of earlier months.
async fn assert_unpriced_alerts_match(server: &TestServer, steps: &[Step]) {
    let previous = (server.clock.now() - chrono::Months::new(1)).format("%Y-%m-01").to_string();
    let wrong: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT a.client_id, a.period::text, a.service FROM alerts a LEFT JOIN alert_policies p USING (client_id)
         WHERE a.type = 5 AND a.resolve_time IS NULL AND a.period >= $1::date AND COALESCE((
                   SELECT sum(u.unpriced_event_count) FROM all_usage_month_services u
                   WHERE u.client_id = a.client_id AND u.service = a.service AND u.month = a.period
               ), 0) < COALESCE((p.policy->>'unpriced_events_min')::int, 1)",
    )
    .bind(previous)
    .fetch_all(&server.pool)
    .await
    .unwrap();
    assert_eq!(wrong, [], "{steps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_threshold_is_reached_without_its_alert_for_any_steps_on_two_replicas() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    // The first days, which have no projection; the middle of a month; and its end, where the next month begins.
    for start in ["2026-11-01T12:00:00Z", "2026-11-02T12:00:00Z", "2026-11-15T12:00:00Z", "2026-11-30T12:00:00Z"] {
        for _ in 0..2 {
            let steps = prop::collection::vec(step(), 60).new_tree(&mut runner).unwrap().current();
            run(start, &steps).await;
        }
    }
}
