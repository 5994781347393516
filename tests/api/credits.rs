//! Credits: what grants pay, what plans include, and what returns.

use crate::harness::*;
use meterd::proto::billing_service_client::BillingServiceClient;
use meterd::proto::*;
use meterd_domain::decimal::Total;
use meterd_engine::clock::Clock;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use tonic::transport::Channel;
use tonic::{Code, Status};

const NOW: &str = "2026-11-21T12:00:00Z";

fn billing(server: &TestServer) -> BillingServiceClient<Channel> {
    BillingServiceClient::new(server.channel())
}

/// Starts a server with the service "social" at 1 a unit.
async fn november() -> TestServer {
    let server = TestServer::start_with(&[], Clock::fixed(time(NOW))).await;
    let price = CreatePriceRequest { price: Some(unit_price("social", "", "1")), ..Default::default() };
    server.catalog().create_price(price).await.unwrap();
    server
}

fn new_grant(client_id: &str, amount: &str) -> CreditGrant {
    CreditGrant {
        client_id: client_id.into(),
        amount: amount.into(),
        source: CreditSource::Purchase.into(),
        ..Default::default()
    }
}

async fn grant(server: &TestServer, grant: CreditGrant) -> Result<CreditGrant, Status> {
    let request = CreateCreditGrantRequest { grant: Some(grant), ..Default::default() };
    Ok(billing(server).create_credit_grant(request).await?.into_inner().grant.unwrap())
}

async fn set_plan(server: &TestServer, client_id: &str, plan_id: &str, from: &str) {
    let (client_id, plan_id) = (client_id.into(), plan_id.into());
    let request = SetClientPlanRequest { client_id, plan_id, effective_time: Some(timestamp(from)) };
    billing(server).set_client_plan(request).await.unwrap();
}

/// Returns the amount, what was used, and the first and last day of each grant.
async fn grants(server: &TestServer, client_id: &str) -> Vec<(String, String, String, String)> {
    let request = ListCreditGrantsRequest { client_id: client_id.into(), page_size: 1_000, ..Default::default() };
    let found = billing(server).list_credit_grants(request).await.unwrap().into_inner().grants;
    found.into_iter().map(|grant| (grant.amount, grant.used, grant.first_date, grant.last_date)).collect()
}

/// Returns what each grant has paid, the oldest first.
async fn used(server: &TestServer, client_id: &str) -> Vec<String> {
    grants(server, client_id).await.into_iter().map(|(_, used, ..)| used).collect()
}

/// Returns the cost of the current month, what credits have paid of it, the rest, and what is left of the credits.
async fn period(server: &TestServer, client_id: &str) -> [String; 4] {
    let request = GetCurrentPeriodRequest { client_id: client_id.into() };
    let period = billing(server).get_current_period(request).await.unwrap().into_inner();
    let amount = |money: Option<Money>| money.unwrap().amount;
    [amount(period.cost), amount(period.credits_used), amount(period.payable), amount(period.credits_available)]
}

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Returns the id of a new event of this many units of "social", which cost 1 each.
async fn record(server: &TestServer, client_id: &str, units: &str, at: &str) -> String {
    // Events of that time are too old for a normal call.
    if at < "2026-10-18" {
        return server.batch(vec![event_at(client_id, "social", units, at)], true).await.remove(0).event_id;
    }
    server.track(event_at(client_id, "social", units, at)).await.unwrap().event_id
}

async fn void_event(server: &TestServer, client_id: &str, event_id: &str) {
    let request = VoidUsageRequest {
        client_id: client_id.into(),
        events: vec![EventReference { event_id: event_id.into(), ..Default::default() }],
        reason: "test".into(),
        ..Default::default()
    };
    let result = server.usage().void_usage(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.error, None);
}

