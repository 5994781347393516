//! Streams whose sender writes as many and as small frames as HTTP/2 allows.

use crate::harness::*;
use crate::raw::{self, OpenCall};
use bytes::Bytes;
use h2::client::SendRequest;
use meterd::proto::{StreamUsageRequest, TrackUsageRequest};
use meterd_engine::clock::Clock;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

const STREAM: &str = "/metering.v1.UsageService/StreamUsage";
/// Maximum number of events that a stream has read and not settled, and maximum number of bytes that it has sent and
/// the server has not read. See `src/grpc/usage/stream.rs` and `src/net/http.rs`.
const UNSETTLED_EVENTS_MAX: usize = 10_000;
const STREAM_WINDOW_BYTES: usize = 256 * 1024;

fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    [raw::prefix(bytes.len() as u32).to_vec(), bytes].concat().into()
}

fn message(stream: usize, number: usize) -> Bytes {
    let event = event("acme", "email", "1");
    framed(&StreamUsageRequest {
        event: Some(meterd::proto::UsageEvent { idempotency_key: format!("{stream}-{number}"), ..event }),
    })
}

/// Starts a stream that sends each message in frames of at most `frame` bytes. Returns its end.
fn stream(
    sender: &mut SendRequest<Bytes>,
    number: usize,
    events: usize,
    frame_bytes: usize,
    sent: &Arc<AtomicUsize>,
) -> JoinHandle<Status> {
    let OpenCall { mut body, answer } = raw::begin(sender, STREAM, &[]);
    let sent = sent.clone();
    tokio::spawn(async move {
        // Read from the beginning, so that acknowledgements do not accumulate.
        let ended = tokio::spawn(raw::status(answer));
        for event in 0..events {
            let mut bytes = message(number, event);
            while !bytes.is_empty() {
                let frame = bytes.split_to(frame_bytes.min(bytes.len()));
                assert!(raw::send(&mut body, frame).await, "the server accepts no more of stream {number}");
            }
            sent.fetch_add(1, Ordering::Relaxed);
        }
        body.send_data(Bytes::new(), true).unwrap();
        ended.await.unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_a_stream_in_small_frames_is_settled() {
    let server = TestServer::start().await;
    let mut sender = raw::connect(&server.address).await;
    let sent = Arc::default();
    // One frame per message; several such streams on one connection; one byte per frame.
    for (streams, events, frame_bytes) in [(0..1, 20_000, usize::MAX), (1..9, 5_000, usize::MAX), (9..10, 2_000, 1)] {
        let running: Vec<_> = streams.map(|number| stream(&mut sender, number, events, frame_bytes, &sent)).collect();
        for stream in running {
            let status = stream.await.unwrap();
            assert_eq!(status.code(), Code::Ok, "{status}");
        }
    }
    server.assert_exact(20_000 + 8 * 5_000 + 2_000).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_wait_for_a_stalled_database_and_do_not_block_other_calls() {
    let server = TestServer::start_with(&["--writers=1"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    let mut sender = raw::connect(&server.address).await;
    let (events, streams) = (20_000, 4);
    let sent = Arc::new(AtomicUsize::new(0));
    let running: Vec<_> = (0..streams).map(|number| stream(&mut sender, number, events, usize::MAX, &sent)).collect();
    let mut before = usize::MAX;
    while before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let most = streams * (UNSETTLED_EVENTS_MAX + STREAM_WINDOW_BYTES / message(0, 0).len() + 1);
    println!("{before} of {} events sent beside a stalled database, at most {most}", streams * events);
    assert!(before <= most, "{before} messages sent instead of at most {most}");

    let mut check = raw::begin(&mut sender, "/grpc.health.v1.Health/Check", &[]);
    assert!(check.send(raw::prefix(0)).await);
    check.body.send_data(Bytes::new(), true).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(5), check.status())
        .await
        .expect("the health check is answered in time");
    assert_eq!(status.code(), Code::Ok);

    stalled.rollback().await.unwrap();
    for stream in running {
        let status = stream.await.unwrap();
        assert_eq!(status.code(), Code::Ok, "{status}");
    }
    server.assert_exact((streams * events) as i64).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_a_message_sent_byte_by_byte_succeeds() {
    let server = TestServer::start().await;
    let mut sender = raw::connect(&server.address).await;
    let mut call = raw::begin(&mut sender, "/metering.v1.UsageService/TrackUsage", &[]);
    for byte in framed(&TrackUsageRequest { event: Some(event("acme", "email", "1")) }) {
        assert!(call.send(Bytes::copy_from_slice(&[byte])).await);
    }
    call.body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(call.status().await.code(), Code::Ok);
    server.assert_exact(1).await;
    server.stop().await;
}
