//! Rates that depend on how much a client has used in a month.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::time::Duration;
use tonic::Code;

const NOW: &str = "2026-11-21T12:00:00Z";

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

fn tier(above: &str, rate: &str) -> Tier {
    Tier { above: above.into(), rate: rate.into(), ..Default::default() }
}

fn tiered(mode: TierMode, tiers: &[(&str, &str)]) -> TieredRate {
    TieredRate {
        component: "unit".into(),
        mode: mode.into(),
        tiers: tiers.iter().map(|(above, rate)| tier(above, rate)).collect(),
        package_size: String::new(),
    }
}

/// The first 100 units are free, the next 900 cost 0.10, all others 0.05.
fn graduated() -> TieredRate {
    tiered(TierMode::Graduated, &[("0", "0"), ("100", "0.10"), ("1000", "0.05")])
}

fn price_of(service: &str, rate: TieredRate) -> Price {
    let rates = Rates { tiers: vec![rate], ..Default::default() };
    Price { service: service.into(), rates: Some(rates), ..Default::default() }
}

/// Returns a price that replaces a built-in one.
fn since_january(price: Price) -> Price {
    Price { effective_time: Some(timestamp("2026-01-01T00:00:00Z")), ..price }
}

async fn create(server: &TestServer, price: Price) -> String {
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    server.catalog().create_price(request).await.unwrap().into_inner().price.unwrap().price_id
}

async fn charge(server: &TestServer, event: UsageEvent) -> String {
    amount(&server.track(event).await.unwrap().charge).to_owned()
}

async fn cost(server: &TestServer, client: &str) -> String {
    server.month(client).await.totals.unwrap().cost.unwrap().amount
}

fn social(units: &str) -> UsageEvent {
    event("acme", "social", units)
}

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

fn by_key(key: &str) -> EventReference {
    EventReference { idempotency_key: key.into(), ..Default::default() }
}

async fn void(server: &TestServer, key: &str) {
    let request = VoidUsageRequest {
        client_id: "acme".into(),
        events: vec![by_key(key)],
        reason: "test".into(),
        ..Default::default()
    };
    let result = server.usage().void_usage(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.error, None);
}

async fn correct(server: &TestServer, key: &str, event: UsageEvent) -> AdjustmentResult {
    let correction = UsageCorrection {
        event: Some(by_key(key)),
        corrected: Some(UsageEvent { client_id: String::new(), idempotency_key: String::new(), ..event }),
    };
    let request = CorrectUsageRequest {
        client_id: "acme".into(),
        corrections: vec![correction],
        reason: "test".into(),
        ..Default::default()
    };
    let result = server.usage().correct_usage(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.error, None);
    result
}

async fn explain(server: &TestServer, event_id: &str) -> ExplainChargeResponse {
    let request = ExplainChargeRequest { client_id: "acme".into(), event_id: event_id.into() };
    server.usage().explain_charge(request).await.unwrap().into_inner()
}

