//! Alerts are raised once, in the transaction of the usage that reaches a threshold, for the usage's month.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::collections::BTreeMap;
use tokio::task::JoinSet;

/// Starts a server at this time, with the service "metered" at 1 USD per unit.
pub async fn server_at(now: &str) -> TestServer {
    let server = TestServer::start_with(&[], Clock::fixed(time(now))).await;
    metered(&server, "metered").await;
    server
}

/// Creates a service with a price of 1 USD per unit.
pub async fn metered(server: &TestServer, service: &str) {
    let new = Service { service: service.into(), ..Default::default() };
    let request = CreateServiceRequest { service: Some(new), request_id: String::new() };
    server.catalog().create_service(request).await.unwrap();
    let request = CreatePriceRequest { price: Some(unit_price(service, "", "1")), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
}

/// Returns a client's alerts, the oldest first.
pub async fn alerts(server: &TestServer, client_id: &str) -> Vec<Alert> {
    let request = ListAlertsRequest { client_ids: vec![client_id.into()], page_size: 1_000, ..Default::default() };
    let mut alerts = server.alerts().list_alerts(request).await.unwrap().into_inner().alerts;
    alerts.reverse();
    alerts
}

/// Describes a client's alerts, sorted.
pub async fn kinds(server: &TestServer, client_id: &str) -> Vec<String> {
    let name = |alert: &Alert| {
        let (kind, severity) = (alert.r#type().as_str_name(), alert.severity().as_str_name());
        let (kind, severity) = (kind.trim_start_matches("ALERT_TYPE_"), severity.trim_start_matches("ALERT_SEVERITY_"));
        format!("{} {kind} {severity}", alert.period)
    };
    let mut kinds: Vec<_> = alerts(server, client_id).await.iter().map(name).collect();
    kinds.sort();
    kinds
}

pub async fn check(server: &TestServer, client_id: &str) -> CheckAlertsResponse {
    let request = CheckAlertsRequest { client_id: client_id.into() };
    server.alerts().check_alerts(request).await.unwrap().into_inner()
}

pub async fn spend(server: &TestServer, client_id: &str, amount: &str) {
    server.track(event(client_id, "metered", amount)).await.unwrap();
}

/// Checks that the alert bits stored with each month match its alerts.
pub async fn assert_sets_match(server: &TestServer) {
    let wrong = server
        .sql(
            "SELECT 1 FROM usage_months m LEFT JOIN LATERAL (
                 SELECT COALESCE(bit_or(1 << (2 * (type - 1) + severity - 1)), 0) AS raised,
                        COALESCE(bit_or(1 << (2 * (type - 1) + severity - 1)) FILTER (WHERE resolve_time IS NULL), 0) AS open
                 FROM alerts a WHERE a.client_id = m.client_id AND a.period = m.month AND type < 4) a ON true
             WHERE (m.raised_alerts, m.open_alerts) <> (a.raised, a.open)",
        )
        .await;
    assert_eq!(wrong, 0);
}

#[tokio::test]
async fn an_alert_is_raised_once_with_the_event_that_reaches_its_threshold() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "49.999999999999").await;
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    spend(&server, "acme", "0.000000000001").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD WARNING"]);
    for _ in 0..3 {
        spend(&server, "acme", "10").await;
    }
    assert_eq!(kinds(&server, "acme").await.len(), 1);
    spend(&server, "acme", "23.2000825").await;
    let alerts = alerts(&server, "acme").await;
    let alert = &alerts[1];
    assert_eq!(alerts.len(), 2);
    assert_eq!((alert.r#type(), alert.severity()), (AlertType::Threshold, AlertSeverity::Critical));
    assert_eq!((alert.current.as_str(), alert.threshold.as_str()), ("103.2000825", "100"));
    assert_eq!((alert.currency.as_str(), alert.period.as_str(), alert.raise_count), ("USD", "2026-11", 1));
    assert_eq!(
        alert.message,
        "acme has used 103.20 USD in November 2026: the critical threshold of 100.00 USD is reached."
    );
    assert!(alert.raise_time.is_some() && alert.acknowledge_time.is_none() && alert.resolve_time.is_none());
    spend(&server, "acme", "1000").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD CRITICAL", "2026-11 THRESHOLD WARNING"]);
    assert_sets_match(&server).await;
    server.assert_exact(7).await;
}

#[tokio::test]
async fn an_event_that_reaches_both_thresholds_raises_only_the_critical_alert() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "150").await;
    spend(&server, "acme", "1").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD CRITICAL"]);
    // A batch is evaluated by the total after its transaction, too.
    let events = (0..200).map(|_| event("globex", "metered", "1")).collect();
    server.batch(events, false).await;
    assert_eq!(kinds(&server, "globex").await.last().unwrap(), "2026-11 THRESHOLD CRITICAL");
    assert_sets_match(&server).await;
}

