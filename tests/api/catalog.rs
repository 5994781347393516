//! Services, prices and aliases: creating and listing them, and the charges of events.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use tonic::Code;

async fn create_price(server: &TestServer, price: Price) -> Price {
    let request = CreatePriceRequest { price: Some(price), confirm_high_rates: true, ..Default::default() };
    server.catalog().create_price(request).await.unwrap().into_inner().price.unwrap()
}

async fn estimate(server: &TestServer, request: EstimateCostRequest) -> EstimateCostResponse {
    server.catalog().estimate_cost(request).await.unwrap().into_inner()
}

fn of(service: &str, operation: &str, model: &str) -> EstimateCostRequest {
    let (service, operation, model) = (service.into(), operation.into(), model.into());
    EstimateCostRequest { service, operation, model, ..Default::default() }
}

async fn all_prices(server: &TestServer, page_size: i32) -> Vec<Price> {
    let (mut prices, mut page_token) = (vec![], String::new());
    loop {
        let request = ListPricesRequest { page_size, page_token, ..Default::default() };
        let page = server.catalog().list_prices(request).await.unwrap().into_inner();
        prices.extend(page.prices);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return prices;
        }
    }
}

#[tokio::test]
async fn a_create_repeated_with_its_request_id_gets_the_first_answer_unless_it_differs() {
    let server = TestServer::start().await;
    let mut catalog = server.catalog();
    let service = |name: &str| Service { service: name.into(), ..Default::default() };
    let create = CreateServiceRequest { service: Some(service("fax")), request_id: "r1".into() };
    let first = catalog.create_service(create.clone()).await.unwrap().into_inner();
    let created = first.service.clone().unwrap();
    assert_eq!((&*created.display_name, &*created.unit, created.category()), ("fax", "unit", ServiceCategory::Other));
    assert_eq!(catalog.create_service(create.clone()).await.unwrap().into_inner(), first);
    let other = CreateServiceRequest { service: Some(service("telex")), ..create.clone() };
    assert_error(catalog.create_service(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    let again = CreateServiceRequest { request_id: String::new(), ..create };
    assert_error(catalog.create_service(again).await, Code::AlreadyExists, "SERVICE_EXISTS");

    let create = CreatePriceRequest {
        price: Some(unit_price("fax", "", "0.10")),
        request_id: "r2".into(),
        ..Default::default()
    };
    let first = catalog.create_price(create.clone()).await.unwrap().into_inner();
    assert_eq!(first.price.as_ref().unwrap().rates.as_ref().unwrap().unit.as_deref(), Some("0.1"));
    assert_eq!(catalog.create_price(create.clone()).await.unwrap().into_inner(), first);
    let other = CreatePriceRequest { price: Some(unit_price("fax", "", "0.2")), ..create.clone() };
    assert_error(catalog.create_price(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    let again = CreatePriceRequest { request_id: String::new(), ..create.clone() };
    assert_error(catalog.create_price(again).await, Code::AlreadyExists, "PRICE_EXISTS");

    let alias = |alias: &str, model: &str| {
        Some(ModelAlias { service: "openai".into(), alias: alias.into(), model: model.into() })
    };
    let create = CreateModelAliasRequest { model_alias: alias("mini", "gpt-4o-mini"), request_id: "r3".into() };
    let first = catalog.create_model_alias(create.clone()).await.unwrap().into_inner();
    assert_eq!(catalog.create_model_alias(create.clone()).await.unwrap().into_inner(), first);
    let reused = CreateModelAliasRequest { request_id: "r1".into(), ..create.clone() };
    assert_error(catalog.create_model_alias(reused).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    let again = CreateModelAliasRequest { request_id: String::new(), ..create };
    assert_error(catalog.create_model_alias(again).await, Code::AlreadyExists, "MODEL_ALIAS_EXISTS");
    // An alias of an alias is rejected, whichever is created first.
    for (name, model) in [("tiny", "mini"), ("gpt-4o-mini", "gpt-4o"), ("self", "self")] {
        let create = CreateModelAliasRequest { model_alias: alias(name, model), request_id: String::new() };
        assert!(catalog.create_model_alias(create).await.is_err_and(|s| s.code() == Code::InvalidArgument), "{name}");
    }
    let create = CreateModelAliasRequest { model_alias: alias("4o", "gpt-4o"), request_id: String::new() };
    catalog.create_model_alias(create).await.unwrap();
    let aliases = catalog.list_model_aliases(ListModelAliasesRequest {}).await.unwrap().into_inner().model_aliases;
    let names: Vec<_> = aliases.iter().map(|alias| (&*alias.service, &*alias.alias)).collect();
    assert_eq!(names, [("openai", "4o"), ("openai", "mini")]);
    server.stop().await;
}

#[tokio::test]
async fn concurrent_creates_with_one_request_id_create_one_object() {
    let server = TestServer::start().await;
    let create = CreatePriceRequest {
        price: Some(unit_price("social", "", "1")),
        request_id: "r1".into(),
        ..Default::default()
    };
    let calls = (0..8).map(|_| {
        let (mut catalog, create) = (server.catalog(), create.clone());
        tokio::spawn(async move { catalog.create_price(create).await.unwrap().into_inner().price.unwrap().price_id })
    });
    let mut ids = vec![];
    for call in calls.collect::<Vec<_>>() {
        ids.push(call.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn services_and_prices_are_listed_in_order_and_in_pages() {
    let server = TestServer::start().await;
    let services = server.catalog().list_services(ListServicesRequest {}).await.unwrap().into_inner().services;
    assert_eq!(services.len(), 25);
    assert!(services.is_sorted_by_key(|service| service.service.clone()));
    let phone = services.iter().find(|service| service.service == "twilio_phone").unwrap();
    assert!(phone.recurring && services.iter().filter(|service| service.recurring).count() == 1);
    let voice = services.iter().find(|service| service.service == "twilio_voice").unwrap();
    assert_eq!((voice.category(), &*voice.uncounted_operations[0]), (ServiceCategory::Voice, "recording"));
    let later = Price { effective_time: Some(timestamp("2030-01-01T00:00:00Z")), ..unit_price("sms", "", "1") };
    create_price(&server, later).await;
    let whole = all_prices(&server, 0).await;
    assert!(whole.is_sorted_by_key(|price| {
        let since = price.effective_time.map_or(0, |time| time.seconds);
        (price.service.clone(), price.operation.clone(), price.model.clone(), since)
    }));
    assert_eq!(whole.iter().filter(|price| !price.built_in).count(), 1);
    assert_eq!(all_prices(&server, 7).await, whole);
    let of_sms = ListPricesRequest { service: "sms".into(), ..Default::default() };
    assert_eq!(server.catalog().list_prices(of_sms).await.unwrap().into_inner().prices.len(), 4);
    server.stop().await;
}

#[tokio::test]
async fn an_estimate_shows_the_lines_of_the_charge_and_records_nothing() {
    let server = TestServer::start().await;
    let request = EstimateCostRequest {
        input_tokens: 1_000,
        cached_input_tokens: 400,
        output_tokens: 50,
        ..of("openai", "chat", "gpt-4o-mini-2024-07-18")
    };
    let estimated = estimate(&server, request).await;
    assert_eq!(amount(&estimated.charge), "0.00015");
    let lines: Vec<_> =
        estimated.lines.iter().map(|line| (&*line.component, &*line.quantity, &*line.rate, &*line.amount)).collect();
    let expected = [
        ("input_token", "600", "0.00000015", "0.00009"),
        ("output_token", "50", "0.0000006", "0.00003"),
        ("cached_input_token", "400", "0.000000075", "0.00003"),
    ];
    assert_eq!(lines, expected);
    let payment = EstimateCostRequest { amount: "100".into(), ..of("stripe", "", "") };
    let payment = estimate(&server, payment).await;
    assert_eq!((amount(&payment.charge), &*payment.lines[0].amount, &*payment.lines[1].amount), ("3.2", "2.9", "0.3"));
    for (request, reason) in [
        (of("social", "", ""), UnpricedReason::NoPrice),
        (of("stripe", "", ""), UnpricedReason::AmountMissing),
        (EstimateCostRequest { input_tokens: 1, ..of("sms", "", "") }, UnpricedReason::TokensNotCovered),
    ] {
        let unpriced = estimate(&server, request).await;
        assert_eq!((unpriced.unpriced_reason(), &unpriced.charge, unpriced.lines.len()), (reason, &None, 0));
    }
    let unknown = server.catalog().estimate_cost(of("smss", "", "")).await;
    assert_invalid(unknown, "UNKNOWN_SERVICE", &["service"]);
    server.assert_exact(0).await;
    server.stop().await;
}

#[tokio::test]
async fn every_built_in_price_of_a_unit_charges_its_documented_amount() {
    let server = TestServer::start().await;
    let mut listed = vec![];
    for price in all_prices(&server, 0).await.into_iter().filter(|price| price.model.is_empty()) {
        let request = EstimateCostRequest {
            units: "1000000".into(),
            amount: if price.service == "stripe" { "1000000".into() } else { String::new() },
            ..of(&price.service, &price.operation, &price.model)
        };
        let estimated = estimate(&server, request).await;
        assert_eq!(estimated.price_id, price.price_id, "{price:?}");
        let scope = [&*price.service, &*price.operation, &*price.model].join("/");
        listed.push(format!("{scope} {}", amount(&estimated.charge)));
    }
    // USD for a million of each unit.
    let expected = "ai_tokens_used// 0|api_call// 0|automation_run// 0|cloudflare_r2// 15000|\
        cloudflare_r2/class_a_ops/ 4.5|cloudflare_r2/class_b_ops/ 0.36|cloudflare_r2/storage_gb/ 15000|email// 1000|\
        email/message/ 1000|google_places// 17000|google_places/find_place/ 17000|\
        google_places/nearby_search/ 32000|google_places/place_details/ 17000|record_created// 0|\
        schedule_executed// 0|sms// 7500|sms/message/ 7500|sms/mms/ 20000|storage_used// 0|stripe// 329000|\
        twilio_phone// 1150000|twilio_phone/local/ 1150000|twilio_phone/toll_free/ 2150000|twilio_sms// 7900|\
        twilio_sms/inbound/ 7900|twilio_sms/mms_inbound/ 10000|twilio_sms/mms_outbound/ 20000|\
        twilio_sms/outbound/ 7900|twilio_voice// 14000|twilio_voice/inbound/ 8500|twilio_voice/outbound/ 14000|\
        twilio_voice/recording/ 2500|user_active// 0|voice// 15000|voice/minute/ 15000|whatsapp// 5000|\
        whatsapp/message/ 5000";
    assert_eq!(listed.join("|"), expected);
    server.stop().await;
}

#[tokio::test]
async fn an_event_is_charged_by_the_price_of_its_own_time() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let from =
        |time: &str, rate: &str| Price { effective_time: Some(timestamp(time)), ..unit_price("social", "", rate) };
    let november = create_price(&server, from("2026-11-01T00:00:00Z", "1")).await;
    create_price(&server, from("2026-11-20T00:00:00Z", "2")).await;
    create_price(&server, from("2026-12-01T00:00:00Z", "4")).await;
    let charge = async |time: &str| server.track(event_at("acme", "social", "1", time)).await.unwrap();
    let before = charge("2026-10-31T23:59:59.999999Z").await;
    assert_eq!((before.unpriced_reason(), before.charge), (UnpricedReason::NoPrice, None));
    let first = charge("2026-11-01T00:00:00Z").await;
    assert_eq!((amount(&first.charge), &first.price_id), ("1", &november.price_id));
    assert_eq!(amount(&charge("2026-11-19T23:59:59.999999Z").await.charge), "1");
    assert_eq!(amount(&charge("2026-11-20T00:00:00Z").await.charge), "2");
    // The price of December exists but is not valid yet.
    assert_eq!(amount(&charge("2026-11-21T12:00:00Z").await.charge), "2");
    server.clock.set(time("2026-12-01T00:00:00Z"));
    assert_eq!(amount(&server.track(event("acme", "social", "1")).await.unwrap().charge), "4");
    server.assert_exact(6).await;
    server.stop().await;
}

#[tokio::test]
async fn the_most_specific_price_applies_and_aliases_are_tried_on_each_level() {
    let server = TestServer::start().await;
    let scoped = |operation: &str, model: &str, rate: &str| Price {
        operation: operation.into(),
        ..unit_price("social", model, rate)
    };
    for (operation, model, rate) in [("", "", "1"), ("post", "", "2"), ("", "big", "4"), ("post", "big", "8")] {
        create_price(&server, scoped(operation, model, rate)).await;
    }
    let alias = ModelAlias { service: "social".into(), alias: "big-2026".into(), model: "big".into() };
    let request = CreateModelAliasRequest { model_alias: Some(alias), request_id: String::new() };
    server.catalog().create_model_alias(request).await.unwrap();
    for (operation, model, charge) in [
        ("", "", "1"),
        ("like", "small", "1"),
        ("post", "small", "2"),
        ("like", "big", "4"),
        ("post", "big", "8"),
        ("like", "big-2026", "4"),
        ("post", "big-2026", "8"),
    ] {
        let (operation, model) = (operation.to_string(), model.to_string());
        let result = server.track(UsageEvent { operation, model, ..event("acme", "social", "1") }).await.unwrap();
        assert_eq!(amount(&result.charge), charge);
    }
    server.assert_exact(7).await;
    server.stop().await;
}

#[tokio::test]
async fn a_deployment_in_another_currency_starts_without_prices_and_keeps_its_currency() {
    let database_url = empty_database().await;
    let server = TestServer::replica(&database_url, &["--currency=EUR"], Clock::system()).await;
    assert_eq!(all_prices(&server, 0).await, []);
    let services = server.catalog().list_services(ListServicesRequest {}).await.unwrap().into_inner().services;
    assert_eq!(services.len(), 25);
    assert_eq!(server.track(event("acme", "sms", "1")).await.unwrap().unpriced_reason(), UnpricedReason::NoPrice);
    create_price(&server, unit_price("email", "", "0.5")).await;
    let charge = server.track(event("acme", "email", "1")).await.unwrap().charge.unwrap();
    assert_eq!((&*charge.currency, &*charge.amount), ("EUR", "0.5"));
    server.stop().await;
    let options = meterd_store::database::connect::options(&database_url).unwrap();
    let rejected = meterd::app::prepare(&options, &settings_of(&[])).await.err().unwrap().to_string();
    assert!(rejected.contains("EUR") && rejected.contains("--currency EUR"), "{rejected}");
}

/// A call with almost all input from the cache.
fn cached_call(model: &str) -> UsageEvent {
    let tokens =
        UsageEvent { input_tokens: 2_006, cached_input_tokens: 1_920, output_tokens: 300, ..Default::default() };
    UsageEvent { client_id: "c".into(), service: "openai".into(), model: model.into(), ..tokens }
}

#[tokio::test]
async fn cached_input_tokens_of_built_in_models_have_their_own_rate() {
    let server = TestServer::start().await;
    for (model, charge) in [
        ("gpt-4o-mini", "0.0003369"),
        ("gpt-4o-mini-2024-07-18", "0.0003369"),
        ("gpt-4o", "0.005615"),
        ("gpt-4o-2024-11-20", "0.005615"),
        // These models have no such rate, so cached input is charged as input.
        ("gpt-4-turbo", "0.02906"),
    ] {
        assert_eq!(amount(&server.track(cached_call(model)).await.unwrap().charge), charge, "{model}");
    }
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test]
async fn an_older_database_gets_rates_for_cached_input_from_now_on() {
    let server = TestServer::start().await;
    let own = |time: &str| Price {
        service: "openai".into(),
        model: "gpt-4o".into(),
        effective_time: Some(timestamp(time)),
        rates: Some(Rates { input_token: Some("1".into()), output_token: Some("1".into()), ..Default::default() }),
        ..Default::default()
    };
    create_price(&server, own("2026-01-01T00:00:00Z")).await;
    // The state that an older release left.
    let older = "DELETE FROM prices WHERE service_tier <> ''; UPDATE prices SET cached_input_token = NULL WHERE built_in; \
        UPDATE catalog_version SET version = version + 1";
    server.sql(older).await;
    let before = server.track(cached_call("gpt-4o-mini")).await.unwrap();
    assert_eq!(amount(&before.charge), "0.0004809");
    let count = all_prices(&server, 0).await.len();

    server.sql(include_str!("../../migrations/0014_cached_input_rates.sql")).await;
    let after = server.track(cached_call("gpt-4o-mini")).await.unwrap();
    assert_eq!(amount(&after.charge), "0.0003369");
    assert_ne!(before.price_id, after.price_id, "prices do not change, so there must be a new one");
    let of_model = server.track(cached_call("gpt-4o")).await.unwrap();
    assert_eq!(amount(&of_model.charge), "2306", "an operator's own price must stay");
    assert_eq!(all_prices(&server, 0).await.len(), count + 1);
    server.sql(include_str!("../../migrations/0014_cached_input_rates.sql")).await;
    assert_eq!(all_prices(&server, 0).await.len(), count + 1, "once");
    server.assert_exact(3).await;
    server.stop().await;
}
