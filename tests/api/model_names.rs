//! Names of models in other spellings than in prices.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;

/// A thousand input and ten output tokens.
fn call(service: &str, model: &str) -> UsageEvent {
    let tokens = UsageEvent { input_tokens: 1_000, output_tokens: 10, ..Default::default() };
    UsageEvent { client_id: "acme".into(), service: service.into(), model: model.into(), ..tokens }
}

async fn create_price(server: &TestServer, service: &str, model: &str, input: &str, output: &str) {
    let rates = Rates { input_token: Some(input.into()), output_token: Some(output.into()), ..Default::default() };
    let price = Price { service: service.into(), model: model.into(), rates: Some(rates), ..Default::default() };
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
}

async fn create_service(server: &TestServer, service: &str) {
    let service = Some(Service { service: service.into(), ..Default::default() });
    server.catalog().create_service(CreateServiceRequest { service, request_id: String::new() }).await.unwrap();
}

async fn create_alias(server: &TestServer, alias: &str, model: &str) {
    let model_alias = Some(ModelAlias { service: "openai".into(), alias: alias.into(), model: model.into() });
    server.catalog().create_model_alias(CreateModelAliasRequest { model_alias, ..Default::default() }).await.unwrap();
}

/// Records a call of each model. Returns the charge, or the reason why there is none, and the matched model.
async fn charges(server: &TestServer, service: &str, models: &[&str]) -> Vec<(String, String)> {
    let events = models.iter().map(|model| call(service, model)).collect();
    let results = server.batch(events, false).await;
    let charge = |result: UsageResult| match &result.charge {
        Some(charge) => (charge.amount.clone(), result.matched_model),
        None => (format!("{:?}", result.unpriced_reason()), result.matched_model),
    };
    results.into_iter().map(charge).collect()
}

#[tokio::test]
async fn other_spellings_of_a_model_find_its_price_and_the_result_names_it() {
    let server = TestServer::start().await;
    // Of a service with no other models.
    create_service(&server, "proxy").await;
    create_price(&server, "proxy", "anthropic.claude-sonnet-4-20250514-v1:0", "0.000003", "0.000015").await;
    // In a region, this model costs more, and the price there is not known.
    create_price(&server, "proxy", "anthropic.claude-sonnet-4-5-20250929-v1:0", "0.000003", "0.000015").await;
    let gpt_4o = ["openai/gpt-4o", "GPT-4o", "gpt-4o-2099-01-01", "openai/GPT-4o-2099-01-01", "gpt-4o-latest"];
    for (model, found) in gpt_4o.iter().zip(charges(&server, "openai", &gpt_4o).await) {
        assert_eq!(found, ("0.0026".into(), "gpt-4o".into()), "{model}");
    }
    assert_eq!(charges(&server, "openai", &["gpt-4o"]).await, [("0.0026".into(), String::new())]);
    // This version has its own price, which is not that of the others.
    let may = ["gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"];
    let expected = [("0.00515".into(), String::new()), ("0.00515".into(), "gpt-4o-2024-05-13".into())];
    assert_eq!(charges(&server, "openai", &may).await, expected);
    let claude = ["us.anthropic.claude-sonnet-4-20250514-v1:0", "anthropic.claude-sonnet-4-20250514"];
    for (model, found) in claude.iter().zip(charges(&server, "proxy", &claude).await) {
        assert_eq!(found, ("0.00315".into(), "anthropic.claude-sonnet-4-20250514-v1:0".into()), "{model}");
    }
    // Other models, or other prices of the same model.
    let others = ["us.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-20260101-v1:0"];
    for (model, found) in others.iter().zip(charges(&server, "proxy", &others).await) {
        assert_eq!(found.0, "NoPrice", "{model}");
    }
    let others = ["gpt-4o-video-preview", "azure/gpt-4o", "ft:gpt-4o:acme::1", "gpt-4x", "gpt-4o-0513", "openai/"];
    for (model, found) in others.iter().zip(charges(&server, "openai", &others).await) {
        assert_eq!(found.0, "NoPrice", "{model}");
    }
    server.assert_exact(18).await;
    server.stop().await;
}

#[tokio::test]
async fn an_estimate_says_how_the_price_was_found() {
    let server = TestServer::start().await;
    create_alias(&server, "our-gpt", "gpt-4o").await;
    let estimate = async |service: &str, model: &str| {
        let UsageEvent { input_tokens, .. } = call(service, model);
        let request =
            EstimateCostRequest { service: service.into(), model: model.into(), input_tokens, ..Default::default() };
        let found = server.catalog().estimate_cost(request).await.unwrap().into_inner();
        (found.price_match(), found.matched_model)
    };
    for (service, model, price_match, matched) in [
        ("openai", "gpt-4o", PriceMatch::Model, "gpt-4o"),
        ("openai", "our-gpt", PriceMatch::Alias, "gpt-4o"),
        ("openai", "OpenAI/gpt-4o", PriceMatch::Name, "gpt-4o"),
        ("openai", "gpt-99", PriceMatch::Unspecified, ""),
        ("sms", "any", PriceMatch::General, ""),
    ] {
        assert_eq!(estimate(service, model).await, (price_match, matched.into()), "{service} {model}");
    }
    server.stop().await;
}

#[tokio::test]
async fn with_exact_names_no_other_spelling_finds_a_price_until_the_rules_are_on() {
    let server = TestServer::start_with(&["--model-names=exact"], Clock::system()).await;
    create_alias(&server, "our-gpt", "gpt-4o").await;
    let found = charges(&server, "openai", &["openai/gpt-4o", "our-gpt"]).await;
    assert_eq!((found[0].0.as_str(), found[1].0.as_str()), ("NoPrice", "0.0026"), "aliases are exact names");
    let with_rules = TestServer::replica(&server.database_url, &[], Clock::system()).await;
    // A repeat gets the first answer.
    let again = UsageEvent { idempotency_key: "k".into(), ..call("openai", "openai/gpt-4o") };
    assert_eq!(server.track(again.clone()).await.unwrap().unpriced_reason(), UnpricedReason::NoPrice);
    assert_eq!(with_rules.track(again).await.unwrap().unpriced_reason(), UnpricedReason::NoPrice);
    assert_eq!(charges(&with_rules, "openai", &["openai/gpt-4o"]).await[0].0, "0.0026");
    server.assert_exact(4).await;
    server.stop().await;
    with_rules.stop().await;
}

#[tokio::test]
async fn unpriced_events_of_another_spelling_are_priced_with_the_price_of_the_model() {
    let server = TestServer::start().await;
    let unpriced = charges(&server, "openai", &["openai/GPT-9-2026-01-01", "gpt-9-mini"]).await;
    assert!(unpriced.iter().all(|found| found.0 == "NoPrice"), "{unpriced:?}");
    create_price(&server, "openai", "gpt-9", "0.000001", "0.00001").await;
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 1).await;
    assert_eq!(server.month("acme").await.totals.unwrap().cost.unwrap().amount, "0.0011");
    server.assert_exact(2).await;
    server.stop().await;
}