/// For several clients one after the other, 64 writers on two replicas reach all thresholds: 50 and 100, spikes at 105
/// and 140 (October had 70), and a projection that needs at least 25 on the fifth day.
async fn race_over_thresholds(services: &'static [&'static str], rounds: usize) {
    const WRITERS: usize = 64;
    let first = server_at("2026-11-05T12:00:00Z").await;
    metered(&first, "other").await;
    let second = TestServer::replica(&first.database_url, &[], first.clock.clone()).await;
    let october = (0..rounds).map(|round| event_at(&format!("race-{round}"), "metered", "70", "2026-10-20T12:00:00Z"));
    first.batch(october.collect(), false).await;
    let channels = [first.channel(), second.channel()];
    for round in 0..rounds {
        let client_id = format!("race-{round}");
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let mut usage = usage_service_client::UsageServiceClient::new(channels[writer % 2].clone());
            // 64 × 2.5 = 160 is above every threshold.
            let event = event(&client_id, services[writer / 2 % services.len()], "2.5");
            writers.spawn(async move { usage.track_usage(TrackUsageRequest { event: Some(event) }).await.unwrap() });
        }
        // A concurrent check must not raise an alert twice either.
        check(&first, &client_id).await;
        writers.join_all().await;
    }
    // The feed contains them in commit order without a gap.
    let feed: Vec<(i64, String, i16, i16)> =
        sqlx::query_as("SELECT sequence, client_id, type, severity FROM alert_feed ORDER BY sequence")
            .fetch_all(&first.pool)
            .await
            .unwrap();
    assert_eq!(feed.iter().map(|row| row.0).collect::<Vec<_>>(), (1..=feed.len() as i64).collect::<Vec<_>>());
    assert_eq!(first.sql("SELECT 1 FROM alert_feed WHERE change <> 1").await, 0);
    // Count only November, because October has raised a warning before.
    let mut of_lines: BTreeMap<(&str, i16), Vec<i16>> = BTreeMap::new();
    for (_, client_id, kind, severity) in feed.iter().skip(rounds) {
        of_lines.entry((client_id, *kind)).or_default().push(*severity);
    }
    let count = |kind: AlertType, severities: &[i16]| {
        of_lines.iter().filter(|((_, of), found)| *of == kind as i16 && found.as_slice() == severities).count()
    };
    for kind in [AlertType::Threshold, AlertType::Spike] {
        let (alone, after_warning) = (count(kind, &[2]), count(kind, &[1, 2]));
        let wrong =
            of_lines.iter().find(|((_, of), found)| *of == kind as i16 && !matches!(found.as_slice(), [2] | [1, 2]));
        assert_eq!((alone + after_warning, wrong), (rounds, None), "{kind:?}");
        println!(
            "{rounds} races of {WRITERS} writers on 2 replicas, services {services:?}, {kind:?}: {rounds} critical alerts, \
             {after_warning} warnings before them, none after"
        );
    }
    assert_eq!(count(AlertType::Projection, &[1]), rounds);
    assert_eq!(of_lines.len(), 3 * rounds);
    assert_sets_match(&first).await;
    first.assert_exact((rounds * (WRITERS + 1)) as i64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writers_on_two_replicas_raise_each_critical_alert_once() {
    race_over_thresholds(&["metered"], 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writers_on_two_services_raise_each_critical_alert_once() {
    race_over_thresholds(&["metered", "other"], 200).await;
}

#[tokio::test]
async fn late_usage_raises_alerts_in_its_own_month() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "10").await;
    server.track(event_at("acme", "metered", "60", "2026-10-31T23:00:00Z")).await.unwrap();
    assert_eq!(kinds(&server, "acme").await, ["2026-10 THRESHOLD WARNING"]);
}

#[tokio::test]
async fn january_is_compared_with_december() {
    let server = server_at("2026-12-31T12:00:00Z").await;
    spend(&server, "acme", "20").await;
    server.clock.set(time("2027-01-02T12:00:00Z"));
    spend(&server, "acme", "29.99").await;
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    spend(&server, "acme", "0.01").await;
    spend(&server, "acme", "10").await;
    assert_eq!(kinds(&server, "acme").await, ["2027-01 SPIKE CRITICAL", "2027-01 SPIKE WARNING"]);
    let alert = &alerts(&server, "acme").await[0];
    assert_eq!([&alert.current, &alert.previous, &alert.threshold, &alert.percent], ["30", "20", "30", "50"]);
}

#[tokio::test]
async fn a_spike_compares_both_months_after_the_transaction() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    let october = "2026-10-31T12:00:00Z";
    let events = vec![event_at("acme", "metered", "10", october), event("acme", "metered", "15")];
    server.batch(events, false).await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 SPIKE WARNING"]);
    let events = vec![event_at("globex", "metered", "10", october), event("globex", "metered", "14.99")];
    server.batch(events, false).await;
    assert_eq!(kinds(&server, "globex").await, [""; 0]);
}