async fn correct_event(server: &TestServer, client_id: &str, event_id: &str, units: &str) {
    let corrected = UsageEvent { client_id: String::new(), ..event(client_id, "social", units) };
    let request = CorrectUsageRequest {
        client_id: client_id.into(),
        corrections: vec![UsageCorrection {
            event: Some(EventReference { event_id: event_id.into(), ..Default::default() }),
            corrected: Some(corrected),
        }],
        reason: "test".into(),
        ..Default::default()
    };
    let result = server.usage().correct_usage(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.error, None);
}

#[tokio::test]
async fn credits_pay_until_they_are_used_up_on_every_way_to_record() {
    let server = november().await;
    record(&server, "acme", "3", NOW).await;
    assert_eq!(period(&server, "acme").await, ["3", "0", "3", "0"], "usage before the grant is not paid");
    grant(&server, new_grant("acme", "100")).await.unwrap();
    record(&server, "acme", "5.5", NOW).await;
    assert_eq!(period(&server, "acme").await, ["8.5", "5.5", "3", "94.5"]);
    // A batch that is copied, with another client, and one that is not.
    let copied: Vec<UsageEvent> =
        (0..60).map(|number| event(if number % 2 == 0 { "acme" } else { "other" }, "social", "1")).collect();
    server.batch(copied, false).await;
    assert_eq!(period(&server, "acme").await, ["38.5", "35.5", "3", "64.5"]);
    server.batch(vec![event("acme", "social", "10"); 3], true).await;
    let stream =
        tokio_stream::iter((0..5).map(|number| StreamUsageRequest {
            event: Some(keyed(&format!("s{number}"), event("acme", "social", "2"))),
        }));
    let mut acks = server.usage().stream_usage(stream).await.unwrap().into_inner();
    while acks.message().await.unwrap().is_some() {}
    assert_eq!(period(&server, "acme").await, ["78.5", "75.5", "3", "24.5"]);
    // A repeat costs nothing.
    server.track(keyed("s1", event("acme", "social", "2"))).await.unwrap();
    record(&server, "acme", "30", NOW).await;
    assert_eq!(period(&server, "acme").await, ["108.5", "100", "8.5", "0"], "the rest is payable");
    assert_eq!(period(&server, "other").await, ["30", "0", "30", "0"]);
    assert_eq!(used(&server, "acme").await, ["100"]);
    server.assert_exact(71).await;
    server.stop().await;
}

