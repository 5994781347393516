//! Callers with and without keys cannot block others: slots and bytes are shared, and unread responses end.

use crate::harness::*;
use crate::key_server::*;
use crate::raw::{self, OpenCall};
use bytes::Bytes;
use h2::client::SendRequest;
use meterd::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const LIST_PRICES: &str = "/metering.v1.CatalogService/ListPrices";
const LIST_EVENTS: &str = "/metering.v1.UsageService/ListUsageEvents";

fn bearer(token: &Token) -> String {
    format!("Bearer {}", token.token)
}

async fn begin(
    connection: &mut SendRequest<Bytes>,
    path: &str,
    token: &Token,
    message: &impl prost::Message,
) -> OpenCall {
    let mut ready = connection.clone().ready().await.unwrap();
    let mut call = raw::begin(&mut ready, path, &[("authorization", &bearer(token))]);
    call.send_all(message).await;
    call
}

/// Returns the limit for which a call was rejected.
fn limit_of(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!((status.code(), &*info.reason), (Code::ResourceExhausted, "SERVER_BUSY"));
    info.metadata["limit"].clone()
}

fn assert_unread(status: &Status) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!((status.code(), &*info.reason), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert!(status.message().contains("read too little") && !info.metadata["request_id"].is_empty(), "{status:?}");
}

async fn end_of(call: OpenCall) -> Status {
    tokio::time::timeout(Duration::from_secs(10), call.status()).await.expect("the call ends in time")
}

async fn track(server: &TestServer, token: &Token) -> Result<(), Status> {
    let event = Some(event("acme", "sms", "1"));
    usage_as(server, token).track_usage(TrackUsageRequest { event }).await.map(drop)
}

async fn check(server: &TestServer) -> Result<(), Status> {
    HealthClient::new(server.channel()).check(HealthCheckRequest::default()).await.map(drop)
}

#[tokio::test]
async fn calls_without_a_message_take_no_slot_and_the_oldest_is_ended() {
    let key_server = KeyServer::start_with(&["--calls-max=4"], Clock::system()).await;
    let mut calls = vec![];
    for _ in 0..3 {
        let mut connection = raw::connect(&key_server.server.address).await;
        for _ in 0..500 {
            let mut ready = connection.clone().ready().await.unwrap();
            calls.push(raw::begin(&mut ready, CHECK, &[]));
        }
        let mut with_key = connection.clone().ready().await.unwrap();
        let headers = [("authorization", &*bearer(&key_server.admin))];
        calls.push(raw::begin(&mut with_key, LIST_PRICES, &headers));
        connection = connection.ready().await.unwrap();
        drop(connection);
    }
    track(&key_server.server, &key_server.admin).await.unwrap();
    check(&key_server.server).await.unwrap();
    // 1,000 calls may wait, so of 1,500 the oldest have ended.
    let first = end_of(calls.remove(0)).await;
    assert_eq!(limit_of(&first), "calls without a message");
    let last = calls.pop().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), last.status()).await.is_err());
    key_server.server.stop().await;
}

#[tokio::test]
async fn a_key_with_unread_responses_uses_only_its_own_slots() {
    let flags = ["--calls-max=8", "--unread-timeout-seconds=2"];
    let key_server = KeyServer::start_with(&flags, Clock::system()).await;
    let hot = key_server.key(Scope::Read, &[]).await;
    let mut calls = vec![];
    let started = Instant::now();
    for _ in 0..2 {
        let mut connection = raw::connect_unread(&key_server.server.address).await;
        calls.push(begin(&mut connection, LIST_PRICES, &hot, &ListPricesRequest::default()).await);
    }
    // Wait until their handlers are done.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut connection = raw::connect_unread(&key_server.server.address).await;
    let third = begin(&mut connection, LIST_PRICES, &hot, &ListPricesRequest::default()).await;
    assert_eq!(limit_of(&end_of(third).await), "calls of the key");
    track(&key_server.server, &key_server.admin).await.unwrap();
    check(&key_server.server).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "the responses still wait");
    // Now they have ended, and their slots are free.
    for call in calls {
        assert_unread(&end_of(call).await);
    }
    let free = begin(&mut connection, LIST_PRICES, &hot, &ListPricesRequest::default()).await;
    assert_unread(&end_of(free).await);
    key_server.server.stop().await;
}

