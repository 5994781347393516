//! Use cases of the engine without a protocol, as a dashboard or a command calls them.

use crate::harness::*;
use meterd::proto::ListClientsRequest;
use meterd_domain::access::Scope;
use meterd_engine::auth::Caller;
use meterd_engine::Reason;
use meterd_engine::alerts::policies::{self, PolicyInput};
use meterd_engine::auth::keys::{self, GrantInput, NewKey};
use meterd_engine::ingest::RawMeasures;
use meterd_engine::catalog::estimate::{self, EstimateInput};
use meterd_engine::clients::{self, NewClient};
use meterd_engine::idempotency::{Created, Idempotency};
use meterd_engine::paging::PageRequest;
use std::collections::BTreeMap;

fn client(client_id: &str) -> NewClient {
    NewClient { client_id: client_id.into(), ..Default::default() }
}

#[tokio::test]
async fn clients_are_created_and_listed_in_pages_without_a_protocol() {
    let server = TestServer::start().await;
    let engine = &server.context.engine;
    for client_id in ["acme", "beta"] {
        clients::create(engine, client(client_id), Idempotency::none()).await.unwrap();
    }
    let refused = clients::create(engine, client("acme"), Idempotency::none()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::ClientExists);
    let first = clients::list(engine, PageRequest::first(1)).await.unwrap();
    assert_eq!((&*first.rows[0].client_id, first.next.as_deref()), ("acme", Some("acme")));
    let second = clients::list(engine, PageRequest { size: 1, after: Ok(first.next) }).await.unwrap();
    assert_eq!((&*second.rows[0].client_id, second.next), ("beta", None));
    server.stop().await;
}

#[tokio::test]
async fn a_repeat_returns_the_bytes_that_the_first_request_encoded() {
    let server = TestServer::start().await;
    let engine = &server.context.engine;
    let idempotency = |hash: &[u8]| Idempotency {
        principal: "dashboard:ops".into(),
        request_id: "form-1".into(),
        request_hash: hash.into(),
        encode: |client: &meterd_store::clients::Client| client.client_id.clone().into_bytes(),
    };
    let first = clients::create(engine, client("acme"), idempotency(b"one")).await.unwrap();
    assert!(matches!(first, Created::New(_)));
    let Created::Repeat(answer) = clients::create(engine, client("acme"), idempotency(b"one")).await.unwrap() else {
        panic!("the second create is a repeat")
    };
    assert_eq!(answer, b"acme");
    let other = clients::create(engine, client("beta"), idempotency(b"two")).await.unwrap_err();
    assert_eq!(other.reason, Reason::RequestIdReused);
    server.stop().await;
}

#[tokio::test]
async fn an_invalid_page_token_is_reported_after_wrong_fields() {
    let server = TestServer::start().await;
    let list = async |page_size: i32| {
        let request = ListClientsRequest { page_size, page_token: "no token".into() };
        server.clients().list_clients(request).await
    };
    assert_wrong(list(-1).await, "INVALID_FIELD", &["page_size"]);
    assert_wrong(list(1).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    server.stop().await;
}

#[tokio::test]
async fn a_policy_is_changed_and_read_without_a_protocol() {
    let server = TestServer::start().await;
    let engine = &server.context.engine;
    clients::create(engine, client("acme"), Idempotency::none()).await.unwrap();
    let input = PolicyInput {
        client_id: "acme".into(),
        monthly_warning: Some("5".into()),
        anomaly_enabled: Some(false),
        ..Default::default()
    };
    let names = ["monthly_warning".to_owned(), "anomaly_enabled".to_owned()];
    policies::update(engine, Some(input), &names).await.unwrap();
    let read = policies::get(engine, "acme").await.unwrap();
    assert_eq!((read.policy.monthly_warning.to_string().as_str(), read.policy.anomaly_enabled), ("5", false));
    assert_eq!(read.overridden_fields, ["anomaly_enabled", "monthly_warning"]);
    server.stop().await;
}

#[tokio::test]
async fn a_key_is_created_and_a_charge_estimated_without_a_protocol() {
    let server = TestServer::start().await;
    let engine = &server.context.engine;
    let grant = GrantInput { scope: Some(Scope::Read), client_ids: vec![], all_clients: true };
    let key = NewKey { name: "dashboard".into(), grants: vec![grant], ..Default::default() };
    let Created::New(made) = keys::create(engine, key, Idempotency::none()).await.unwrap() else {
        panic!("a key without a request id is new")
    };
    assert_eq!(keys::get(engine, &made.key.key_id).await.unwrap().name, "dashboard");
    let wrong = keys::create(engine, NewKey::default(), Idempotency::none()).await.err().unwrap();
    let fields: Vec<&str> = wrong.fields.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["api_key.name", "api_key.grants"]);

    let others = BTreeMap::new();
    let measures = RawMeasures {
        units: "2",
        input_tokens: 0,
        output_tokens: 0,
        cached_input_tokens: 0,
        amount: "",
        reported_cost: "",
        others: &others,
    };
    let input =
        EstimateInput { client_id: "", service: "sms", operation: "", model: "", service_tier: "", measures, event_time: None };
    let estimate = estimate::estimate(engine, &Caller::anybody(), input).await.unwrap();
    assert!(estimate.price.is_some());
    assert_eq!(estimate.charge.unwrap().0.to_string(), "0.015");
    server.stop().await;
}