async fn reprice(server: &TestServer, apply: bool) -> GetRepriceRunResponse {
    let request = RepriceUsageRequest {
        start_month: "2026-10".into(),
        end_month: "2026-11".into(),
        validate_only: !apply,
        reason: "test".into(),
        ..Default::default()
    };
    let run = server.catalog().reprice_usage(request).await.unwrap().into_inner().run.unwrap();
    let request = GetRepriceRunRequest { run_id: run.run_id, page_size: 1_000, ..Default::default() };
    loop {
        let report = server.catalog().get_reprice_run(request.clone()).await.unwrap().into_inner();
        if report.run.as_ref().unwrap().finish_time.is_some() {
            return report;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn each_event_is_charged_what_it_adds_to_the_cost_of_its_month() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    assert_eq!(charge(&server, social("80")).await, "0");
    let second = server.track(social("40")).await.unwrap();
    assert_eq!(amount(&second.charge), "2");
    let third = server.track(social("1000")).await.unwrap();
    assert_eq!(amount(&third.charge), "94");
    assert_eq!(cost(&server, "acme").await, "96");
    // Other clients and other months begin with the first tier.
    assert_eq!(charge(&server, event("other", "social", "101")).await, "0.1");
    assert_eq!(charge(&server, event_at("acme", "social", "150", "2026-10-31T23:59:59Z")).await, "5");
    // A repeat counts once.
    let keyed_event = keyed("k", social("10"));
    assert_eq!(charge(&server, keyed_event.clone()).await, "0.5");
    let repeat = server.track(keyed_event).await.unwrap();
    assert_eq!((repeat.outcome(), amount(&repeat.charge)), (EventOutcome::Duplicate, "0.5"));
    assert_eq!(charge(&server, social("10")).await, "0.5");

    let explained = explain(&server, &third.event_id).await;
    let lines: Vec<_> = explained
        .components
        .iter()
        .map(|line| (&*line.component, &*line.tier_above, &*line.quantity, &*line.rate, &*line.amount))
        .collect();
    assert_eq!(lines, [("unit", "100", "880", "0.1", "88"), ("unit", "1000", "120", "0.05", "6")]);
    let estimate = async |client: &str, units: &str| {
        let request = EstimateCostRequest {
            client_id: client.into(),
            service: "social".into(),
            units: units.into(),
            ..Default::default()
        };
        amount(&server.catalog().estimate_cost(request).await.unwrap().into_inner().charge).to_owned()
    };
    assert_eq!(estimate("acme", "10").await, "0.5");
    assert_eq!((estimate("", "110").await, estimate("new", "110").await), ("1".into(), "1".into()));
    server.assert_exact(7).await;
    server.stop().await;
}

#[tokio::test]
async fn volume_rates_and_packages_charge_steps_and_fees_once() {
    let server = november().await;
    let volume = tiered(TierMode::Volume, &[("0", "0.10"), ("100", "0.05")]);
    create(&server, price_of("social", volume)).await;
    let charges = [charge(&server, social("100")).await, charge(&server, social("20")).await];
    // 120 × 0.05 is 4 less than 100 × 0.10.
    assert_eq!(charges, ["10", "-4"]);
    let package = TieredRate { package_size: "1000".into(), ..tiered(TierMode::Package, &[("0", "5")]) };
    create(&server, since_january(price_of("api_call", package))).await;
    let call = |units: &str| event("acme", "api_call", units);
    let charges =
        [charge(&server, call("1")).await, charge(&server, call("999")).await, charge(&server, call("2001")).await];
    assert_eq!(charges, ["5", "0", "15"]);
    let fees = TieredRate {
        tiers: vec![Tier { flat_fee: "2".into(), ..tier("0", "0") }, Tier { flat_fee: "3".into(), ..tier("10", "1") }],
        ..tiered(TierMode::Graduated, &[])
    };
    create(&server, since_january(price_of("schedule_executed", fees))).await;
    let run = |units: &str| event("acme", "schedule_executed", units);
    let charges = [charge(&server, run("4")).await, charge(&server, run("6")).await, charge(&server, run("1")).await];
    assert_eq!(charges, ["2", "0", "4"]);
    server.assert_exact(8).await;
    server.stop().await;
}

/// The batch has more events than COPY needs, repeated keys, and events of other prices.
#[tokio::test]
async fn the_events_of_a_batch_are_charged_one_after_another() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    let mut events: Vec<UsageEvent> = (0..500).map(|number| keyed(&format!("k{number:03}"), social("3"))).collect();
    events.extend((0..100).map(|number| keyed(&format!("k{number:03}"), social("3"))));
    events.extend((0..50).map(|_| event("acme", "sms", "1")));
    events.push(event("other", "social", "101"));
    let request = BatchTrackUsageRequest { events: events.clone(), validate_only: true, ..Default::default() };
    let validated = server.usage().batch_track_usage(request).await.unwrap().into_inner().results;
    let results = server.batch(events, false).await;
    let charges = |results: &[UsageResult]| -> Vec<String> {
        let mut charges: Vec<String> = results.iter().map(|result| amount(&result.charge).to_owned()).collect();
        charges[..600].sort();
        charges
    };
    assert_eq!(charges(&validated), charges(&results));
    let duplicates = results.iter().filter(|result| result.outcome() == EventOutcome::Duplicate).count();
    assert_eq!(duplicates, 100);
    // 1,500 units: 100 free, 900 at 0.10, 500 at 0.05; and 50 messages.
    assert_eq!(cost(&server, "acme").await, "115.375");
    assert_eq!(cost(&server, "other").await, "0.1");
    server.assert_exact(551).await;
    server.stop().await;
}

#[tokio::test]
async fn a_void_or_a_correction_changes_the_cost_of_the_month_by_its_tiers() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    let first = server.track(keyed("first", social("100"))).await.unwrap();
    server.track(keyed("second", social("50"))).await.unwrap();
    assert_eq!(cost(&server, "acme").await, "5");
    // The second event keeps its charge of 5, although its 50 units are now free.
    void(&server, "first").await;
    assert_eq!(cost(&server, "acme").await, "0");
    let explained = explain(&server, &first.event_id).await;
    assert_eq!(amount(&explained.event.unwrap().tier_residue), "-5");
    assert_eq!(amount(&explained.adjustments[0].tier_residue), "-5");
    let rows = server.query(QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        ..Default::default()
    });
    assert_eq!(amount(&rows.await[0].totals.as_ref().unwrap().cost), "0");
    server.assert_exact(1).await;

    server.track(keyed("third", social("950"))).await.unwrap();
    assert_eq!(cost(&server, "acme").await, "90");
    // 1,000 units become 550.
    correct(&server, "third", social("500")).await;
    assert_eq!(cost(&server, "acme").await, "45");
    // The event leaves the tiers for another price, and takes what remains with it.
    let result = correct(&server, "second", event("acme", "sms", "2")).await;
    assert_eq!(amount(&result.new_charge), "0.015");
    assert_eq!(cost(&server, "acme").await, "40.015");
    server.assert_exact(2).await;
    correct(&server, "second", event("acme", "api_call", "2")).await;
    server.assert_exact(2).await;
    void(&server, "third").await;
    void(&server, "second").await;
    assert_eq!(cost(&server, "acme").await, "0");
    server.assert_exact(0).await;
    let residues = "SELECT COALESCE(sum(tier_residue), 0) = 0 FROM usage_events";
    assert!(sqlx::query_scalar::<_, bool>(residues).fetch_one(&server.pool).await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn a_day_whose_only_event_is_voided_keeps_what_remains_in_its_tiers() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    server.track(keyed("first", event_at("acme", "social", "100", "2026-11-10T12:00:00Z"))).await.unwrap();
    server.track(social("50")).await.unwrap();
    void(&server, "first").await;
    let request = |group_by: UsageDimension, count_subjects| QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        group_by: vec![group_by.into()],
        count_subjects,
        ..Default::default()
    };
    for count_subjects in [false, true] {
        let rows = server.query(request(UsageDimension::Day, count_subjects)).await;
        let costs: Vec<_> = rows.iter().map(|row| (row.day.as_deref().unwrap(), cost_of(row))).collect();
        assert_eq!(costs, [("2026-11-10", "-5"), ("2026-11-21", "5")]);
    }
    let summary = GetUsageSummaryRequest {
        client_id: "acme".into(),
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        ..Default::default()
    };
    let summary = server.usage().get_usage_summary(summary).await.unwrap().into_inner();
    assert_eq!(amount(&summary.totals.unwrap().cost), "0");
    let export = ExportUsageRequest { client_id: "acme".into(), ..Default::default() };
    let mut stream = server.usage().export_usage(export).await.unwrap().into_inner();
    let mut file = vec![];
    while let Some(piece) = stream.message().await.unwrap() {
        file.extend(piece.data);
    }
    let file = String::from_utf8(file).unwrap();
    let mut rows = csv::Reader::from_reader(file.as_bytes());
    let residues: Vec<String> = rows
        .deserialize::<std::collections::HashMap<String, String>>()
        .map(|row| row.unwrap()["tier_residue"].clone())
        .collect();
    assert_eq!(residues, ["-5", ""]);
    server.assert_exact(1).await;
    server.stop().await;
}