#[tokio::test]
async fn a_month_ends_in_the_clients_time_zone() {
    // In Kiribati (UTC+14) it is 1 December; in Niue (UTC-11) it is 29 November.
    let server = server_at("2026-11-30T10:30:00Z").await;
    server.create_client_in_zone("east", "Pacific/Kiritimati").await;
    server.create_client_in_zone("west", "Pacific/Niue").await;
    for client in ["east", "west"] {
        spend(&server, client, "60").await;
    }
    assert_eq!(kinds(&server, "east").await, ["2026-12 THRESHOLD WARNING"]);
    assert_eq!(kinds(&server, "west").await, ["2026-11 THRESHOLD WARNING"]);
    // Two days later it is December in the west, too.
    server.clock.set(time("2026-12-01T11:00:00Z"));
    for client in ["east", "west"] {
        spend(&server, client, "55").await;
    }
    let east = ["2026-12 THRESHOLD CRITICAL", "2026-12 THRESHOLD WARNING"];
    assert_eq!(kinds(&server, "east").await, east);
    assert_eq!(kinds(&server, "west").await, ["2026-11 THRESHOLD WARNING", "2026-12 THRESHOLD WARNING"]);
}

#[tokio::test]
async fn a_projection_counts_the_clients_days_and_starts_on_the_third() {
    // 16 USD so far. In Kiribati it is the third day: 16 ÷ 3 × 30 = 160. In Niue it is the second.
    let server = server_at("2026-11-02T10:30:00Z").await;
    server.create_client_in_zone("east", "Pacific/Kiritimati").await;
    server.create_client_in_zone("west", "Pacific/Niue").await;
    for client in ["east", "west"] {
        spend(&server, client, "16").await;
    }
    assert_eq!(kinds(&server, "east").await, ["2026-11 PROJECTION WARNING"]);
    assert_eq!(kinds(&server, "west").await, [""; 0]);
    let alert = &alerts(&server, "east").await[0];
    assert_eq!([&alert.current, &alert.projected, &alert.threshold], ["16", "160", "150"]);
    // For the other client, the alert is due after some time, and a check raises it.
    server.clock.set(time("2026-11-03T11:30:00Z"));
    assert_eq!(check(&server, "west").await.raised_count, 1);
    assert_eq!(kinds(&server, "west").await, ["2026-11 PROJECTION WARNING"]);
    // Time alone does not resolve it.
    server.clock.set(time("2026-11-20T12:00:00Z"));
    assert_eq!(check(&server, "west").await.resolved_count, 0);
}

