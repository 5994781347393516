//! Plans: their prices, their fees, and the plans of clients over time.

use crate::harness::*;
use crate::key_server::KeyServer;
use meterd::proto::billing_service_client::BillingServiceClient;
use meterd::proto::catalog_service_client::CatalogServiceClient;
use meterd::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use tonic::transport::Channel;
use tonic::{Code, Status};

const NOW: &str = "2026-11-21T12:00:00Z";

impl TestServer {
    fn billing(&self) -> BillingServiceClient<Channel> {
        BillingServiceClient::new(self.channel())
    }
}

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

async fn create_plan(server: &TestServer, plan_id: &str, monthly_fee: &str) -> Result<Plan, Status> {
    let plan = Plan { plan_id: plan_id.into(), monthly_fee: monthly_fee.into(), ..Default::default() };
    let request = CreatePlanRequest { plan: Some(plan), ..Default::default() };
    Ok(server.billing().create_plan(request).await?.into_inner().plan.unwrap())
}

async fn set(server: &TestServer, client_id: &str, plan_id: &str, from: Option<&str>) -> Result<ClientPlan, Status> {
    let (client_id, plan_id) = (client_id.into(), plan_id.into());
    let request = SetClientPlanRequest { client_id, plan_id, effective_time: from.map(timestamp) };
    Ok(server.billing().set_client_plan(request).await?.into_inner().client_plan.unwrap())
}

async fn create_price(server: &TestServer, price: Price) -> Result<Price, Status> {
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    Ok(server.catalog().create_price(request).await?.into_inner().price.unwrap())
}

fn plan_price(plan_id: &str, service: &str, model: &str, rate: &str) -> Price {
    Price { plan_id: plan_id.into(), ..unit_price(service, model, rate) }
}

/// Records an event of one SMS and returns its charge.
async fn charge(server: &TestServer, client_id: &str, model: &str, at: &str) -> String {
    let event = UsageEvent { model: model.into(), ..event_at(client_id, "sms", "1", at) };
    amount(&server.track(event).await.unwrap().charge).to_owned()
}

/// Returns the total, and for each fee its plan, days, last date and amount.
async fn fees(server: &TestServer, client_id: &str, month: &str) -> (String, Vec<(String, i32, String, String)>) {
    let request = GetPlanFeesRequest { client_id: client_id.into(), month: month.into() };
    let found = server.billing().get_plan_fees(request).await.unwrap().into_inner();
    let fees = found.fees.into_iter().map(|fee| (fee.plan_id, fee.days, fee.last_date, fee.amount));
    (found.total, fees.collect())
}

fn fee(plan: &str, days: i32, last: &str, amount: &str) -> (String, i32, String, String) {
    (plan.into(), days, last.into(), amount.into())
}

#[tokio::test]
async fn prices_of_the_plan_come_after_those_of_the_client_and_before_those_for_any() {
    let server = november().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    set(&server, "acme", "starter", Some("2026-11-10T00:00:00Z")).await.unwrap();
    create_price(&server, unit_price("sms", "long", "9")).await.unwrap();
    create_price(&server, plan_price("starter", "sms", "", "2")).await.unwrap();
    create_price(&server, plan_price("professional", "sms", "", "3")).await.unwrap();
    assert_eq!(charge(&server, "acme", "long", "2026-11-10T00:00:00Z").await, "2", "also before a more specific one");
    assert_eq!(charge(&server, "acme", "long", "2026-11-09T23:59:59Z").await, "9", "the client had no plan yet");
    assert_eq!(charge(&server, "other", "long", NOW).await, "9");
    let change = set(&server, "acme", "professional", None).await.unwrap();
    assert_eq!(change.effective_time, Some(timestamp(NOW)));
    assert_eq!(charge(&server, "acme", "", NOW).await, "3");
    assert_eq!(charge(&server, "acme", "", "2026-11-21T11:59:59Z").await, "2");
    let own = Price { client_id: "acme".into(), ..unit_price("sms", "", "1") };
    create_price(&server, own).await.unwrap();
    assert_eq!(charge(&server, "acme", "", NOW).await, "1");
    set(&server, "other", "starter", Some("2026-11-01T00:00:00Z")).await.unwrap();
    assert_eq!(charge(&server, "other", "", NOW).await, "2");
    set(&server, "other", "", None).await.unwrap();
    assert_eq!(charge(&server, "other", "", NOW).await, "0.0075", "without a plan again");

    let estimate = async |client: &str, at: &str| {
        let (client_id, event_time) = (client.into(), Some(timestamp(at)));
        let request = EstimateCostRequest { client_id, service: "sms".into(), event_time, ..Default::default() };
        let found = server.catalog().estimate_cost(request).await.unwrap().into_inner();
        let price = found.price.unwrap();
        assert_eq!(price.price_id, found.price_id);
        (amount(&found.charge).to_owned(), price.plan_id)
    };
    assert_eq!(
        (estimate("other", "2026-11-02T00:00:00Z").await, estimate("other", NOW).await),
        (("2".into(), "starter".into()), ("0.0075".into(), String::new()))
    );
    let validated = BatchTrackUsageRequest {
        events: vec![event_at("other", "sms", "1", "2026-11-02T00:00:00Z")],
        validate_only: true,
        ..Default::default()
    };
    let validated = server.usage().batch_track_usage(validated).await.unwrap().into_inner().results;
    assert_eq!(amount(&validated[0].charge), "2");
    server.assert_exact(9).await;
    server.stop().await;
}