/// Makes a call without reading its response. Returns its status and how long it took.
async fn unread(server: &TestServer, path: &str, token: &Token, message: impl prost::Message) -> (Status, Duration) {
    let mut connection = raw::connect_unread(&server.address).await;
    let call = begin(&mut connection, path, token, &message).await;
    let started = Instant::now();
    (end_of(call).await, started.elapsed())
}

#[tokio::test]
async fn an_unread_response_of_any_method_ends_with_a_status() {
    let key_server = KeyServer::start_with(&["--unread-timeout-seconds=1"], Clock::system()).await;
    let (server, admin) = (&key_server.server, &key_server.admin);
    track(server, admin).await.unwrap();
    let events = ListUsageEventsRequest { client_id: "acme".into(), ..Default::default() };
    let stream = StreamUsageRequest { event: Some(event("acme", "sms", "1")) };
    let (prices, events, alerts, export, stream) = tokio::join!(
        unread(server, LIST_PRICES, admin, ListPricesRequest::default()),
        unread(server, LIST_EVENTS, admin, events),
        unread(server, "/metering.v1.AlertService/SubscribeAlerts", admin, SubscribeAlertsRequest::default()),
        unread(server, "/metering.v1.UsageService/ExportUsage", admin, ExportUsageRequest::default()),
        unread(server, "/metering.v1.UsageService/StreamUsage", admin, stream),
    );
    let health = unread(server, "/grpc.health.v1.Health/Watch", admin, HealthCheckRequest::default()).await;
    for (status, duration) in [prices, events, alerts, export, stream, health] {
        assert_unread(&status);
        assert!((0.9..5.0).contains(&duration.as_secs_f64()), "{duration:?}");
    }
    key_server.server.stop().await;
}

/// Records events that fill a page of eight megabytes.
async fn fill(server: &TestServer, token: &Token) {
    let kind = prost_types::value::Kind::StringValue("x".repeat(8_000));
    let metadata = prost_types::Struct { fields: [("k".into(), prost_types::Value { kind: Some(kind) })].into() };
    let events = vec![UsageEvent { metadata: Some(metadata), ..event("acme", "sms", "1") }; 1_000];
    let batch = BatchTrackUsageRequest { events, backfill: false, ..Default::default() };
    let mut usage = usage_as(server, token).max_encoding_message_size(16 << 20);
    assert_eq!(usage.batch_track_usage(batch).await.unwrap().into_inner().accepted_count, 1_000);
}

