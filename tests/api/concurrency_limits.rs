//! Limits of concurrent calls and memory. Calls above a limit are rejected at once and succeed later.

use crate::harness::*;
use crate::raw;
use crate::subscriptions::Follower;
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

/// Returns a message with its prefix.
fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    [&raw::prefix(message.len() as u32)[..], &message].concat().into()
}

fn assert_busy(status: &Status, limit: &str) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no details in {status:?}"));
    assert_eq!((status.code(), &*info.reason), (Code::ResourceExhausted, "SERVER_BUSY"));
    assert_eq!((&*info.metadata["limit"], info.metadata["request_id"].is_empty()), (limit, false));
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
}

#[tokio::test]
async fn a_call_above_the_limit_is_rejected_with_a_retry_time() {
    let server = TestServer::start_with(&["--calls-max=1"], Clock::system()).await;
    let stalled = server.stall_writers().await;
    let (mut first, mut second) = (server.usage(), server.usage());
    let track = |key: &str| TrackUsageRequest {
        event: Some(UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", "1") }),
    };
    let request = track("first");
    let first = tokio::spawn(async move { first.track_usage(request).await });
    server.wait_for_stalled_writer().await;
    assert_busy(&second.track_usage(track("second")).await.unwrap_err(), "calls");
    // Streams have their own slots.
    drop(Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap());
    stalled.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    wait_until(async || second.clone().track_usage(track("second")).await.is_ok()).await;
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn the_work_of_a_cancelled_call_keeps_its_slot_until_it_is_done() {
    let server = TestServer::start_with(&["--calls-max=1"], Clock::system()).await;
    let mut tx = server.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE clients").execute(&mut *tx).await.unwrap();
    let list = async |patience| {
        let mut request = Request::new(ListClientsRequest::default());
        request.set_timeout(patience);
        server.clients().list_clients(request).await
    };
    // The status is the server's, or that of the caller's own timer if this process is slow.
    let code = list(Duration::from_millis(200)).await.unwrap_err().code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
    assert_busy(&list(Duration::from_secs(5)).await.unwrap_err(), "calls");
    tx.rollback().await.unwrap();
    wait_until(async || list(Duration::from_secs(5)).await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_above_the_limit_is_rejected_with_a_retry_time() {
    let server = TestServer::start_with(&["--streams-max=1"], Clock::system()).await;
    let subscribe = async || Follower::begin(&server, SubscribeAlertsRequest::default()).await;
    let first = subscribe().await.unwrap();
    assert_busy(&subscribe().await.err().unwrap(), "streams");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(first);
    wait_until(async || subscribe().await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn large_requests_share_a_memory_budget_and_do_not_block_small_ones() {
    let server = TestServer::start_with(&["--request-bytes-max=67108864"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let part = Bytes::from(vec![0; 9 * MIB]);
    let mut first = raw::begin(&mut connection, BATCH, &[]);
    assert!(first.send(raw::prefix(16 * MIB as u32)).await && first.send(part.clone()).await);
    // A request of 9 MiB needs 36 MiB once it is decoded, and the budget is 64 MiB.
    // Uses another connection, because all connections share the budget.
    let mut other = raw::connect(&server.address).await;
    let mut second = raw::begin(&mut other, BATCH, &[]);
    second.send(raw::prefix(16 * MIB as u32)).await;
    second.send(part.clone()).await;
    assert_busy(&second.status().await, "request bytes");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(first);
    wait_until(async || {
        let mut third = raw::begin(&mut other.clone(), BATCH, &[]);
        third.send(raw::prefix(16 * MIB as u32)).await && third.send(part.clone()).await
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_releases_the_memory_of_each_message() {
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
async fn a_request_that_does_not_arrive_is_ended_before_its_deadline() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let started = Instant::now();
    let mut call = raw::begin(&mut connection, TRACK, &[("grpc-timeout", "1H")]);
    call.send(raw::prefix(100)).await;
    let status = tokio::time::timeout(Duration::from_secs(5), call.status()).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("did not arrive"), "{status:?}");
    assert!(started.elapsed() >= Duration::from_secs(1));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_with_an_incomplete_message_ends_and_its_acknowledged_events_are_recorded() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let mut call = raw::begin(&mut connection, STREAM, &[]);
    call.send(framed(&StreamUsageRequest { event: Some(event("acme", "sms", "1")) })).await;
    wait_until(async || server.sql("SELECT FROM usage_events").await == 1).await;
    call.send(raw::prefix(100)).await;
    let status = tokio::time::timeout(Duration::from_secs(5), call.status()).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("acknowledged events are recorded"), "{status:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_call_keeps_its_slot_until_its_response_is_read() {
    let server = TestServer::start_with(&["--calls-max=1"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let stream = tokio::net::TcpStream::connect(server.address.trim_start_matches("http://")).await.unwrap();
    // The window is zero, so the server can send no byte of the response.
    let (mut connection, driver) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(driver);
    let mut unread = raw::begin(&mut connection, "/metering.v1.ClientService/GetClient", &[]);
    let get = GetClientRequest { client_id: "acme".into() };
    unread.send(framed(&get)).await;
    unread.body.send_data(Bytes::new(), true).unwrap();
    // The handler is done and has sent the headers.
    let answer = unread.answer.await.unwrap();
    assert_busy(&server.clients().get_client(get.clone()).await.unwrap_err(), "calls");
    drop((answer, unread.body));
    wait_until(async || server.clients().get_client(get.clone()).await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn health_watches_have_their_own_slots_on_each_connection() {
    let server = TestServer::start_with(&["--streams-max=1"], Clock::system()).await;
    let mut health = HealthClient::new(server.channel());
    let mut watches = vec![];
    for _ in 0..16 {
        watches.push(health.watch(HealthCheckRequest::default()).await.unwrap());
    }
    let rejected = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_busy(&rejected, "public streams of the connection");
    health.check(HealthCheckRequest::default()).await.unwrap();
    let mut other = HealthClient::new(server.channel());
    watches.push(other.watch(HealthCheckRequest::default()).await.unwrap());
    let follower = Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap();
    drop(watches);
    wait_until(async || health.clone().watch(HealthCheckRequest::default()).await.is_ok()).await;
    drop(follower);
    server.stop().await;
}

#[tokio::test]
async fn a_stalled_usage_stream_does_not_block_other_calls_of_its_connection() {
    let server = TestServer::start_with(&["--queue-events-max=10", "--writers=1"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    let mut connection = raw::connect(&server.address).await;
    let mut stream = raw::begin(&mut connection, STREAM, &[]);
    // The events have an unknown field of 100 KiB, as a later version may send.
    let mut message = StreamUsageRequest { event: Some(event("acme", "sms", "1")) }.encode_to_vec();
    prost::encoding::string::encode(2_000, &"x".repeat(100 * 1024), &mut message);
    let message = Bytes::from([&raw::prefix(message.len() as u32)[..], &message].concat());
    let sending = async { while stream.send(message.clone()).await {} };
    // Wait until the server accepts no more.
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
    tokio::time::timeout(Duration::from_secs(5), others).await.expect("other calls of the connection succeed");
    stalled.rollback().await.unwrap();
    server.stop().await;
}
