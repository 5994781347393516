//! Prices that end, that are withdrawn, and that are refused.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::{Code, Status};

async fn create(server: &TestServer, price: Price, confirm_high_rates: bool) -> Result<Price, Status> {
    let request = CreatePriceRequest { price: Some(price), request_id: String::new(), confirm_high_rates };
    Ok(server.catalog().create_price(request).await?.into_inner().price.unwrap())
}

async fn retire(server: &TestServer, price_id: &str, at: Option<&str>) -> Result<Price, Status> {
    let request = RetirePriceRequest { price_id: price_id.into(), end_time: at.map(timestamp) };
    Ok(server.catalog().retire_price(request).await?.into_inner().price.unwrap())
}

async fn prices(server: &TestServer, service: &str) -> Vec<Price> {
    let request = ListPricesRequest { service: service.into(), page_size: 1_000, ..Default::default() };
    server.catalog().list_prices(request).await.unwrap().into_inner().prices
}

/// A price of a service for the days of November 2026 from `from` to `until`. 0 means no limit.
fn of_november(service: &str, from: u32, until: u32, rate: &str) -> Price {
    let day = |day: u32| (day > 0).then(|| timestamp(&format!("2026-11-{day:02}T00:00:00Z")));
    Price { effective_time: day(from), end_time: day(until), ..unit_price(service, "", rate) }
}

fn token_price(rate: &str) -> Price {
    let rates = Rates { input_token: Some(rate.into()), output_token: Some("0.00001".into()), ..Default::default() };
    Price { service: "openai".into(), model: "gpt-9".into(), rates: Some(rates), ..Default::default() }
}

#[tokio::test]
async fn a_rate_meant_per_million_tokens_is_refused_and_after_a_confirmation_withdrawn_and_replaced() {
    let server = TestServer::start().await;
    let call = || UsageEvent { model: "gpt-9".into(), input_tokens: 1_000, ..event("acme", "openai", "") };
    let status =
        assert_error(create(&server, token_price("2.5"), false).await, Code::InvalidArgument, "RATE_NOT_CONFIRMED");
    assert_eq!(error_parts(&status).2, ["price.rates.input_token"]);
    assert!(status.message().contains("0.0000025"), "the fix is named: {status}");
    let wrong = create(&server, Price { note: "list of November".into(), ..token_price("2.5") }, true).await.unwrap();
    assert_eq!((&*wrong.note, &wrong.withdraw_time, &wrong.end_time), ("list of November", &None, &None));
    let charged = server.track(call()).await.unwrap();
    assert_eq!((amount(&charged.charge), &charged.price_id), ("2500", &wrong.price_id));

    let withdrawn = retire(&server, &wrong.price_id, None).await.unwrap();
    assert!(withdrawn.withdraw_time.is_some());
    assert_eq!(retire(&server, &wrong.price_id, None).await.unwrap(), withdrawn, "a repeated call changes nothing");
    assert_eq!(server.track(call()).await.unwrap().unpriced_reason(), UnpricedReason::NoPrice);
    // The event that was recorded meanwhile is priced by the right price. The charge of the first event stays.
    let right = create(&server, token_price("0.0000025"), false).await.unwrap();
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 0).await;
    assert_eq!(server.month("acme").await.totals.unwrap().cost.unwrap().amount, "2500.0025");
    assert_eq!(server.track(call()).await.unwrap().price_id, right.price_id);
    let listed = prices(&server, "openai").await;
    let of_model: Vec<_> = listed.iter().filter(|price| price.model == "gpt-9").collect();
    assert_eq!(of_model, [&withdrawn, &right], "withdrawn prices stay in the list");
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_rate_at_the_bound_or_of_something_else_needs_no_confirmation() {
    let server = TestServer::start_with(&["--high-token-rate=0.5"], Clock::system()).await;
    create(&server, token_price("0.5"), false).await.unwrap();
    retire(
        &server,
        &prices(&server, "openai").await.iter().find(|price| price.model == "gpt-9").unwrap().price_id,
        None,
    )
    .await
    .unwrap();
    assert_error(create(&server, token_price("0.51"), false).await, Code::InvalidArgument, "RATE_NOT_CONFIRMED");
    create(&server, unit_price("social", "", "1000"), false).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn an_ended_price_applies_until_its_end_and_then_the_next_or_the_general_one() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    create(&server, unit_price("social", "", "1"), false).await.unwrap();
    let special = |from: u32, until: u32, rate: &str| Price {
        operation: "post".into(),
        ..of_november("social", from, until, rate)
    };
    let first = create(&server, special(1, 0, "2"), false).await.unwrap();
    create(&server, special(15, 20, "4"), false).await.unwrap();
    let ended = retire(&server, &first.price_id, Some("2026-11-10T00:00:00Z")).await.unwrap();
    assert_eq!(ended.end_time, Some(timestamp("2026-11-10T00:00:00Z")));
    assert_eq!(retire(&server, &first.price_id, Some("2026-11-10T00:00:00Z")).await.unwrap(), ended);
    for (time, charge) in [
        ("2026-10-31T23:59:59Z", "1"),
        ("2026-11-01T00:00:00Z", "2"),
        ("2026-11-09T23:59:59.999999Z", "2"),
        ("2026-11-10T00:00:00Z", "1"),
        ("2026-11-15T00:00:00Z", "4"),
        ("2026-11-20T00:00:00Z", "1"),
    ] {
        let event = UsageEvent { operation: "post".into(), ..event_at("acme", "social", "1", time) };
        assert_eq!(amount(&server.track(event).await.unwrap().charge), charge, "{time}");
    }
    server.assert_exact(6).await;
    server.stop().await;
}

