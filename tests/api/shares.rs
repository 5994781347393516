//! Nobody without a key, and nobody with one, shuts others out: places and bytes are shared, and unread answers end.

use crate::guarded::*;
use crate::harness::*;
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

/// The limit that a call is refused for.
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
    tokio::time::timeout(Duration::from_secs(10), call.status()).await.expect("the call ends")
}

async fn track(server: &TestServer, token: &Token) -> Result<(), Status> {
    let event = Some(event("acme", "sms", "1"));
    usage_as(server, token).track_usage(TrackUsageRequest { event }).await.map(drop)
}

async fn check(server: &TestServer) -> Result<(), Status> {
    HealthClient::new(server.channel()).check(HealthCheckRequest::default()).await.map(drop)
}

#[tokio::test]
async fn calls_whose_message_does_not_come_take_no_place_and_the_longest_wait_ends() {
    let guarded = Guarded::start_with(&["--calls-max=4"], Clock::system()).await;
    let mut calls = vec![];
    for _ in 0..3 {
        let mut connection = raw::connect(&guarded.server.address).await;
        for _ in 0..500 {
            let mut ready = connection.clone().ready().await.unwrap();
            calls.push(raw::begin(&mut ready, CHECK, &[]));
        }
        let mut with_key = connection.clone().ready().await.unwrap();
        let headers = [("authorization", &*bearer(&guarded.admin))];
        calls.push(raw::begin(&mut with_key, LIST_PRICES, &headers));
        connection = connection.ready().await.unwrap();
        drop(connection);
    }
    track(&guarded.server, &guarded.admin).await.unwrap();
    check(&guarded.server).await.unwrap();
    // 1,000 may wait: of 1,500, those that came first have ended.
    let first = end_of(calls.remove(0)).await;
    assert_eq!(limit_of(&first), "calls without a message");
    let last = calls.pop().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), last.status()).await.is_err());
    guarded.server.stop().await;
}

#[tokio::test]
async fn a_key_whose_answers_are_not_read_uses_up_its_own_places_and_no_others() {
    let flags = ["--calls-max=8", "--unread-timeout-seconds=2"];
    let guarded = Guarded::start_with(&flags, Clock::system()).await;
    let hot = guarded.key(Scope::Read, &[]).await;
    let mut calls = vec![];
    let begun = Instant::now();
    for _ in 0..2 {
        let mut connection = raw::connect_unread(&guarded.server.address).await;
        calls.push(begin(&mut connection, LIST_PRICES, &hot, &ListPricesRequest::default()).await);
    }
    // Until their handlers are done.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut connection = raw::connect_unread(&guarded.server.address).await;
    let third = begin(&mut connection, LIST_PRICES, &hot, &ListPricesRequest::default()).await;
    assert_eq!(limit_of(&end_of(third).await), "calls of the key");
    track(&guarded.server, &guarded.admin).await.unwrap();
    check(&guarded.server).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "the answers still wait");
    // By then they have ended, and their places are free.
    for call in calls {
        assert_unread(&end_of(call).await);
    }
    let free = begin(&mut connection, LIST_PRICES, &hot, &ListPricesRequest::default()).await;
    assert_unread(&end_of(free).await);
    guarded.server.stop().await;
}

/// The status of a call whose answer is never read, with how long it took.
async fn unread(server: &TestServer, path: &str, token: &Token, message: impl prost::Message) -> (Status, Duration) {
    let mut connection = raw::connect_unread(&server.address).await;
    let call = begin(&mut connection, path, token, &message).await;
    let begun = Instant::now();
    (end_of(call).await, begun.elapsed())
}

#[tokio::test]
async fn an_answer_that_is_not_read_ends_with_a_status_whatever_the_method() {
    let guarded = Guarded::start_with(&["--unread-timeout-seconds=1"], Clock::system()).await;
    let (server, admin) = (&guarded.server, &guarded.admin);
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
    for (status, took) in [prices, events, alerts, export, stream, health] {
        assert_unread(&status);
        assert!((0.9..5.0).contains(&took.as_secs_f64()), "{took:?}");
    }
    guarded.server.stop().await;
}

/// Eight megabytes on one page.
async fn fill(server: &TestServer, token: &Token) {
    let kind = prost_types::value::Kind::StringValue("x".repeat(8_000));
    let metadata = prost_types::Struct { fields: [("k".into(), prost_types::Value { kind: Some(kind) })].into() };
    let events = vec![UsageEvent { metadata: Some(metadata), ..event("acme", "sms", "1") }; 1_000];
    let batch = BatchTrackUsageRequest { events, backfill: false, ..Default::default() };
    let mut usage = usage_as(server, token).max_encoding_message_size(16 << 20);
    assert_eq!(usage.batch_track_usage(batch).await.unwrap().into_inner().accepted_count, 1_000);
}