/// The charges of single events are rounded, so the sums of their quantities cost a little less.
#[tokio::test]
async fn the_cost_of_a_month_is_explained_by_price() {
    let server = november().await;
    let rates = Rates {
        input_token: Some("0.0000000000004".into()),
        output_token: Some("0.000002".into()),
        measures: [("pages".into(), "0.01".into())].into(),
        ..Default::default()
    };
    let price = Price { service: "openai".into(), model: "m".into(), rates: Some(rates), ..Default::default() };
    let flat = create(&server, price).await;
    let tiers = create(&server, price_of("social", graduated())).await;
    let call = |units: i64| UsageEvent {
        model: "m".into(),
        input_tokens: 1,
        output_tokens: units,
        measures: [("pages".into(), units.to_string())].into(),
        ..event("acme", "openai", "1")
    };
    server.batch(vec![call(3), call(4), keyed("first", social("100")), social("50")], false).await;
    server.track(UsageEvent { model: "unknown".into(), ..event("acme", "openai", "1") }).await.unwrap();
    void(&server, "first").await;
    let request = ExplainUsageRequest {
        client_id: "acme".into(),
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        ..Default::default()
    };
    let explained = server.usage().explain_usage(request.clone()).await.unwrap().into_inner();
    let [first, third, second] = &explained.prices[..] else { panic!("{:?}", explained.prices) };
    let lines: Vec<_> =
        first.components.iter().map(|line| (&*line.component, &*line.quantity, &*line.amount)).collect();
    let expected = [("input_token", "2", "0.0000000000008"), ("output_token", "7", "0.000014"), ("pages", "7", "0.07")];
    assert_eq!(lines, expected);
    assert_eq!((&first.price_id, first.event_count), (&flat, 2));
    // Each event costs 0.4 of the last decimal for its input token, which is rounded away; together they cost 0.8 of it.
    assert_eq!((amount(&first.cost), amount(&first.rounding)), ("0.070014", "-0.000000000001"));
    let of_tiers = [&second.cost, &second.tier_charge, &second.tier_residue];
    assert_eq!((of_tiers.map(amount), second.event_count), (["0", "5", "-5"], 1));
    assert_eq!((&second.price_id, second.components.len()), (&tiers, 0));
    assert_eq!((&*third.price_id, third.event_count, &*third.model), ("", 1, "unknown"));
    let only = ExplainUsageRequest { services: vec!["social".into()], ..request.clone() };
    assert_eq!(server.usage().explain_usage(only).await.unwrap().into_inner().prices.len(), 1);
    let list = ListUsageEventsRequest { client_id: "acme".into(), price_id: flat, ..Default::default() };
    let listed = server.usage().list_usage_events(list).await.unwrap().into_inner().events;
    assert_eq!(listed.len(), 2);
    let long = ExplainUsageRequest { end_date: "2026-12-06".into(), ..request };
    assert_invalid(server.usage().explain_usage(long).await, "RANGE_TOO_LONG", &["end_date"]);
    let shown = crate::commands::succeed(&server, &["explain", "acme", "--month", "2026-11", "--events"]).await;
    assert!(shown.contains("openai m") && shown.contains("pages") && shown.contains("0.07"), "{shown}");
    server.stop().await;
}