#[tokio::test]
async fn unread_responses_share_a_byte_budget_per_connection_and_per_key() {
    let key_server = KeyServer::start_with(&["--answer-bytes-max=134217728"], Clock::system()).await;
    fill(&key_server.server, &key_server.admin).await;
    let (hot, other) = (key_server.key(Scope::Read, &[]).await, key_server.key(Scope::Read, &[]).await);
    let page = ListUsageEventsRequest { client_id: "acme".into(), page_size: 1_000, ..Default::default() };
    // Each response has 8 MiB. The limit is 16 MiB per connection and 32 MiB per key.
    let mut kept = vec![];
    for (connections, limit) in [(1, "answer bytes of the connection"), (2, "answer bytes of the key")] {
        let mut connection = raw::connect_unread(&key_server.server.address).await;
        for number in 0..2 {
            let mut call = begin(&mut connection, LIST_EVENTS, &hot, &page).await;
            let answer = tokio::time::timeout(Duration::from_secs(10), &mut call.answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            let rejected = tokio::time::timeout(Duration::from_millis(500), body.trailers()).await;
            match (connections, number, rejected) {
                (_, 0, Err(_)) => kept.push((call.body, body, connection.clone())),
                (_, 1, Ok(trailers)) => {
                    let status = Status::from_header_map(&trailers.unwrap().unwrap()).unwrap();
                    assert_eq!(limit_of(&status), limit);
                }
                (_, _, Err(_)) => kept.push((call.body, body, connection.clone())),
                (_, _, Ok(_)) => panic!("response {number} of connection {connections} was rejected"),
            }
        }
    }
    let mut usage = usage_as(&key_server.server, &other).max_decoding_message_size(16 << 20);
    assert_eq!(usage.list_usage_events(page.clone()).await.unwrap().into_inner().events.len(), 1_000);
    // Small responses are still sent, also with the same key.
    let mut same = usage_as(&key_server.server, &hot);
    let small = ListUsageEventsRequest { page_size: 1, ..page.clone() };
    drop(same.list_usage_events(small).await);
    same.get_current_month_usage(GetCurrentMonthUsageRequest { client_id: "acme".into(), ..Default::default() })
        .await
        .unwrap();
    drop(kept);
    wait_until(async || {
        let mut again = usage_as(&key_server.server, &hot).max_decoding_message_size(16 << 20);
        again.list_usage_events(page.clone()).await.is_ok()
    })
    .await;
    key_server.server.stop().await;
}

#[tokio::test]
async fn a_key_can_use_half_of_the_exports() {
    let key_server = KeyServer::start_with(&["--exports-max=2"], Clock::system()).await;
    for _ in 0..2 {
        fill(&key_server.server, &key_server.admin).await;
    }
    let (hot, other) = (key_server.key(Scope::Read, &[]).await, key_server.key(Scope::Read, &[]).await);
    let export = async |token: &Token| {
        let stream = usage_as(&key_server.server, token).export_usage(ExportUsageRequest::default()).await?;
        let mut stream = stream.into_inner();
        stream.message().await?;
        Ok::<_, Status>(stream)
    };
    let first = export(&hot).await.unwrap();
    assert_error(export(&hot).await, Code::ResourceExhausted, "TOO_MANY_EXPORTS");
    export(&other).await.unwrap();
    drop(first);
    wait_until(async || export(&hot).await.is_ok()).await;
    key_server.server.stop().await;
}

#[tokio::test]
async fn a_key_can_use_a_quarter_of_the_streams_and_of_the_subscriptions() {
    for flags in [["--streams-max=8", "--subscriptions-max=100"], ["--streams-max=100", "--subscriptions-max=8"]] {
        let key_server = KeyServer::start_with(&flags, Clock::system()).await;
        let subscribe = async |token: &Token| {
            let mut stream = alerts_as(&key_server.server, token)
                .subscribe_alerts(SubscribeAlertsRequest::default())
                .await?
                .into_inner();
            stream.message().await?;
            Ok::<_, Status>(stream)
        };
        let hot = key_server.key(Scope::Read, &[]).await;
        let _open = [subscribe(&hot).await.unwrap(), subscribe(&hot).await.unwrap()];
        assert_eq!(subscribe(&hot).await.unwrap_err().code(), Code::ResourceExhausted);
        subscribe(&key_server.admin).await.unwrap();
        key_server.server.stop().await;
    }
}

#[tokio::test]
async fn a_call_with_two_messages_is_rejected_and_records_nothing() {
    let server = TestServer::start().await;
    let event = |key: &str| UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", "1") };
    let two = |messages: [Vec<u8>; 2]| {
        messages.map(|message| [&raw::prefix(message.len() as u32)[..], &message].concat()).concat()
    };
    let track = ["a", "b"].map(|key| prost::Message::encode_to_vec(&TrackUsageRequest { event: Some(event(key)) }));
    let batch = ["a", "b"].map(|key| {
        prost::Message::encode_to_vec(&BatchTrackUsageRequest {
            events: vec![event(key)],
            backfill: false,
            ..Default::default()
        })
    });
    for (rpc, body) in
        [("TrackUsage", two(track)), ("BatchTrackUsage", two(batch)), ("ExportUsage", two(Default::default()))]
    {
        let mut connection = raw::connect(&server.address).await;
        let mut call = raw::begin(&mut connection, &format!("/metering.v1.UsageService/{rpc}"), &[]);
        call.send(body.into()).await;
        drop(call.body.send_data(Bytes::new(), true));
        assert_error::<()>(Err(call.status().await), Code::InvalidArgument, "MESSAGE_INVALID");
    }
    server.assert_exact(0).await;
    server.stop().await;
}
