//! Prices for one client.

use crate::harness::*;
use crate::key_server::KeyServer;
use meterd::proto::catalog_service_client::CatalogServiceClient;
use meterd::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use tonic::Code;

fn price(client_id: &str, model: &str, unit: &str) -> Price {
    let rates = Rates { unit: Some(unit.into()), ..Default::default() };
    Price {
        client_id: client_id.into(),
        service: "sms".into(),
        model: model.into(),
        rates: Some(rates),
        ..Default::default()
    }
}

fn of(client_id: &str, model: &str) -> UsageEvent {
    UsageEvent { model: model.into(), ..event(client_id, "sms", "1") }
}

async fn create(server: &TestServer, price: Price) -> Result<Price, tonic::Status> {
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    Ok(server.catalog().create_price(request).await?.into_inner().price.unwrap())
}

#[tokio::test]
async fn a_price_for_the_client_comes_before_all_prices_for_any_client() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let charge =
        async |client: &str, model: &str| amount(&server.track(of(client, model)).await.unwrap().charge).to_owned();
    create(&server, price("", "long", "1")).await.unwrap();
    assert_eq!((charge("acme", "long").await, charge("acme", "").await), ("1".into(), "0.0075".into()));
    let status = create(&server, price("nobody", "", "2")).await;
    assert_error(status, Code::NotFound, "CLIENT_NOT_FOUND");
    let own = create(&server, price("acme", "", "2")).await.unwrap();
    assert_eq!(own.client_id, "acme");
    assert_eq!((charge("acme", "long").await, charge("other", "long").await), ("2".into(), "1".into()));
    create(&server, price("acme", "long", "3")).await.unwrap();
    assert_eq!((charge("acme", "long").await, charge("acme", "x").await), ("3".into(), "2".into()));
    let again = create(&server, price("acme", "", "4")).await;
    assert_error(again, Code::AlreadyExists, "PRICE_EXISTS");

    let estimate = async |client: &str| {
        let request = EstimateCostRequest {
            client_id: client.into(),
            service: "sms".into(),
            model: "long".into(),
            ..Default::default()
        };
        amount(&server.catalog().estimate_cost(request).await.unwrap().into_inner().charge).to_owned()
    };
    assert_eq!(
        (estimate("acme").await, estimate("").await, estimate("new").await),
        ("3".into(), "1".into(), "1".into())
    );
    let last = server.track(of("acme", "x")).await.unwrap();
    let explain = ExplainChargeRequest { client_id: "acme".into(), event_id: last.event_id };
    let explained = server.usage().explain_charge(explain).await.unwrap().into_inner();
    assert_eq!((&*explained.price_client_id, &*explained.price_service), ("acme", "sms"));
    // The client has the general price again.
    let retire = RetirePriceRequest { price_id: own.price_id.clone(), ..Default::default() };
    server.catalog().retire_price(retire).await.unwrap();
    assert_eq!(charge("acme", "x").await, "0.0075");
    server.assert_exact(8).await;
    server.stop().await;
}

#[tokio::test]
async fn an_unpriced_event_of_a_client_waits_for_a_price_for_this_client() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let social = |client: &str| event(client, "social", "1");
    server.batch(vec![social("acme"), social("other")], false).await;
    let rates = Rates { unit: Some("0.5".into()), ..Default::default() };
    let own = Price { client_id: "acme".into(), service: "social".into(), rates: Some(rates), ..Default::default() };
    create(&server, own).await.unwrap();
    let unpriced = async |client: &str| {
        let month = GetCurrentMonthUsageRequest { client_id: client.into(), ..Default::default() };
        let month = server.usage().get_current_month_usage(month).await.unwrap().into_inner();
        month.totals.unwrap().unpriced_event_count
    };
    wait_until(async || unpriced("acme").await == 0).await;
    assert_eq!(unpriced("other").await, 1);
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_some_clients_sees_no_prices_for_others() {
    let server = KeyServer::start().await;
    let open = server.open().await;
    for client in ["acme", "other"] {
        open.track(of(client, "")).await.unwrap();
        create(&open, price(client, "", "2")).await.unwrap();
    }
    let key = server.key(Scope::Read, &["acme"]).await;
    let mut catalog = CatalogServiceClient::with_interceptor(server.server.channel(), key);
    let list = |client_id: &str| ListPricesRequest {
        client_id: client_id.into(),
        service: "sms".into(),
        page_size: 1_000,
        ..Default::default()
    };
    let clients = |prices: Vec<Price>| -> std::collections::BTreeSet<String> {
        prices.into_iter().map(|price| price.client_id).collect()
    };
    let all = catalog.list_prices(list("")).await.unwrap().into_inner().prices;
    assert_eq!(clients(all), ["".to_owned(), "acme".to_owned()].into());
    let own = catalog.list_prices(list("acme")).await.unwrap().into_inner().prices;
    assert_eq!(clients(own), ["acme".to_owned()].into());
    let other = catalog.list_prices(list("other")).await;
    assert_error(other, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let estimate =
        |client: &str| EstimateCostRequest { client_id: client.into(), service: "sms".into(), ..Default::default() };
    assert_eq!(amount(&catalog.estimate_cost(estimate("acme")).await.unwrap().into_inner().charge), "2");
    let other = catalog.estimate_cost(estimate("other")).await;
    assert_error(other, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let all = open.catalog().list_prices(list("")).await.unwrap().into_inner().prices;
    assert_eq!(clients(all), ["".to_owned(), "acme".to_owned(), "other".to_owned()].into());
    open.stop().await;
    server.server.stop().await;
}