#[tokio::test]
async fn prices_with_an_end_do_not_overlap_others_of_their_scope() {
    let server = TestServer::start().await;
    create(&server, of_november("social", 10, 20, "1"), false).await.unwrap();
    for (from, until) in [(15, 0), (1, 15), (0, 11), (12, 13), (1, 30)] {
        let status = assert_error(
            create(&server, of_november("social", from, until, "2"), false).await,
            Code::FailedPrecondition,
            "PRICES_OVERLAP",
        );
        assert!(status.message().contains("2026-11-10T00:00:00Z until 2026-11-20T00:00:00Z"), "{status}");
    }
    assert_error(create(&server, of_november("social", 10, 0, "2"), false).await, Code::AlreadyExists, "PRICE_EXISTS");
    // Without an end, an earlier price is in force until the next one.
    let earlier = create(&server, of_november("social", 1, 0, "2"), false).await.unwrap();
    create(&server, of_november("social", 20, 0, "2"), false).await.unwrap();
    // Other scopes do not matter.
    create(&server, Price { model: "m".into(), ..of_november("social", 15, 16, "2") }, false).await.unwrap();
    let end = retire(&server, &earlier.price_id, Some("2026-11-11T00:00:00Z")).await;
    assert_error(end, Code::FailedPrecondition, "PRICES_OVERLAP");
    retire(&server, &earlier.price_id, Some("2026-11-10T00:00:00Z")).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_end_or_an_unknown_price_is_refused() {
    let server = TestServer::start().await;
    let backwards = create(&server, of_november("social", 10, 10, "1"), false).await;
    let status = assert_error(backwards, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(error_parts(&status).2, ["price.end_time"]);
    let long = Price { source: "s".repeat(257), note: "n".repeat(1_025), ..unit_price("social", "", "1") };
    let status = assert_error(create(&server, long, false).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(error_parts(&status).2, ["price.source", "price.note"]);
    let price_id = create(&server, of_november("social", 10, 20, "1"), false).await.unwrap().price_id;
    for end in ["2026-11-10T00:00:00Z", "2026-11-21T00:00:00Z"] {
        let status = assert_error(retire(&server, &price_id, Some(end)).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(error_parts(&status).2, ["end_time"], "{end}");
    }
    for unknown in ["999999", "-1", "gpt-4o", "99999999999999999999"] {
        assert_error(retire(&server, unknown, None).await, Code::NotFound, "PRICE_NOT_FOUND");
    }
    assert_error(retire(&server, "", None).await, Code::InvalidArgument, "INVALID_FIELD");
    retire(&server, &price_id, None).await.unwrap();
    let ended = retire(&server, &price_id, Some("2026-11-15T00:00:00Z")).await;
    assert_error(ended, Code::FailedPrecondition, "PRICE_WITHDRAWN");
    server.stop().await;
}

/// Sends events until `done`. Returns the price of each, and whether it was sent after the withdrawal had returned.
async fn send_until(
    mut usage: usage_service_client::UsageServiceClient<tonic::transport::Channel>,
    withdrawn: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
) -> Vec<(String, bool)> {
    let mut sent = vec![];
    while !done.load(Ordering::SeqCst) {
        let is_after = withdrawn.load(Ordering::SeqCst);
        let event = UsageEvent { operation: "post".into(), ..event("acme", "social", "1") };
        let request = TrackUsageRequest { event: Some(event) };
        let result = usage.track_usage(request).await.unwrap().into_inner().result.unwrap();
        sent.push((result.price_id, is_after));
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_sent_after_a_withdrawal_has_the_price_on_any_replica() {
    let first = TestServer::start().await;
    let second = TestServer::replica(&first.database_url, &[], Clock::system()).await;
    let general = create(&first, unit_price("social", "", "1"), false).await.unwrap();
    let (withdrawn, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let special = Price { operation: "post".into(), ..unit_price("social", "", "2") };
    let special = create(&first, special, false).await.unwrap();
    let senders: Vec<_> = (0..8)
        .map(|number| {
            let server = if number % 2 == 0 { &first } else { &second };
            tokio::spawn(send_until(server.usage(), withdrawn.clone(), done.clone()))
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    retire(&second, &special.price_id, None).await.unwrap();
    withdrawn.store(true, Ordering::SeqCst);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    done.store(true, Ordering::SeqCst);
    let (mut before, mut after) = (0, 0);
    for sender in senders {
        for (price_id, is_after) in sender.await.unwrap() {
            assert!(!is_after || price_id == general.price_id, "an event has the withdrawn price");
            if is_after { after += 1 } else { before += usize::from(price_id == special.price_id) }
        }
    }
    println!("{before} events had the price before its withdrawal, {after} events after it had the general price");
    assert!(before > 0 && after > 0);
    first.verify().await;
    first.stop().await;
    second.stop().await;
}