#[tokio::test]
async fn unread_answers_share_a_budget_of_bytes_per_connection_and_per_key() {
    let guarded = Guarded::start_with(&["--answer-bytes-max=134217728"], Clock::system()).await;
    fill(&guarded.server, &guarded.admin).await;
    let (hot, other) = (guarded.key(Scope::Read, &[]).await, guarded.key(Scope::Read, &[]).await);
    let page = ListUsageEventsRequest { client_id: "acme".into(), page_size: 1_000, ..Default::default() };
    // 8 MiB each: a connection has 16 MiB, a key 32.
    let mut kept = vec![];
    for (connections, limit) in [(1, "answer bytes of the connection"), (2, "answer bytes of the key")] {
        let mut connection = raw::connect_unread(&guarded.server.address).await;
        for number in 0..2 {
            let mut call = begin(&mut connection, LIST_EVENTS, &hot, &page).await;
            let answer = tokio::time::timeout(Duration::from_secs(10), &mut call.answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            let refused = tokio::time::timeout(Duration::from_millis(500), body.trailers()).await;
            match (connections, number, refused) {
                (_, 0, Err(_)) => kept.push((call.body, body, connection.clone())),
                (_, 1, Ok(trailers)) => {
                    let status = Status::from_header_map(&trailers.unwrap().unwrap()).unwrap();
                    assert_eq!(limit_of(&status), limit);
                }
                (_, _, Err(_)) => kept.push((call.body, body, connection.clone())),
                (_, _, Ok(_)) => panic!("answer {number} of connection {connections} was refused"),
            }
        }
    }
    let mut usage = usage_as(&guarded.server, &other).max_decoding_message_size(16 << 20);
    assert_eq!(usage.list_usage_events(page.clone()).await.unwrap().into_inner().events.len(), 1_000);
    // Small answers go on, also of the same key.
    let mut same = usage_as(&guarded.server, &hot);
    let small = ListUsageEventsRequest { page_size: 1, ..page.clone() };
    drop(same.list_usage_events(small).await);
    same.get_current_month_usage(GetCurrentMonthUsageRequest { client_id: "acme".into() }).await.unwrap();
    drop(kept);
    eventually(async || {
        let mut again = usage_as(&guarded.server, &hot).max_decoding_message_size(16 << 20);
        again.list_usage_events(page.clone()).await.is_ok()
    })
    .await;
    guarded.server.stop().await;
}

#[tokio::test]
async fn a_key_has_half_of_the_exports() {
    let guarded = Guarded::start_with(&["--exports-max=2"], Clock::system()).await;
    for _ in 0..2 {
        fill(&guarded.server, &guarded.admin).await;
    }
    let (hot, other) = (guarded.key(Scope::Read, &[]).await, guarded.key(Scope::Read, &[]).await);
    let export = async |token: &Token| {
        let stream = usage_as(&guarded.server, token).export_usage(ExportUsageRequest::default()).await?;
        let mut stream = stream.into_inner();
        stream.message().await?;
        Ok::<_, Status>(stream)
    };
    let first = export(&hot).await.unwrap();
    assert_refused(export(&hot).await, Code::ResourceExhausted, "TOO_MANY_EXPORTS");
    export(&other).await.unwrap();
    drop(first);
    eventually(async || export(&hot).await.is_ok()).await;
    guarded.server.stop().await;
}

#[tokio::test]
async fn a_key_has_a_quarter_of_the_streams_and_of_the_subscriptions() {
    for flags in [["--streams-max=8", "--subscriptions-max=100"], ["--streams-max=100", "--subscriptions-max=8"]] {
        let guarded = Guarded::start_with(&flags, Clock::system()).await;
        let subscribe = async |token: &Token| {
            let mut stream = alerts_as(&guarded.server, token)
                .subscribe_alerts(SubscribeAlertsRequest::default())
                .await?
                .into_inner();
            stream.message().await?;
            Ok::<_, Status>(stream)
        };
        let hot = guarded.key(Scope::Read, &[]).await;
        let _open = [subscribe(&hot).await.unwrap(), subscribe(&hot).await.unwrap()];
        assert_eq!(subscribe(&hot).await.unwrap_err().code(), Code::ResourceExhausted);
        subscribe(&guarded.admin).await.unwrap();
        guarded.server.stop().await;
    }
}

#[tokio::test]
async fn two_messages_in_one_call_are_refused_and_none_is_recorded() {
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
        assert_refused::<()>(Err(call.status().await), Code::InvalidArgument, "MESSAGE_INVALID");
    }
    server.assert_exact(0).await;
    server.stop().await;
}