#[tokio::test]
async fn a_day_of_23_or_25_hours_counts_as_one_day_in_alerts() {
    // In Berlin, 29 March 2026 starts at 23:00 UTC and has 23 hours; 25 October starts at 22:00 UTC and has 25 hours.
    let days = [
        (
            "2026-03-29",
            ["2026-03-28T22:59:59Z", "2026-03-28T23:00:00Z", "2026-03-29T21:59:59Z", "2026-03-29T22:00:00Z"],
        ),
        (
            "2026-10-25",
            ["2026-10-24T21:59:59Z", "2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z", "2026-10-25T23:00:00Z"],
        ),
    ];
    for (day, [before, first, last, after]) in days {
        let server = server_at(last).await;
        server.create_client_in_zone("acme", "Europe/Berlin").await;
        let mut events: Vec<_> = (1..=10)
            .map(|ago| event_at("acme", "metered", "1", &(time(first) - chrono::TimeDelta::days(ago)).to_rfc3339()))
            .collect();
        // 12 units at the first and the last moment of the day. Usage a second before or after is not part of it.
        events.extend([
            event_at("acme", "metered", "0.5", before),
            event_at("acme", "metered", "6", first),
            event_at("acme", "metered", "6", last),
            event_at("acme", "metered", "0.25", after),
        ]);
        server.batch(events, false).await;
        let found = check(&server, "acme").await;
        let cost = found.raised.iter().find(|alert| alert.r#type() == AlertType::Anomaly && alert.service.is_empty());
        let cost = cost.unwrap_or_else(|| panic!("{found:?}"));
        assert_eq!((cost.period.as_str(), cost.current.as_str()), (day, "12"));
        // Each of the ten days before had 10.5 units.
        assert_eq!(cost.previous, "1.05");
    }
}

#[tokio::test]
async fn recurring_cost_is_not_projected_with_the_days() {
    let server = server_at("2026-11-03T12:00:00Z").await;
    let service = Service { service: "number".into(), recurring: true, ..Default::default() };
    let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
    server.catalog().create_service(request).await.unwrap();
    let request = CreatePriceRequest { price: Some(unit_price("number", "", "1")), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
    server.track(event("acme", "number", "40")).await.unwrap();
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    // 40 + 11 × 30 ÷ 3 = 150.
    spend(&server, "acme", "9.9").await;
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    spend(&server, "acme", "1.1").await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 PROJECTION WARNING", "2026-11 THRESHOLD WARNING"]);
}

#[tokio::test]
async fn a_spike_compares_with_the_latest_cost_of_the_previous_month() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "14").await;
    // A transaction locks November. While an event waits for it, the transaction adds 10 to October.
    let mut tx = server.pool.begin().await.unwrap();
    let november = "SELECT 1 FROM usage_months WHERE client_id = 'acme' AND month = '2026-11-01' FOR UPDATE";
    sqlx::query(november).execute(&mut *tx).await.unwrap();
    let mut usage = server.usage();
    let waiting = tokio::spawn(async move {
        usage.track_usage(TrackUsageRequest { event: Some(event("acme", "metered", "1")) }).await.unwrap();
    });
    let waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until(async || server.sql(waits).await > 0).await;
    let october =
        "INSERT INTO usage_months SELECT client_id, '2026-10-01', request_count, units, input_tokens, output_tokens,
                       cached_input_tokens, 10, unpriced_event_count FROM usage_months WHERE client_id = 'acme'";
    sqlx::query(october).execute(&mut *tx).await.unwrap();
    sqlx::query("UPDATE usage_months SET alert_bound = 0 WHERE month = '2026-11-01'").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    waiting.await.unwrap();
    assert_eq!(kinds(&server, "acme").await, ["2026-11 SPIKE WARNING"]);
}

#[tokio::test]
async fn unpriced_usage_raises_alerts_when_it_is_priced() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    let service = Service { service: "later".into(), ..Default::default() };
    let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
    server.catalog().create_service(request).await.unwrap();
    server.track(event("acme", "later", "120")).await.unwrap();
    assert_eq!(kinds(&server, "acme").await, ["2026-11 UNPRICED WARNING"]);
    let request = CreatePriceRequest { price: Some(unit_price("later", "", "1")), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
    wait_until(async || kinds(&server, "acme").await == ["2026-11 THRESHOLD CRITICAL", "2026-11 UNPRICED WARNING"])
        .await;
    // The transaction that charges the event raises one alert and resolves the other one.
    let alerts = alerts(&server, "acme").await;
    let state: Vec<_> = alerts.iter().map(|alert| (alert.r#type(), alert.resolve_time.is_some())).collect();
    assert_eq!(state, [(AlertType::Unpriced, true), (AlertType::Threshold, false)]);
    assert_sets_match(&server).await;
}

#[tokio::test]
async fn a_rebuild_raises_and_resolves_alerts() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "60").await;
    spend(&server, "globex", "120").await;
    // Wrong rows, as a bug or a manual change may leave them.
    server.sql("UPDATE usage_months SET cost = 10, raised_alerts = 0, open_alerts = 0 WHERE client_id = 'acme'").await;
    server.sql("DELETE FROM alerts WHERE client_id = 'acme'").await;
    server.sql("UPDATE alerts SET current_value = 400 WHERE client_id = 'globex'").await;
    server.sql("DELETE FROM usage_events WHERE client_id = 'globex'").await;
    let request =
        RebuildRollupsRequest { start_date: "2026-11-01".into(), end_date: "2026-11-30".into(), ..Default::default() };
    server.usage().rebuild_rollups(request).await.unwrap();
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD WARNING"]);
    let resolved = alerts(&server, "globex").await;
    assert!(resolved[0].resolve_time.is_some());
    assert_sets_match(&server).await;
}