fn cost_of(row: &UsageRow) -> &str {
    amount(&row.totals.as_ref().unwrap().cost)
}

#[tokio::test]
async fn events_enter_and_leave_tiers_by_later_prices_and_runs_and_a_dry_run_says_the_same() {
    let server = november().await;
    for units in ["80", "40", "1000"] {
        server.track(social(units)).await.unwrap();
    }
    assert_eq!(server.month("acme").await.totals.unwrap().unpriced_event_count, 3);
    let first = create(&server, price_of("social", graduated())).await;
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 0).await;
    assert_eq!(cost(&server, "acme").await, "96");
    server.assert_exact(3).await;

    // Other tiers, a flat rate, and the first tiers again.
    let volume = tiered(TierMode::Volume, &[("0", "0.2"), ("1000", "0.1")]);
    let retire = RetirePriceRequest { price_id: first, ..Default::default() };
    server.catalog().retire_price(retire).await.unwrap();
    for (price, total) in [
        (price_of("social", volume), "112"),
        (unit_price("social", "", "0.5"), "560"),
        (price_of("social", graduated()), "96"),
    ] {
        let before = cost(&server, "acme").await;
        let price_id = create(&server, price).await;
        let dry = reprice(&server, false).await;
        assert_eq!(cost(&server, "acme").await, before);
        let applied = reprice(&server, true).await;
        assert_eq!(cost(&server, "acme").await, total);
        assert_eq!(dry.total, applied.total);
        let total_of = applied.total.unwrap();
        assert_eq!((amount(&total_of.old_cost), amount(&total_of.new_cost)), (&*before, total));
        assert_eq!(reprice(&server, true).await.run.unwrap().changed_count, 0);
        server.assert_exact(3).await;
        let retire = RetirePriceRequest { price_id, ..Default::default() };
        server.catalog().retire_price(retire).await.unwrap();
    }
    let leftover = "SELECT count(*) FROM reprice_tiers";
    assert_eq!(sqlx::query_scalar::<_, i64>(leftover).fetch_one(&server.pool).await.unwrap(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_of_two_replicas_charge_a_month_exactly() {
    let server = november().await;
    let other = TestServer::replica(&server.database_url, &[], Clock::fixed(time(NOW))).await;
    create(&server, price_of("social", graduated())).await;
    let writers = (0..8).map(|writer| {
        let mut usage = if writer % 2 == 0 { server.usage() } else { other.usage() };
        tokio::spawn(async move {
            for round in 0..40 {
                let events = (0..1 + (writer + round) % 5).map(|_| social("1.5")).collect();
                let request = BatchTrackUsageRequest { events, ..Default::default() };
                usage.batch_track_usage(request).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let events: i64 = (0..8).flat_map(|writer| (0..40).map(move |round| 1 + (writer + round) % 5)).sum();
    // Three halves of a unit each: 100 free, 900 at 0.10, the rest at 0.05.
    let micros = 90_000_000 + (events * 3 - 2_000) * 25_000;
    assert_eq!(micros % 1_000, 0);
    let expected = format!("{}.{:03}", micros / 1_000_000, micros / 1_000 % 1_000);
    let expected = expected.trim_end_matches('0').trim_end_matches('.');
    println!("{events} events cost {expected}");
    assert_eq!(cost(&server, "acme").await, expected);
    server.assert_exact(events).await;
    other.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn an_event_that_moves_to_another_month_stays_in_its_tiers() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    server.track(keyed("late", event_at("acme", "social", "150", "2026-10-31T23:30:00Z"))).await.unwrap();
    server.track(social("120")).await.unwrap();
    let client = Client { client_id: "acme".into(), time_zone: "Asia/Tokyo".into(), ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
    server.clients().update_client(UpdateClientRequest { client: Some(client), update_mask }).await.unwrap();
    let request = RebuildRollupsRequest {
        start_date: "2026-10-01".into(),
        end_date: "2026-11-30".into(),
        rezone: true,
        ..Default::default()
    };
    assert_eq!(server.usage().rebuild_rollups(request).await.unwrap().into_inner().rezoned_event_count, 1);
    assert_eq!(cost(&server, "acme").await, "7");
    server.assert_exact(2).await;
    correct(&server, "late", social("160")).await;
    assert_eq!(cost(&server, "acme").await, "8");
    server.assert_exact(2).await;
    void(&server, "late").await;
    assert_eq!(cost(&server, "acme").await, "2");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn damage_of_tiers_is_found() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    for key in ["a", "b", "c"] {
        server.track(keyed(key, social("60"))).await.unwrap();
    }
    void(&server, "a").await;
    server.assert_exact(2).await;
    for (damage, repair, differences) in [
        ("UPDATE usage_tiers SET quantity = quantity + 1", "UPDATE usage_tiers SET quantity = quantity - 1", 1),
        ("UPDATE usage_tiers SET component = 'pages'", "UPDATE usage_tiers SET component = 'unit'", 2),
        (
            "UPDATE usage_events SET tier_charge = tier_charge + 1 WHERE idempotency_key = 'c'",
            "UPDATE usage_events SET tier_charge = tier_charge - 1 WHERE idempotency_key = 'c'",
            1,
        ),
        (
            "UPDATE usage_events SET tier_uses = '{\"unit\": [\"0\", \"61\"]}' WHERE idempotency_key = 'c'",
            "UPDATE usage_events SET tier_uses = '{\"unit\": [\"120\", \"60\"]}' WHERE idempotency_key = 'c'",
            // The quantity, and the cost of the quantities.
            2,
        ),
        (
            "UPDATE usage_events SET tier_residue = tier_residue - 1 WHERE idempotency_key = 'a'",
            "UPDATE usage_events SET tier_residue = tier_residue + 1 WHERE idempotency_key = 'a'",
            // The cost of the tiers, and the sums of the day, the service and the month.
            4,
        ),
    ] {
        assert!(server.sql(damage).await > 0, "{damage}");
        assert_eq!(server.verify().await.differences, differences, "{damage}");
        server.sql(repair).await;
        server.assert_exact(2).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_quantity_that_tiers_cannot_charge_leaves_the_event_unpriced() {
    let server = november().await;
    create(&server, price_of("social", graduated())).await;
    let first = server.track(social("999999999999999")).await.unwrap();
    let last = server.track(keyed("last", social("0.5"))).await.unwrap();
    let result = server.track(keyed("unpriced", social("1"))).await.unwrap();
    assert_eq!(result.unpriced_reason(), UnpricedReason::TierQuantityTooLarge);
    server.assert_exact(3).await;
    // They can be read, and a run does not change them.
    for event_id in [&first.event_id, &last.event_id, &result.event_id] {
        assert!(explain(&server, event_id).await.event.is_some());
    }
    assert_eq!(reprice(&server, true).await.run.unwrap().changed_count, 0);
    void(&server, "last").await;
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn wrong_tiers_are_rejected_with_their_fields() {
    let server = november().await;
    let wrong = async |rate: TieredRate, field: &str, part: &str| {
        let request = CreatePriceRequest { price: Some(price_of("social", rate)), ..Default::default() };
        let path = format!("price.rates.tiers[0].{field}");
        let status = assert_invalid(server.catalog().create_price(request).await, "INVALID_FIELD", &[&path]);
        assert!(status.message().contains(part), "{status}");
    };
    let graduated = |tiers: &[(&str, &str)]| tiered(TierMode::Graduated, tiers);
    wrong(graduated(&[("10", "1")]), "tiers[0].above", "must be 0 in the first tier, got 10").await;
    wrong(graduated(&[("0", "1"), ("0", "2")]), "tiers[1].above", "more than in the tier before").await;
    wrong(graduated(&[("0", "1"), ("9", "1"), ("8", "2")]), "tiers[2].above", "more than in the tier before, 9, got 8")
        .await;
    wrong(graduated(&[("0", "-1")]), "tiers[0].rate", "").await;
    wrong(graduated(&[]), "tiers", "must be 1 to 32, has 0").await;
    wrong(graduated(&[("", "")]), "tiers[0].rate", "").await;
    let with_size = TieredRate { package_size: "5".into(), ..graduated(&[("0", "1")]) };
    wrong(with_size, "package_size", "only for the mode package").await;
    let package = |size: &str, tiers: &[(&str, &str)]| TieredRate {
        package_size: size.into(),
        ..tiered(TierMode::Package, tiers)
    };
    wrong(package("0.5", &[("0", "1")]), "package_size", "at least 1").await;
    wrong(package("10", &[("0", "1"), ("5", "2")]), "tiers", "exactly 1, has 2").await;
    wrong(TieredRate { mode: 9, ..graduated(&[("0", "1")]) }, "mode", "9 is no mode").await;
    wrong(TieredRate { component: "amount".into(), ..graduated(&[("0", "1")]) }, "component", "possible are unit")
        .await;
    let both = Rates { unit: Some("1".into()), tiers: vec![graduated(&[("0", "1")])], ..Default::default() };
    let price = Price { service: "social".into(), rates: Some(both), ..Default::default() };
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    let path = "price.rates.tiers[0].component";
    assert_invalid(server.catalog().create_price(request).await, "INVALID_FIELD", &[path]);
    // 2.50 for a million tokens is not 2.50 for each.
    let package = TieredRate { component: "input_token".into(), ..package("1000000", &[("0", "2.5")]) };
    create(&server, price_of("openai", package)).await;
    let tokens = TieredRate { component: "output_token".into(), ..graduated(&[("0", "2.5")]) };
    let request = CreatePriceRequest { price: Some(price_of("openai", tokens)), ..Default::default() };
    assert_error(server.catalog().create_price(request).await, Code::InvalidArgument, "RATE_NOT_CONFIRMED");
    server.stop().await;
}