#[tokio::test]
async fn grants_pay_in_order_for_usage_of_their_days_and_get_back_the_last_one_first() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let late = CreditGrant { priority: Some(500), note: "late".into(), ..new_grant("acme", "10") };
    grant(&server, late).await.unwrap();
    let expiring = CreditGrant { last_date: "2026-11-30".into(), ..new_grant("acme", "10") };
    grant(&server, CreditGrant { source: CreditSource::Promotion.into(), ..expiring }).await.unwrap();
    let december = CreditGrant { first_date: "2026-12-01".into(), priority: Some(0), ..new_grant("acme", "10") };
    grant(&server, december).await.unwrap();
    let past =
        CreditGrant { first_date: "2026-11-01".into(), last_date: "2026-11-20".into(), ..new_grant("acme", "1") };
    grant(&server, past).await.unwrap();
    let event_id = record(&server, "acme", "12", NOW).await;
    assert_eq!(used(&server, "acme").await, ["2", "10", "0", "0"]);
    record(&server, "acme", "2", "2026-11-20T23:59:59Z").await;
    assert_eq!(used(&server, "acme").await, ["2", "10", "0", "1"], "only the past grant is valid on that day");
    assert_eq!(period(&server, "acme").await, ["14", "13", "1", "8"]);
    correct_event(&server, "acme", &event_id, "9").await;
    assert_eq!(
        period(&server, "acme").await,
        ["11", "11", "0", "10"],
        "first the payable amount falls, then credits return"
    );
    assert_eq!(used(&server, "acme").await, ["0", "10", "0", "1"]);
    correct_event(&server, "acme", &event_id, "10").await;
    assert_eq!(used(&server, "acme").await, ["1", "10", "0", "1"], "a higher charge is paid, too");
    void_event(&server, "acme", &event_id).await;
    assert_eq!(period(&server, "acme").await, ["2", "2", "0", "19"]);
    assert_eq!(used(&server, "acme").await, ["0", "1", "0", "1"]);
    server.assert_exact(1).await;

    let balance = async |date: &str| {
        let request = GetCreditBalanceRequest { client_id: "acme".into(), date: date.into() };
        let found = billing(&server).get_credit_balance(request).await.unwrap().into_inner();
        let left: Vec<String> = found.grants.into_iter().map(|grant| grant.remaining).collect();
        (found.date, found.available.unwrap().amount, left)
    };
    let day = |date: &str, amount: &str, left: &[&str]| {
        (date.to_owned(), amount.to_owned(), left.iter().map(|left| (*left).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(balance("").await, day("2026-11-21", "19", &["9", "10"]));
    assert_eq!(balance("2026-11-10").await, day("2026-11-10", "0", &[]));
    assert_eq!(balance("2026-12-01").await, day("2026-12-01", "20", &["10", "10"]));
    server.stop().await;
}

#[tokio::test]
async fn a_plan_includes_credits_for_each_month_and_an_upgrade_raises_them() {
    let server = november().await;
    for (client, zone) in [("acme", "UTC"), ("east", "Pacific/Kiritimati"), ("west", "Pacific/Pago_Pago")] {
        server.create_client_in_zone(client, zone).await;
        set_plan(&server, client, "starter", "2026-01-01T00:00:00Z").await;
    }
    assert_eq!(grants(&server, "acme").await, [], "granted with the first usage");
    record(&server, "acme", "4", NOW).await;
    record(&server, "acme", "15", "2026-10-31T23:59:59Z").await;
    let grant = |amount: &str, used: &str, first: &str, last: &str| {
        (amount.to_owned(), used.to_owned(), first.to_owned(), last.to_owned())
    };
    let of_november = grant("10", "4", "2026-11-01", "2026-11-30");
    let of_october = grant("10", "10", "2026-10-01", "2026-10-31");
    assert_eq!(grants(&server, "acme").await, [of_november, of_october.clone()]);
    assert_eq!(period(&server, "acme").await, ["4", "4", "0", "6"]);
    // The same instant is another month in other zones.
    record(&server, "east", "1", "2026-10-31T10:00:00Z").await;
    record(&server, "west", "1", "2026-11-01T10:59:59Z").await;
    assert_eq!(grants(&server, "east").await, [grant("10", "1", "2026-11-01", "2026-11-30")]);
    assert_eq!(grants(&server, "west").await, [grant("10", "1", "2026-10-01", "2026-10-31")]);

    set_plan(&server, "acme", "professional", "2026-11-20T00:00:00Z").await;
    record(&server, "acme", "10", "2026-11-19T12:00:00Z").await;
    assert_eq!(period(&server, "acme").await, ["14", "10", "4", "0"], "the day is before the upgrade");
    record(&server, "acme", "30", NOW).await;
    assert_eq!(grants(&server, "acme").await, [grant("50", "40", "2026-11-01", "2026-11-30"), of_october]);
    assert_eq!(period(&server, "acme").await, ["44", "40", "4", "10"]);
    set_plan(&server, "acme", "starter", "2026-11-21T00:00:00Z").await;
    // The plan of a client that had none pays from its first day on, whatever arrives first.
    server.create_client_in_zone("late", "UTC").await;
    set_plan(&server, "late", "starter", "2026-11-16T12:00:00Z").await;
    record(&server, "late", "1", NOW).await;
    record(&server, "late", "2", "2026-11-15T23:59:59Z").await;
    record(&server, "late", "4", "2026-11-16T00:00:00Z").await;
    assert_eq!(period(&server, "late").await, ["7", "5", "2", "5"]);
    assert_eq!(grants(&server, "late").await, [grant("10", "5", "2026-11-16", "2026-11-30")]);
    record(&server, "acme", "10", NOW).await;
    assert_eq!(
        period(&server, "acme").await,
        ["54", "50", "4", "0"],
        "a change to a plan with less takes nothing away"
    );

    let plan =
        Plan { plan_id: "rolling".into(), included_credits: "7".into(), rollover_months: 2, ..Default::default() };
    let request = CreatePlanRequest { plan: Some(plan), ..Default::default() };
    billing(&server).create_plan(request).await.unwrap();
    server.create_client_in_zone("rolling", "UTC").await;
    set_plan(&server, "rolling", "rolling", "2026-09-01T00:00:00Z").await;
    record(&server, "rolling", "2", "2026-09-30T00:00:00Z").await;
    record(&server, "rolling", "8", NOW).await;
    let rolled = [grant("7", "7", "2026-09-01", "2026-11-30"), grant("7", "3", "2026-11-01", "2027-01-31")];
    assert_eq!(grants(&server, "rolling").await, rolled);
    server.assert_exact(12).await;
    server.stop().await;
}

#[tokio::test]
async fn later_prices_other_prices_and_moved_days_change_what_credits_pay() {
    let server = TestServer::start_with(&[], Clock::fixed(time(NOW))).await;
    server.create_client_in_zone("acme", "UTC").await;
    let of_november = CreditGrant { first_date: "2026-11-01".into(), ..new_grant("acme", "100") };
    grant(&server, of_november).await.unwrap();
    let price = async |rate: &str, from: Option<&str>| {
        let price = Price { effective_time: from.map(timestamp), ..unit_price("social", "", rate) };
        let request = CreatePriceRequest { price: Some(price), ..Default::default() };
        server.catalog().create_price(request).await.unwrap().into_inner().price.unwrap().price_id
    };
    record(&server, "acme", "4", NOW).await;
    record(&server, "acme", "1", "2026-11-01T03:59:59Z").await;
    assert_eq!(period(&server, "acme").await, ["0", "0", "0", "100"]);
    let wrong = price("20", None).await;
    wait_until(async || period(&server, "acme").await[0] == "100").await;
    assert_eq!(period(&server, "acme").await, ["100", "100", "0", "0"]);
    let retire = RetirePriceRequest { price_id: wrong, ..Default::default() };
    server.catalog().retire_price(retire).await.unwrap();
    price("2", None).await;
    let (start_month, end_month) = ("2026-11".into(), "2026-11".into());
    let reprice = RepriceUsageRequest { start_month, end_month, reason: "test".into(), ..Default::default() };
    server.catalog().reprice_usage(reprice).await.unwrap();
    wait_until(async || period(&server, "acme").await[0] == "10").await;
    assert_eq!(period(&server, "acme").await, ["10", "10", "0", "90"]);
    server.assert_exact(2).await;

    // In New York, the first event is one of October.
    let client = Client { client_id: "acme".into(), time_zone: "America/New_York".into(), ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
    server.clients().update_client(UpdateClientRequest { client: Some(client), update_mask }).await.unwrap();
    let rebuild = RebuildRollupsRequest {
        client_id: "acme".into(),
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        rezone: true,
    };
    server.usage().rebuild_rollups(rebuild).await.unwrap();
    assert_eq!(period(&server, "acme").await, ["8", "8", "0", "92"]);
    assert_eq!(used(&server, "acme").await, ["8"], "the grant is not valid in October");
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_rebuild_of_damaged_sums_keeps_what_credits_owe_and_returns_only_what_was_paid_above_the_cost() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    grant(&server, new_grant("acme", "100")).await.unwrap();
    record(&server, "acme", "10", NOW).await;
    server.sql("SELECT apply_pending_usage(ARRAY['acme'])").await;
    let rebuild = async || {
        let request = RebuildRollupsRequest {
            client_id: "acme".into(),
            start_date: "2026-11-01".into(),
            end_date: "2026-11-30".into(),
            rezone: false,
        };
        server.usage().rebuild_rollups(request).await.unwrap();
        server.assert_exact(1).await;
        period(&server, "acme").await
    };
    for damage in ["3", "-3"] {
        assert_eq!(server.sql(&format!("UPDATE usage_days SET cost = cost + {damage}")).await, 1);
        assert_eq!(rebuild().await, ["10", "10", "0", "90"], "a day was wrong by {damage}");
    }
    server.sql("UPDATE usage_months SET cost = cost + 5").await;
    server.sql("UPDATE credit_grants SET used = 15").await;
    server.sql("UPDATE credit_uses SET amount = 15").await;
    assert_eq!(rebuild().await, ["10", "10", "0", "90"], "the month was too high, and paid");
    server.sql("UPDATE usage_months SET cost = cost - 5").await;
    assert_eq!(rebuild().await, ["10", "10", "0", "90"], "the month was too low");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_on_two_replicas_never_use_more_than_a_grant_has() {
    let server = november().await;
    let other = TestServer::replica(&server.database_url, &[], server.clock.clone()).await;
    server.create_client_in_zone("acme", "UTC").await;
    set_plan(&server, "acme", "starter", "2026-11-01T00:00:00Z").await;
    // Each event uses up a grant, so writers of two months that read the same grant would both use it.
    for _ in 0..65 {
        let since_september = CreditGrant { first_date: "2026-09-01".into(), ..new_grant("acme", "1") };
        grant(&server, since_september).await.unwrap();
    }
    let servers = Arc::new([server, other]);
    // A transaction locks its month and the next one, so those of September and November, each on one replica, do not wait for each other there.
    let callers = (0..16).map(|caller| {
        let servers = servers.clone();
        tokio::spawn(async move {
            let at = if caller % 2 == 0 { NOW } else { "2026-09-15T00:00:00Z" };
            for _ in 0..10 {
                let event_id = record(&servers[caller % 2], "acme", "1", at).await;
                if caller % 8 == 7 {
                    void_event(&servers[0], "acme", &event_id).await;
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let servers = Arc::into_inner(servers).unwrap();
    let found = grants(&servers[0], "acme").await;
    let total: i32 = found.iter().map(|(_, used, ..)| used.parse::<i32>().unwrap()).sum();
    // 80 in November, and 60 of September that were not voided.
    assert_eq!(found.len(), 66);
    let [cost, used, payable, left] = period(&servers[0], "acme").await;
    println!("140 events cost 140; credits of 75 paid {total}; November: {cost} = {used} + {payable}, {left} left");
    assert!(total <= 75, "{found:?}");
    assert_eq!(cost, "80");
    servers[0].assert_exact(140).await;
    for server in servers {
        server.stop().await;
    }
}

/// Random usage, corrections, prices, plans, grants and time zones on two replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cost_of_each_month_is_what_credits_paid_and_what_is_payable_after_any_history() {
    let server = november().await;
    let other = TestServer::replica(&server.database_url, &[], server.clock.clone()).await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let clients = ["a", "b"];
    for client in clients {
        server.create_client_in_zone(client, "UTC").await;
    }
    let mut events: Vec<(&str, String)> = vec![];
    let mut counting = 0i64;
    for step in 0..80 {
        let on = if random.random_bool(0.5) { &server } else { &other };
        let client = *clients.choose(&mut random).unwrap();
        let (month, day) = (random.random_range(9..=11), random.random_range(1..=20));
        let at = format!("2026-{month:02}-{day:02}T{:02}:00:00Z", random.random_range(0..24));
        match random.random_range(0..10) {
            0..=3 => {
                let units = random.random_range(1..20).to_string();
                let [.., before, _] = period(&server, client).await;
                events.push((client, record(on, client, &units, &at).await));
                counting += 1;
                // Usage is payable only if no grant that is valid on its day has something left.
                let date = at[..10].to_owned();
                let request = GetCreditBalanceRequest { client_id: client.into(), date };
                let left = billing(&server).get_credit_balance(request).await.unwrap().into_inner().available;
                let [.., after, _] = period(&server, client).await;
                assert!(before == after || amount(&left) == "0", "step {step}: {before} {after} {left:?}");
            }
            4 => {
                let count = random.random_range(2..80);
                let batch = (0..count).map(|_| event_at(client, "social", "0.5", &at)).collect();
                on.batch(batch, true).await;
                counting += count;
            }
            5 if !events.is_empty() => {
                let (client, event_id) = events.swap_remove(random.random_range(0..events.len()));
                void_event(on, client, &event_id).await;
                counting -= 1;
            }
            6 if !events.is_empty() => {
                let (client, event_id) = events.choose(&mut random).unwrap();
                correct_event(on, client, event_id, &random.random_range(1..40).to_string()).await;
            }
            7 => {
                let new = CreditGrant {
                    priority: Some(random.random_range(0..3)),
                    first_date: format!("2026-{:02}-01", random.random_range(9..=11)),
                    last_date: if random.random_bool(0.5) { "2026-11-15".into() } else { String::new() },
                    ..new_grant(client, &random.random_range(1..400).to_string())
                };
                let created = grant(on, new).await.unwrap();
                if random.random_bool(0.3) {
                    let (client_id, grant_id) = (created.client_id, created.grant_id);
                    billing(on).void_credit_grant(VoidCreditGrantRequest { client_id, grant_id }).await.unwrap();
                }
            }
            8 => set_plan(on, client, ["trial", "starter", "professional"].choose(&mut random).unwrap(), &at).await,
            _ => {
                let rate = random.random_range(1..4).to_string();
                let from = format!("2026-{month:02}-{day:02}T00:00:{:02}Z", step % 60);
                let price = Price { effective_time: Some(timestamp(&from)), ..unit_price("social", "", &rate) };
                let request = CreatePriceRequest { price: Some(price), ..Default::default() };
                drop(on.catalog().create_price(request).await);
                let reprice = RepriceUsageRequest {
                    start_month: "2026-09".into(),
                    end_month: "2026-11".into(),
                    reason: "test".into(),
                    ..Default::default()
                };
                let run = on.catalog().reprice_usage(reprice).await.unwrap().into_inner().run.unwrap().run_id;
                let has_ended = async || {
                    let request = GetRepriceRunRequest { run_id: run.clone(), ..Default::default() };
                    let found = server.catalog().get_reprice_run(request).await.unwrap().into_inner();
                    found.run.unwrap().finish_time.is_some()
                };
                wait_until(has_ended).await;
            }
        }
        if step % 8 == 7 {
            server.assert_exact(counting).await;
            for client in clients {
                let [cost, used, payable, _] = period(&server, client).await.map(|text| text.parse::<Total>().unwrap());
                assert!(payable >= Total::ZERO && cost == used + payable, "{client}: {cost} {used} {payable}");
            }
        }
    }
    other.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_grant_is_created_once_read_voided_and_checked() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let request = CreateCreditGrantRequest {
        grant: Some(CreditGrant { note: "invoice 7".into(), ..new_grant("acme", "10") }),
        request_id: "once".into(),
    };
    let first = billing(&server).create_credit_grant(request.clone()).await.unwrap().into_inner();
    assert_eq!(billing(&server).create_credit_grant(request).await.unwrap().into_inner(), first);
    let created = first.grant.unwrap();
    assert_eq!((&*created.first_date, created.priority(), &*created.used), ("2026-11-21", 100, "0"));
    record(&server, "acme", "3", NOW).await;
    record(&server, "acme", "2", "2026-11-21T00:00:00Z").await;
    let id = VoidCreditGrantRequest { client_id: "acme".into(), grant_id: created.grant_id.clone() };
    let voided = billing(&server).void_credit_grant(id.clone()).await.unwrap().into_inner().grant.unwrap();
    assert!(voided.void_time.is_some());
    assert_eq!(billing(&server).void_credit_grant(id.clone()).await.unwrap().into_inner().grant.unwrap(), voided);
    let event_id = record(&server, "acme", "4", NOW).await;
    assert_eq!(period(&server, "acme").await, ["9", "5", "4", "0"], "a voided grant pays for nothing more");
    void_event(&server, "acme", &event_id).await;
    let get = GetCreditGrantRequest { client_id: "acme".into(), grant_id: created.grant_id.clone() };
    let found = billing(&server).get_credit_grant(get).await.unwrap().into_inner();
    let uses: Vec<(&str, &str)> = found.uses.iter().map(|of| (&*of.month, amount(&of.amount))).collect();
    assert_eq!((uses, &*found.grant.as_ref().unwrap().used), (vec![("2026-11", "5")], "5"));

    for (wrong, field) in [
        (new_grant("acme", "-1"), "grant.amount"),
        (new_grant("acme", "0"), "grant.amount"),
        (CreditGrant { source: CreditSource::Plan.into(), ..new_grant("acme", "1") }, "grant.source"),
        (CreditGrant { source: 0, ..new_grant("acme", "1") }, "grant.source"),
        (CreditGrant { priority: Some(1_001), ..new_grant("acme", "1") }, "grant.priority"),
        (CreditGrant { last_date: "2026-11-20".into(), ..new_grant("acme", "1") }, "grant.last_date"),
        (CreditGrant { first_date: "tomorrow".into(), ..new_grant("acme", "1") }, "grant.first_date"),
        (new_grant("", "1"), "grant.client_id"),
    ] {
        let status = assert_error(grant(&server, wrong).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(error_parts(&status).2, [field], "{status}");
        assert_eq!(field == "grant.amount", status.message().contains("more than 0"), "{status}");
    }
    assert_error(grant(&server, new_grant("nobody", "1")).await, Code::NotFound, "CLIENT_NOT_FOUND");
    let none = VoidCreditGrantRequest { grant_id: "none".into(), ..id };
    assert_error(billing(&server).void_credit_grant(none).await, Code::NotFound, "CREDIT_GRANT_NOT_FOUND");
    server.sql("UPDATE deployment SET previous_release_until = now() + interval '1 hour'").await;
    let early = grant(&server, new_grant("acme", "1")).await;
    assert_error(early, Code::FailedPrecondition, "PREVIOUS_RELEASE_MAY_RUN");
    server.stop().await;
}

#[tokio::test]
async fn verify_finds_changed_grants_and_uses() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    grant(&server, new_grant("acme", "10")).await.unwrap();
    record(&server, "acme", "4", NOW).await;
    server.assert_exact(1).await;
    let differences = async |change: &str, back: &str| {
        assert!(server.sql(change).await > 0, "{change}");
        let found = server.verify().await.differences;
        server.sql(back).await;
        found
    };
    let used = "UPDATE credit_grants SET used = used";
    assert_eq!(differences(&format!("{used} + 1"), &format!("{used} - 1")).await, 1);
    let uses = "UPDATE credit_uses SET amount = amount";
    assert_eq!(differences(&format!("{uses} + 1"), &format!("{uses} - 1")).await, 2, "and paid more than the cost");
    assert_eq!(
        differences(
            "DELETE FROM credit_uses",
            "INSERT INTO credit_uses SELECT client_id, '2026-11-01', grant_id, 4 FROM credit_grants"
        )
        .await,
        1
    );
    // The database itself refuses more than the amount, and less than nothing.
    for wrong in [
        "UPDATE credit_grants SET used = 11",
        "UPDATE credit_grants SET used = -1",
        "UPDATE credit_uses SET amount = -1",
    ] {
        assert!(sqlx::query(sqlx::AssertSqlSafe(wrong)).execute(&server.pool).await.is_err(), "{wrong}");
    }
    server.assert_exact(1).await;
    server.stop().await;
}