#[tokio::test]
async fn a_backfill_raises_alerts_without_notifications() {
    let server = server_at("2026-11-20T12:00:00Z").await;
    server
        .sql(
            "INSERT INTO notification_channels (client_id, kind, target, min_severity, secrets)
             VALUES ('', 1, 'ops@example.com', 1, '{}')",
        )
        .await;
    let notifications = async || server.sql("SELECT 1 FROM notifications").await;
    server.batch(vec![event_at("acme", "metered", "60", "2024-03-05T12:00:00Z")], true).await;
    server.batch(vec![event("acme", "metered", "60")], true).await;
    assert_eq!(kinds(&server, "acme").await, ["2024-03 THRESHOLD WARNING", "2026-11 THRESHOLD WARNING"]);
    // No notification is sent when its price is set later.
    let service = Service { service: "later".into(), ..Default::default() };
    let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
    server.catalog().create_service(request).await.unwrap();
    server.batch(vec![event("globex", "later", "60")], true).await;
    let request = CreatePriceRequest { price: Some(unit_price("later", "", "1")), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
    wait_until(async || kinds(&server, "globex").await == ["2026-11 THRESHOLD WARNING", "2026-11 UNPRICED WARNING"])
        .await;
    assert_eq!(notifications().await, 0);
    // Live usage of the same month sends notifications.
    spend(&server, "acme", "60").await;
    assert_eq!(notifications().await, 2);
    assert_eq!(
        kinds(&server, "acme").await[1..],
        ["2026-11 PROJECTION WARNING", "2026-11 THRESHOLD CRITICAL", "2026-11 THRESHOLD WARNING"]
    );
}

#[tokio::test]
async fn alerts_are_listed_filtered_paged_and_acknowledged_once() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    for (client, amount) in [("a", "60"), ("b", "60"), ("c", "160"), ("b", "60")] {
        spend(&server, client, amount).await;
    }
    let list = async |request: ListAlertsRequest| server.alerts().list_alerts(request).await.unwrap().into_inner();
    let names = |alerts: &[Alert]| alerts.iter().map(|alert| alert.client_id.clone()).collect::<Vec<_>>();
    let all = list(ListAlertsRequest::default()).await.alerts;
    assert_eq!(names(&all), ["b", "c", "b", "a"]);
    let critical = ListAlertsRequest { min_severity: AlertSeverity::Critical.into(), ..Default::default() };
    assert_eq!(names(&list(critical.clone()).await.alerts), ["b", "c"]);
    let of_b = ListAlertsRequest { client_ids: vec!["b".into()], ..critical };
    assert_eq!(names(&list(of_b).await.alerts), ["b"]);
    let spikes = ListAlertsRequest { types: vec![AlertType::Spike.into()], ..Default::default() };
    assert!(list(spikes).await.alerts.is_empty());
    let (mut paged, mut page_token) = (vec![], String::new());
    loop {
        let page = list(ListAlertsRequest { page_size: 1, page_token, ..Default::default() }).await;
        assert_eq!(page.alerts.len(), 1);
        paged.extend(page.alerts);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);

    let acknowledge = async |who: &str| {
        let request = AcknowledgeAlertRequest { alert_id: all[3].alert_id.clone(), acknowledged_by: who.into() };
        server.alerts().acknowledge_alert(request).await.unwrap().into_inner().alert.unwrap()
    };
    let first = acknowledge("ann").await;
    assert_eq!((first.acknowledged_by.as_str(), first.acknowledge_time.is_some()), ("ann", true));
    // The first acknowledgement stays, and there is no second change.
    assert_eq!(acknowledge("bob").await, first);
    let request = GetAlertRequest { alert_id: all[3].alert_id.clone() };
    assert_eq!(server.alerts().get_alert(request).await.unwrap().into_inner().alert.unwrap(), first);
    assert_eq!(server.sql("SELECT 1 FROM alert_feed WHERE change = 2").await, 1);
    let open = ListAlertsRequest { unacknowledged_only: true, ..Default::default() };
    assert_eq!(names(&list(open).await.alerts), ["b", "c", "b"]);
}
