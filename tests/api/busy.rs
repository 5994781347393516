//! As much in hand as may be: who comes then is told at once, and comes in later.

use crate::harness::*;
use crate::raw;
use crate::subscribing::Follower;
use bytes::Bytes;
use meterd::clock::Clock;
use meterd::proto::*;
use std::time::{Duration, Instant};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const MIB: usize = 1024 * 1024;

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
    assert_eq!(list(Duration::from_millis(200)).await.unwrap_err().code(), Code::DeadlineExceeded);
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
    let server = TestServer::start_with(&["--request-bytes-max=16777216"], Clock::system()).await;
    let mut connection = raw::connect(&server.address).await;
    let part = Bytes::from(vec![0; 12 * MIB]);
    let mut first = raw::begin(&mut connection, TRACK, &[]);
    assert!(first.send(raw::prefix(16 * MIB as u32)).await && first.send(part.clone()).await);
    // Over another connection: the budget is that of all.
    let mut other = raw::connect(&server.address).await;
    let mut second = raw::begin(&mut other, TRACK, &[]);
    second.send(raw::prefix(16 * MIB as u32)).await;
    second.send(part.clone()).await;
    assert_busy(&second.status().await, "request bytes");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(first);
    eventually(async || {
        let mut third = raw::begin(&mut other.clone(), TRACK, &[]);
        third.send(raw::prefix(16 * MIB as u32)).await && third.send(part.clone()).await
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_lets_go_of_each_message_of_its_own() {
    let server = TestServer::start_with(&["--request-bytes-max=16777216"], Clock::system()).await;
    let message = StreamUsageRequest { event: Some(UsageEvent { units: "1".repeat(MIB), ..event("acme", "sms", "") }) };
    let messages = futures_util::stream::iter(std::iter::repeat_n(message, 40));
    let mut acks = server.usage().stream_usage(messages).await.unwrap().into_inner();
    let mut settled = 0;
    while let Some(ack) = acks.message().await.unwrap() {
        settled = ack.settled_count;
    }
    assert_eq!(settled, 40);
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