#[tokio::test]
async fn a_change_of_the_plan_applies_at_once_on_every_replica() {
    let server = november().await;
    let other = TestServer::replica(&server.database_url, &[], server.clock.clone()).await;
    create_price(&server, plan_price("starter", "sms", "", "2")).await.unwrap();
    for (number, plan) in ["", "starter", "", "starter"].into_iter().enumerate() {
        let expected = if plan.is_empty() { "0.0075" } else { "2" };
        if number > 0 {
            set(&server, "acme", plan, None).await.unwrap();
        }
        for replica in [&other, &server] {
            // Small batches are written in one call, and large ones with COPY.
            for count in [1, 60] {
                let results = replica.batch(vec![event("acme", "sms", "1"); count], false).await;
                assert!(results.iter().all(|result| amount(&result.charge) == expected), "{number} {count}");
            }
        }
    }
    server.assert_exact(4 * 2 * 61).await;
    other.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn an_unpriced_event_is_priced_once_its_client_has_a_plan_with_a_price() {
    let server = november().await;
    server.batch(vec![event("acme", "social", "1"), event("other", "social", "1")], false).await;
    create_price(&server, plan_price("starter", "social", "", "0.5")).await.unwrap();
    let unpriced = async |client: &str| server.month(client).await.totals.unwrap().unpriced_event_count;
    set(&server, "acme", "starter", Some("2026-11-01T00:00:00Z")).await.unwrap();
    wait_until(async || unpriced("acme").await == 0).await;
    assert_eq!(
        (unpriced("other").await, server.month("acme").await.totals.unwrap().cost.unwrap().amount),
        (1, "0.5".into())
    );
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn corrections_and_repricing_charge_by_the_plan_at_the_time_of_the_event() {
    let server = november().await;
    create_price(&server, plan_price("starter", "sms", "", "2")).await.unwrap();
    let mut ids = vec![];
    for day in [5, 15] {
        let at = format!("2026-11-{day:02}T12:00:00Z");
        ids.push(server.track(event_at("acme", "sms", "1", &at)).await.unwrap().event_id);
    }
    set(&server, "acme", "starter", Some("2026-11-10T00:00:00Z")).await.unwrap();
    assert_eq!(
        server.month("acme").await.totals.unwrap().cost.unwrap().amount,
        "0.015",
        "charged events keep their charge"
    );
    let correction = |event_id: &String, day: u32| UsageCorrection {
        event: Some(EventReference { event_id: event_id.clone(), ..Default::default() }),
        corrected: Some(event_at("acme", "sms", "3", &format!("2026-11-{day:02}T12:00:00Z"))),
    };
    let request = CorrectUsageRequest {
        client_id: "acme".into(),
        reason: "miscounted".into(),
        corrections: vec![correction(&ids[0], 5), correction(&ids[1], 15)],
        ..Default::default()
    };
    let corrected = server.usage().correct_usage(request).await.unwrap().into_inner().results;
    let new: Vec<&str> = corrected.iter().map(|result| amount(&result.new_charge)).collect();
    assert_eq!(new, ["0.0225", "6"]);

    // A plan that is set for the past changes charges only when they are priced again.
    set(&server, "acme", "starter", Some("2026-11-01T00:00:00Z")).await.unwrap();
    let explain = ExplainChargeRequest { client_id: "acme".into(), event_id: ids[1].clone() };
    let explained = server.usage().explain_charge(explain).await.unwrap().into_inner();
    assert_eq!((&*explained.price_plan_id, &*explained.price_client_id), ("starter", ""));
    for (validate_only, cost) in [(true, "6.0225"), (false, "12")] {
        let request = RepriceUsageRequest {
            start_month: "2026-11".into(),
            end_month: "2026-11".into(),
            reason: "plan since November".into(),
            validate_only,
            ..Default::default()
        };
        let run = server.catalog().reprice_usage(request).await.unwrap().into_inner().run.unwrap();
        let total = async || {
            let request = GetRepriceRunRequest { run_id: run.run_id.clone(), ..Default::default() };
            let found = server.catalog().get_reprice_run(request).await.unwrap().into_inner();
            found.run.filter(|run| run.finish_time.is_some()).map(|_| found.total.unwrap())
        };
        wait_until(async || total().await.is_some()).await;
        let total = total().await.unwrap();
        assert_eq!((total.event_count, amount(&total.old_cost), amount(&total.new_cost)), (1, "0.0225", "6"));
        assert_eq!(server.month("acme").await.totals.unwrap().cost.unwrap().amount, cost);
    }
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn fees_are_prorated_by_the_days_of_each_plan_in_the_zone_of_the_client() {
    let server = november().await;
    for (client, zone) in [("acme", "UTC"), ("east", "Pacific/Kiritimati"), ("west", "Pacific/Pago_Pago")] {
        server.create_client_in_zone(client, zone).await;
        set(&server, client, "starter", Some("2026-10-31T10:30:00Z")).await.unwrap();
    }
    // In UTC+14, November has begun then. In UTC-11, it is still 30 October.
    assert_eq!(fees(&server, "acme", "2026-10").await, ("0.94".into(), vec![fee("starter", 1, "2026-10-31", "0.94")]));
    assert_eq!(fees(&server, "east", "2026-10").await, ("0".into(), vec![]));
    assert_eq!(fees(&server, "west", "2026-10").await, ("1.87".into(), vec![fee("starter", 2, "2026-10-31", "1.87")]));
    assert_eq!(fees(&server, "east", "").await, ("29".into(), vec![fee("starter", 30, "2026-11-30", "29")]));
    set(&server, "acme", "professional", Some("2026-11-16T09:00:00Z")).await.unwrap();
    set(&server, "acme", "", Some("2026-11-26T00:00:00Z")).await.unwrap();
    let of_november = vec![fee("starter", 15, "2026-11-15", "14.5"), fee("professional", 10, "2026-11-25", "33")];
    assert_eq!(fees(&server, "acme", "2026-11").await, ("47.5".into(), of_november));
    assert_eq!(fees(&server, "acme", "2026-12").await, ("0".into(), vec![]));

    let berlin = "berlin";
    server.create_client_in_zone(berlin, "Europe/Berlin").await;
    // 25 October has 25 hours in Berlin, and ends at 23:00 UTC.
    set(&server, berlin, "enterprise", Some("2026-10-25T22:59:59Z")).await.unwrap();
    let (total, found) = fees(&server, berlin, "2026-10").await;
    assert_eq!((&*total, found[0].1), ("112.68", 7));

    let list = ListClientPlansRequest { client_id: "acme".into(), page_size: 2, ..Default::default() };
    let page = server.billing().list_client_plans(list.clone()).await.unwrap().into_inner();
    let next = ListClientPlansRequest { page_token: page.next_page_token, ..list };
    let rest = server.billing().list_client_plans(next).await.unwrap().into_inner();
    let plans: Vec<String> =
        page.client_plans.into_iter().chain(rest.client_plans).map(|change| change.plan_id).collect();
    assert_eq!(
        (plans, rest.next_page_token),
        (vec!["starter".into(), "professional".into(), String::new()], String::new())
    );
    server.stop().await;
}

#[tokio::test]
async fn fees_are_rounded_to_the_minor_unit_of_the_currency() {
    for (currency, amount) in [("EUR", "10.63"), ("JPY", "11"), ("KWD", "10.633"), ("XQQ", "10.63")] {
        let database = empty_database().await;
        let clock = Clock::fixed(time(NOW));
        let server = TestServer::replica(&database, &[&format!("--currency={currency}")], clock).await;
        let plans = server.billing().list_plans(ListPlansRequest::default()).await.unwrap().into_inner().plans;
        assert_eq!(plans, [], "the built-in plans are in US dollars");
        create_plan(&server, "own", "29").await.unwrap();
        server.create_client_in_zone("acme", "UTC").await;
        set(&server, "acme", "own", Some("2026-11-20T00:00:00Z")).await.unwrap();
        assert_eq!(fees(&server, "acme", "").await.0, amount, "{currency}");
        server.stop().await;
    }
}

#[tokio::test]
async fn plans_are_listed_and_wrong_ones_are_refused() {
    let server = november().await;
    let list = async || {
        let request = ListPlansRequest { page_size: 3, ..Default::default() };
        let first = server.billing().list_plans(request.clone()).await.unwrap().into_inner();
        let next = ListPlansRequest { page_token: first.next_page_token, ..request };
        let rest = server.billing().list_plans(next).await.unwrap().into_inner().plans;
        first
            .plans
            .into_iter()
            .chain(rest)
            .map(|plan| (plan.plan_id, plan.monthly_fee, plan.built_in))
            .collect::<Vec<_>>()
    };
    let built_in = |plan: &str, fee: &str| (plan.to_owned(), fee.to_owned(), true);
    let built_in = [
        built_in("enterprise", "499"),
        built_in("professional", "99"),
        built_in("starter", "29"),
        built_in("trial", "0"),
    ];
    assert_eq!(list().await, built_in);
    let created = create_plan(&server, "custom", "12.5").await.unwrap();
    assert_eq!((&*created.monthly_fee, created.built_in), ("12.5", false));
    let get = GetPlanRequest { plan_id: "custom".into() };
    assert_eq!(server.billing().get_plan(get).await.unwrap().into_inner().plan, Some(created));
    assert_error(create_plan(&server, "custom", "1").await, Code::AlreadyExists, "PLAN_EXISTS");
    assert_error(create_plan(&server, "starter", "1").await, Code::AlreadyExists, "PLAN_EXISTS");
    assert_error(create_plan(&server, "", "1").await, Code::InvalidArgument, "INVALID_FIELD");
    for fee in ["-1", "1e3", "0.0000000000001"] {
        let status = assert_error(create_plan(&server, "bad", fee).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(error_parts(&status).2, ["plan.monthly_fee"]);
    }
    let none = GetPlanRequest { plan_id: "none".into() };
    assert_error(server.billing().get_plan(none).await, Code::NotFound, "PLAN_NOT_FOUND");

    assert_error(set(&server, "nobody", "starter", None).await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.create_client_in_zone("acme", "UTC").await;
    assert_error(set(&server, "acme", "none", None).await, Code::NotFound, "PLAN_NOT_FOUND");
    assert_error(set(&server, "", "starter", None).await, Code::InvalidArgument, "INVALID_FIELD");
    server.sql("UPDATE deployment SET closed_through = '2026-09-01'").await;
    let closed = set(&server, "acme", "starter", Some("2026-09-30T23:59:59Z")).await;
    assert_error(closed, Code::FailedPrecondition, "MONTH_CLOSED");
    set(&server, "acme", "starter", Some("2026-10-01T00:00:00Z")).await.unwrap();
    // A change for the same time replaces the earlier one.
    set(&server, "acme", "trial", Some("2026-10-01T00:00:00Z")).await.unwrap();
    assert_eq!(fees(&server, "acme", "2026-10").await.0, "0");

    assert_error(create_price(&server, plan_price("none", "sms", "", "1")).await, Code::NotFound, "PLAN_NOT_FOUND");
    let both = Price { client_id: "acme".into(), ..plan_price("starter", "sms", "", "1") };
    let status = assert_error(create_price(&server, both).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(error_parts(&status).2, ["price.plan_id"]);
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_some_clients_sees_only_the_prices_of_their_plans() {
    let server = KeyServer::start().await;
    let open = server.open().await;
    open.track(event("acme", "sms", "1")).await.unwrap();
    for plan in ["starter", "enterprise"] {
        create_price(&open, plan_price(plan, "sms", "", "2")).await.unwrap();
    }
    set(&open, "acme", "starter", None).await.unwrap();
    let key = server.key(Scope::Read, &["acme"]).await;
    let mut catalog = CatalogServiceClient::with_interceptor(server.server.channel(), key.clone());
    let list =
        |plan_id: &str| ListPricesRequest { plan_id: plan_id.into(), service: "sms".into(), ..Default::default() };
    let plans = |prices: Vec<Price>| -> std::collections::BTreeSet<String> {
        prices.into_iter().map(|price| price.plan_id).collect()
    };
    let seen = plans(catalog.list_prices(list("")).await.unwrap().into_inner().prices);
    assert_eq!(seen, ["".to_owned(), "starter".to_owned()].into());
    assert_eq!(plans(catalog.list_prices(list("enterprise")).await.unwrap().into_inner().prices), [].into());
    assert_eq!(
        plans(open.catalog().list_prices(list("enterprise")).await.unwrap().into_inner().prices),
        ["enterprise".to_owned()].into()
    );
    let mut billing = BillingServiceClient::with_interceptor(server.server.channel(), key);
    let of = |client: &str| GetPlanFeesRequest { client_id: client.into(), ..Default::default() };
    assert_eq!(billing.get_plan_fees(of("acme")).await.unwrap().into_inner().fees[0].plan_id, "starter");
    assert_error(billing.get_plan_fees(of("other")).await, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    open.stop().await;
    server.server.stop().await;
}

/// A replica of the previous release ignores clients and plans of prices, factors of the reported cost, and tiers.
#[tokio::test]
async fn prices_that_the_previous_release_ignores_wait_for_its_end() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    server.sql("UPDATE deployment SET previous_release_until = now() + interval '1 hour'").await;
    let with_rates = |rates: Rates| Price { rates: Some(rates), ..unit_price("social", "new", "1") };
    let tier = Tier { rate: "1".into(), ..Default::default() };
    let tiers = TieredRate {
        component: "unit".into(),
        mode: TierMode::Graduated.into(),
        tiers: vec![tier],
        ..Default::default()
    };
    let tiered = with_rates(Rates { tiers: vec![tiers], ..Default::default() });
    let new = [
        Price { client_id: "acme".into(), ..unit_price("social", "new", "1") },
        plan_price("starter", "social", "new", "1"),
        tiered.clone(),
        with_rates(Rates { reported_cost: Some("1".into()), ..Default::default() }),
    ];
    for price in &new {
        let refused = create_price(&server, price.clone()).await;
        let status = assert_error(refused, Code::FailedPrecondition, "PREVIOUS_RELEASE_MAY_RUN");
        assert!(status.message().contains("--previous-release-stopped"), "{status}");
    }
    create_price(&server, unit_price("social", "old", "1")).await.unwrap();
    let import = async || {
        let prices = vec![tiered.clone(), unit_price("social", "other", "1")];
        let request = ImportPricesRequest { prices, source: "list".into(), validate_only: true, ..Default::default() };
        let results = server.catalog().import_prices(request).await.unwrap().into_inner().results;
        results
            .iter()
            .map(|result| result.error.as_ref().map_or("", |error| &error.message).contains("previous release"))
            .collect::<Vec<_>>()
    };
    assert_eq!(import().await, [true, false]);
    let migrate = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
        command.args(["migrate", "--allow-non-durable-database"]).args(flags);
        command.env("DATABASE_URL", &server.database_url).output().unwrap()
    };
    assert!(migrate(&[]).status.success());
    assert_error(create_price(&server, new[0].clone()).await, Code::FailedPrecondition, "PREVIOUS_RELEASE_MAY_RUN");
    assert!(migrate(&["--previous-release-stopped"]).status.success());
    assert_eq!(import().await, [false, false]);
    for price in new {
        let rates = price.rates.clone().unwrap_or_default();
        let is_for_all = price.client_id.is_empty() && price.plan_id.is_empty();
        let price =
            if is_for_all && rates.reported_cost.is_some() { Price { model: "cost".into(), ..price } } else { price };
        create_price(&server, price).await.unwrap();
    }
    server.stop().await;
}
