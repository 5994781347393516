//! As much in hand as may be: who comes then is told at once, and comes in later.

use crate::harness::*;
use crate::raw;
use crate::subscribing::Follower;
use bytes::Bytes;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost::Message;
use std::time::{Duration, Instant};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const BATCH: &str = "/metering.v1.UsageService/BatchTrackUsage";
const STREAM: &str = "/metering.v1.UsageService/StreamUsage";
const MIB: usize = 1024 * 1024;

/// A message with its prefix.
fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    [&raw::prefix(message.len() as u32)[..], &message].concat().into()
}

fn assert_busy(status: &Status, limit: &str) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("details in {status:?}"));
    assert_eq!((status.code(), &*info.reason), (Code::ResourceExhausted, "SERVER_BUSY"));
    assert_eq!((&*info.metadata["limit"], info.metadata["request_id"].is_empty()), (limit, false));
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
}

#[tokio::test]
async fn one_call_more_than_may_be_is_told_to_come_back() {
    let server = TestServer::start_with(&["--calls-max=1"], Clock::system()).await;
    let stalled = server.stall_writers().await;
    let (mut first, mut second) = (server.usage(), server.usage());
    let track = |key: &str| TrackUsageRequest {
        event: Some(UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", "1") }),
    };
    let request = track("first");
    let first = tokio::spawn(async move { first.track_usage(request).await });
    server.until_a_writer_waits().await;
    assert_busy(&second.track_usage(track("second")).await.unwrap_err(), "calls");
    // Streams have places of their own.
    drop(Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap());
    stalled.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    eventually(async || second.clone().track_usage(track("second")).await.is_ok()).await;
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn work_whose_caller_has_hung_up_keeps_its_place_until_it_is_done() {
    let server = TestServer::start_with(&["--calls-max=1"], Clock::system()).await;
    let mut tx = server.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE clients").execute(&mut *tx).await.unwrap();
    let list = async |patience| {
        let mut request = Request::new(ListClientsRequest::default());
        request.set_timeout(patience);
        server.clients().list_clients(request).await
    };
    // The server's answer, or, if this process is slow, what the caller's own timer says.
    let code = list(Duration::from_millis(200)).await.unwrap_err().code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
    assert_busy(&list(Duration::from_secs(5)).await.unwrap_err(), "calls");
    tx.rollback().await.unwrap();
    eventually(async || list(Duration::from_secs(5)).await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn one_stream_more_than_may_be_is_told_to_come_back() {
    let server = TestServer::start_with(&["--streams-max=1"], Clock::system()).await;
    let subscribe = async || Follower::begin(&server, SubscribeAlertsRequest::default()).await;
    let first = subscribe().await.unwrap();
    assert_busy(&subscribe().await.err().unwrap(), "streams");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(first);
    eventually(async || subscribe().await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn large_requests_share_a_budget_and_small_ones_go_on_beside_them() {
    let server = TestServer::start_with(&["--request-bytes-max=67108864"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let part = Bytes::from(vec![0; 9 * MIB]);
    let mut first = raw::begin(&mut connection, BATCH, &[]);
    assert!(first.send(raw::prefix(16 * MIB as u32)).await && first.send(part.clone()).await);
    // Of 64 MiB, 9 take 36 once they are decoded.
    // Over another connection: the budget is that of all.
    let mut other = raw::connect(&server.address).await;
    let mut second = raw::begin(&mut other, BATCH, &[]);
    second.send(raw::prefix(16 * MIB as u32)).await;
    second.send(part.clone()).await;
    assert_busy(&second.status().await, "request bytes");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(first);
    eventually(async || {
        let mut third = raw::begin(&mut other.clone(), BATCH, &[]);
        third.send(raw::prefix(16 * MIB as u32)).await && third.send(part.clone()).await
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_lets_go_of_each_message_of_its_own() {
    let server = TestServer::start_with(&["--request-bytes-max=67108864"], Clock::system()).await;
    let message =
        StreamUsageRequest { event: Some(UsageEvent { units: "1".repeat(MIB / 5), ..event("acme", "sms", "") }) };
    let messages = futures_util::stream::iter(std::iter::repeat_n(message, 120));
    let mut acks = server.usage().stream_usage(messages).await.unwrap().into_inner();
    let mut settled = 0;
    while let Some(ack) = acks.message().await.unwrap() {
        settled = ack.settled_count;
    }
    assert_eq!(settled, 120);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_does_not_arrive_is_given_up_whatever_deadline_it_has() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let begun = Instant::now();
    let mut call = raw::begin(&mut connection, TRACK, &[("grpc-timeout", "1H")]);
    call.send(raw::prefix(100)).await;
    let status = tokio::time::timeout(Duration::from_secs(5), call.status()).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("did not arrive"), "{status:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_whose_message_does_not_arrive_says_that_what_was_acknowledged_is_recorded() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let mut call = raw::begin(&mut connection, STREAM, &[]);
    call.send(framed(&StreamUsageRequest { event: Some(event("acme", "sms", "1")) })).await;
    eventually(async || server.sql("SELECT FROM usage_events").await == 1).await;
    call.send(raw::prefix(100)).await;
    let status = tokio::time::timeout(Duration::from_secs(5), call.status()).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("acknowledged events are recorded"), "{status:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_call_keeps_its_place_until_its_answer_is_read() {
    let server = TestServer::start_with(&["--calls-max=1"], Clock::system()).await;
    server.client_in("acme", "UTC").await;
    let stream = tokio::net::TcpStream::connect(server.address.trim_start_matches("http://")).await.unwrap();
    // It makes room for no byte of an answer.
    let (mut connection, driver) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(driver);
    let mut unread = raw::begin(&mut connection, "/metering.v1.ClientService/GetClient", &[]);
    let get = GetClientRequest { client_id: "acme".into() };
    unread.send(framed(&get)).await;
    unread.body.send_data(Bytes::new(), true).unwrap();
    // The handler is done, and has answered with headers.
    let answer = unread.answer.await.unwrap();
    assert_busy(&server.clients().get_client(get.clone()).await.unwrap_err(), "calls");
    drop((answer, unread.body));
    eventually(async || server.clients().get_client(get.clone()).await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn health_watches_have_places_of_their_own_on_each_connection_and_leave_the_others_theirs() {
    let server = TestServer::start_with(&["--streams-max=1"], Clock::system()).await;
    let mut health = HealthClient::new(server.channel());
    let mut watches = vec![];
    for _ in 0..16 {
        watches.push(health.watch(HealthCheckRequest::default()).await.unwrap());
    }
    let refused = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_busy(&refused, "public streams of the connection");
    health.check(HealthCheckRequest::default()).await.unwrap();
    let mut other = HealthClient::new(server.channel());
    watches.push(other.watch(HealthCheckRequest::default()).await.unwrap());
    let follower = Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap();
    drop(watches);
    eventually(async || health.clone().watch(HealthCheckRequest::default()).await.is_ok()).await;
    drop(follower);
    server.stop().await;
}

#[tokio::test]
async fn a_usage_stream_that_stands_still_stops_no_other_call_of_its_connection() {
    let server = TestServer::start_with(&["--queue-events-max=10", "--writers=1"], Clock::system()).await;
    server.client_in("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    let mut connection = raw::connect(&server.address).await;
    let mut stream = raw::begin(&mut connection, STREAM, &[]);
    // Long for what only a later version knows: a field of 100 KiB.
    let mut message = StreamUsageRequest { event: Some(event("acme", "sms", "1")) }.encode_to_vec();
    prost::encoding::string::encode(2_000, &"x".repeat(100 * 1024), &mut message);
    let message = Bytes::from([&raw::prefix(message.len() as u32)[..], &message].concat());
    let sending = async { while stream.send(message.clone()).await {} };
    // Until nothing more is taken.
    let mut sending = std::pin::pin!(sending);
    tokio::time::timeout(Duration::from_secs(3), &mut sending).await.unwrap_err();
    let others = async {
        let mut check = raw::begin(&mut connection.clone(), "/grpc.health.v1.Health/Check", &[]);
        check.send(framed(&HealthCheckRequest::default())).await;
        check.body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(check.status().await.code(), Code::Ok);
        let mut get = raw::begin(&mut connection.clone(), "/metering.v1.ClientService/GetClient", &[]);
        get.send(framed(&GetClientRequest { client_id: "acme".into() })).await;
        get.body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(get.status().await.code(), Code::Ok);
    };
    tokio::time::timeout(Duration::from_secs(5), others).await.expect("others of the connection go on");
    stalled.rollback().await.unwrap();
    server.stop().await;
}
