//! Connections: their number, their age, and connections without calls.

use crate::harness::*;
use crate::subscriptions::{Follower, raise};
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

async fn open(address: &str) -> TcpStream {
    TcpStream::connect(address.trim_start_matches("http://")).await.unwrap()
}

/// Returns after what time the server closes a connection.
async fn closed_after(mut stream: TcpStream) -> Duration {
    let started = Instant::now();
    let mut bytes = vec![];
    drop(
        tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes))
            .await
            .expect("the connection is closed within 30 s"),
    );
    started.elapsed()
}

#[tokio::test]
async fn a_connection_without_a_complete_request_is_closed_after_ten_seconds() {
    let server = TestServer::start().await;
    let say = async |address: &str, bytes: &[u8]| {
        let mut stream = open(address).await;
        stream.write_all(bytes).await.unwrap();
        closed_after(stream).await
    };
    let beginnings: [&[u8]; 4] = [b"", b"PRI * HTTP/2.0", b"GET /healthz", b"POST / HTTP/1.1\r\nHost: test\r\n"];
    let mut waits = vec![];
    for address in [&server.address, &server.http_address] {
        waits.extend(beginnings.map(|bytes| say(address, bytes)));
    }
    let (waits, recorded) =
        tokio::join!(futures_util::future::join_all(waits), server.track(event("acme", "sms", "1")));
    recorded.unwrap();
    for wait in waits {
        assert!((9.5..15.0).contains(&wait.as_secs_f64()), "{wait:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_above_the_limit_replaces_one_that_never_made_a_call() {
    let server = TestServer::start_with(&["--inbound-connections-max=3"], Clock::system()).await;
    let mut usage = server.usage();
    let mut track = async || {
        let request = TrackUsageRequest { event: Some(event("acme", "sms", "1")) };
        usage.track_usage(request).await
    };
    track().await.unwrap();
    let mut health = HealthClient::new(server.channel());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let silent = open(&server.address).await;
    // The time for its first call is over.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut follower = Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap();
    assert!(closed_after(silent).await < Duration::from_secs(5), "a connection without a call was not closed");
    let mut second = Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap();
    assert_eq!(
        watch.message().await.unwrap_err().code(),
        Code::Unavailable,
        "a connection without credentials was not closed"
    );
    // The first connection is idle and is replaced. Its next call opens a new connection.
    let mut third = Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap();
    for _ in 0..20 {
        assert!(closed_after(open(&server.address).await).await < Duration::from_secs(5));
    }
    let alert_id = raise(&server.pool, "acme").await;
    for follower in [&mut follower, &mut second, &mut third] {
        assert_eq!(follower.change().await.unwrap().alert.unwrap().alert_id, alert_id);
    }
    drop(second);
    wait_until(async || server.track(event("acme", "sms", "1")).await.is_ok()).await;
    // The second port has its own count.
    assert_eq!(crate::http::get(&server.http_address, "/healthz").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_too_old_connection_with_a_call_is_replaced_too() {
    let flags = ["--inbound-connections-max=2", "--connection-age-seconds=1", "--connection-age-grace-seconds=60"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    let mut watches = vec![];
    for _ in 0..2 {
        let watch = HealthClient::new(server.channel()).watch(HealthCheckRequest::default()).await;
        let mut watch = watch.unwrap().into_inner();
        watch.message().await.unwrap().unwrap();
        watches.push(watch);
    }
    // Longer than the maximum age plus its jitter.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    wait_until(async || server.track(event("acme", "sms", "1")).await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_of_an_old_connection_ends_with_a_status_and_can_continue_on_a_new_one() {
    let flags = ["--connection-age-seconds=1", "--connection-age-grace-seconds=1"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    let started = Instant::now();
    let mut follower = Follower::begin(&server, SubscribeAlertsRequest::default()).await.unwrap();
    let first = raise(&server.pool, "acme").await;
    assert_eq!(follower.change().await.unwrap().alert.unwrap().alert_id, first);
    let resume_token = follower.token.clone();
    let status = follower.end().await;
    assert!((1.5..10.0).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no details in {status:?}"));
    assert_eq!((status.code(), &*info.reason), (Code::Unavailable, "CONNECTION_AGED"));
    assert!(!info.metadata["request_id"].is_empty() && details.retry_info().is_some());
    let next = raise(&server.pool, "acme").await;
    let request = SubscribeAlertsRequest { resume_token, ..Default::default() };
    let mut follower = Follower::begin(&server, request).await.unwrap();
    assert_eq!(follower.change().await.unwrap().alert.unwrap().alert_id, next);
    server.stop().await;
}

#[tokio::test]
async fn a_call_longer_than_the_age_of_its_connection_ends_with_a_status() {
    let flags = ["--connection-age-seconds=1", "--connection-age-grace-seconds=1"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    let stalled = server.stall_writers().await;
    let status = server.track(event("acme", "sms", "1")).await.unwrap_err();
    let reason = status.get_details_error_info().map(|info| info.reason);
    assert_eq!((status.code(), reason.as_deref()), (Code::Unavailable, Some("CONNECTION_AGED")));
    stalled.rollback().await.unwrap();
    server.stop().await;
}

/// tonic fails calls that it has not sent when it learns that a connection will close. Other libraries send them over
/// the next connection. So a call may fail, but never one that the server has received.
#[tokio::test]
async fn no_sent_call_is_lost_when_its_connection_reaches_its_age() {
    let flags = ["--connection-age-seconds=1", "--connection-age-grace-seconds=1"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    let mut usage = server.usage();
    let started = Instant::now();
    let (mut calls, mut unsent_calls) = (0, 0);
    while started.elapsed() < Duration::from_secs(5) {
        let event_with_key = UsageEvent { idempotency_key: format!("key-{calls}"), ..event("acme", "sms", "1") };
        let request = TrackUsageRequest { event: Some(event_with_key) };
        let answer = match usage.track_usage(request.clone()).await {
            Err(status) if status.code() == Code::Cancelled => {
                unsent_calls += 1;
                usage.track_usage(request).await
            }
            answer => answer,
        };
        // The event is not a duplicate, so the failed call had not reached the server.
        assert_eq!(answer.unwrap().into_inner().result.unwrap().outcome(), EventOutcome::Accepted);
        calls += 1;
    }
    println!("{calls} calls over connections of one second, {unsent_calls} failed unsent");
    assert!(unsent_calls <= 6, "more than one call failed per connection");
    server.assert_exact(calls).await;
    server.stop().await;
}

#[tokio::test]
async fn headers_of_17_kib_are_rejected_without_closing_the_connection() {
    let server = TestServer::start().await;
    let mut usage = server.usage();
    let mut track = async |header: usize| {
        let mut request = Request::new(TrackUsageRequest { event: Some(event("acme", "sms", "1")) });
        let value = MetadataValue::try_from("x".repeat(header)).unwrap();
        request.metadata_mut().insert("x-large", value);
        usage.track_usage(request).await
    };
    track(15 * 1024).await.unwrap();
    let rejected = track(17 * 1024).await.unwrap_err();
    assert!(!matches!(rejected.code(), Code::Ok), "{rejected:?}");
    println!("17 KiB of headers: {rejected:?}");
    track(15 * 1024).await.unwrap();
    // The same with HTTP/1.
    let more = format!("X-Large: {}\r\n", "x".repeat(17 * 1024));
    let path = "/metering.v1.ClientService/ListClients";
    let answer = crate::http::grpc_web(&server.address, path, &ListClientsRequest::default(), &more).await;
    assert_eq!(answer.status, 431);
    server.assert_exact(2).await;
    server.stop().await;
}
