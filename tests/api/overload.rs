//! Deadlines, full queues and a normal stop.

use crate::harness::*;
use crate::http;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn event_with_key(key: &str) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", "1") }
}

/// Waits until a condition is true, with a timeout.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(4), holds).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Waits until a writer has taken a batch and is blocked by a lock of the test.
async fn wait_for_blocked_writer(server: &TestServer) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event = 'advisory' AND query LIKE 'BEGIN; SELECT pg_advisory_xact_lock_shared(%'";
    until("a writer waits", async || sqlx::query_scalar::<_, i64>(waiting).fetch_one(&server.pool).await.unwrap() == 1)
        .await;
}

#[tokio::test]
async fn a_call_fails_at_its_deadline_and_its_resent_event_counts_once() {
    let server = TestServer::start_with(&["--writers=1"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    // The first event is blocked in the writer, and the second waits in the queue.
    for key in ["k1", "k2"] {
        let request = TrackUsageRequest { event: Some(event_with_key(key)) };
        let path = "/metering.v1.UsageService/TrackUsage";
        let answer = http::grpc_web(&server.address, path, &request, "Grpc-Timeout: 200m\r\n").await;
        assert_eq!(answer.header("content-type"), "application/grpc-web+proto");
        let status = Status::from_header_map(&answer.headers).expect("the headers contain a status");
        assert_error::<()>(Err(status), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    assert_eq!(server.context.engine.ingest.depth(), 1);
    stalled.rollback().await.unwrap();
    until("the queue is empty", async || server.context.engine.ingest.depth() == 0).await;
    for key in ["k1", "k2"] {
        server.track(event_with_key(key)).await.unwrap();
    }
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_call_without_a_deadline_gets_the_servers() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1"], Clock::system()).await;
    let stalled = server.stall_writers().await;
    assert_error(server.track(event_with_key("k")).await, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    stalled.rollback().await.unwrap();
    server.track(event_with_key("k")).await.unwrap();
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_rejects_its_client_with_a_retry_time_and_leaves_room_for_others() {
    let server = TestServer::start_with(&["--queue-events-max=10", "--writers=1"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    server.create_client_in_zone("beta", "UTC").await;
    let stalled = server.stall_writers().await;
    let send = |event: UsageEvent| {
        let mut usage = server.usage();
        tokio::spawn(async move { usage.track_usage(TrackUsageRequest { event: Some(event) }).await })
    };
    let mut calls = vec![send(event_with_key("first"))];
    wait_for_blocked_writer(&server).await;
    calls.extend((0..5).map(|number| send(event_with_key(&format!("k{number}")))));
    until("five wait", async || server.context.engine.ingest.depth() == 5).await;
    let status = assert_error(server.track(event_with_key("more")).await, Code::ResourceExhausted, "QUEUE_FULL");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    calls.push(send(event("beta", "sms", "1")));
    until("a neighbour has room", async || server.context.engine.ingest.depth() == 6).await;
    // A batch waits for room in the queue instead.
    let mut usage = server.usage();
    let request =
        BatchTrackUsageRequest { events: vec![event("acme", "sms", "1"); 50], backfill: false, ..Default::default() };
    let batch = tokio::spawn(async move { usage.batch_track_usage(request).await });
    stalled.rollback().await.unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(batch.await.unwrap().unwrap().into_inner().accepted_count, 50);
    server.track(event_with_key("more")).await.unwrap();
    server.assert_exact(58).await;
    server.stop().await;
}

#[tokio::test]
async fn a_normal_stop_settles_queued_events_and_ends_streams_with_the_reason() {
    let server = TestServer::start_with(&["--writers=1"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let database_url = server.database_url.clone();
    let (messages, receiver) = mpsc::channel(1);
    messages.send(StreamUsageRequest { event: Some(event_with_key("streamed")) }).await.unwrap();
    let mut acks = server.usage().stream_usage(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(acks.message().await.unwrap().unwrap().settled_count, 1);

    let stalled = server.stall_writers().await;
    let send = |key: String| {
        let mut usage = server.usage();
        tokio::spawn(async move { usage.track_usage(TrackUsageRequest { event: Some(event_with_key(&key)) }).await })
    };
    let mut calls = vec![send("first".into())];
    wait_for_blocked_writer(&server).await;
    calls.extend((0..5).map(|number| send(format!("k{number}"))));
    until("five wait", async || server.context.engine.ingest.depth() == 5).await;
    let ingest = server.context.engine.ingest.clone();
    let stopping = tokio::spawn(server.stop());
    let rejected = acks.message().await;
    assert_error(rejected, Code::Unavailable, "SHUTTING_DOWN");
    assert_eq!(ingest.depth(), 5, "the stop did not wait for the writer");
    stalled.rollback().await.unwrap();
    for call in calls {
        let result = call.await.unwrap().unwrap().into_inner().result.unwrap();
        assert_eq!(result.outcome(), EventOutcome::Accepted);
    }
    stopping.await.unwrap();
    let restarted = TestServer::replica(&database_url, &[], Clock::system()).await;
    restarted.assert_exact(7).await;
    restarted.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_ten_thousand_unsettled_events_of_a_stream_are_read() {
    const MESSAGES: usize = 60_000;
    let server = TestServer::start_with(&["--queue-events-max=1000000"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = sent.clone();
    let messages = (0..MESSAGES).map(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // So large that all messages together do not fit into the flow-control windows.
        StreamUsageRequest { event: Some(UsageEvent { external_id: "x".repeat(256), ..event("acme", "sms", "1") }) }
    });
    let mut acks = server.usage().stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let sent = || sent.load(std::sync::atomic::Ordering::Relaxed);
    // One writer has taken a batch of up to a thousand events and is blocked. The other events wait in the queue.
    let read = || server.context.engine.ingest.depth();
    until("the server has read as far as it may", async || {
        let before = (read(), sent());
        tokio::time::sleep(Duration::from_millis(300)).await;
        read() >= 9_000 && (read(), sent()) == before
    })
    .await;
    println!("{} messages sent of {MESSAGES}, {} of them in the queue", sent(), read());
    assert!(read() <= 10_000 && sent() < MESSAGES);
    stalled.rollback().await.unwrap();
    let mut settled = 0;
    while let Some(ack) = acks.message().await.unwrap() {
        settled = ack.settled_count;
    }
    assert_eq!(settled, MESSAGES as i64);
    server.assert_exact(MESSAGES as i64).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_locked_month_does_not_block_other_clients_of_its_writer() {
    let server = TestServer::start_with(&["--writers=1"], Clock::system()).await;
    for client_id in ["held", "free"] {
        server.track(event(client_id, "sms", "1")).await.unwrap();
    }
    let mut holder = server.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM usage_months WHERE client_id = 'held' FOR UPDATE").execute(&mut *holder).await.unwrap();
    let mut held = server.usage();
    let stalled =
        tokio::spawn(
            async move { held.track_usage(TrackUsageRequest { event: Some(event("held", "sms", "1")) }).await },
        );
    // One event in a separate call, and one in the same batch.
    let both = tokio::spawn({
        let mut usage = server.usage();
        async move {
            let events = vec![event("held", "sms", "1"), event("free", "sms", "1")];
            usage.batch_track_usage(BatchTrackUsageRequest { events, backfill: false, ..Default::default() }).await
        }
    });
    for _ in 0..3 {
        let free = tokio::time::timeout(Duration::from_secs(4), server.track(event("free", "sms", "1"))).await;
        free.expect("the other client's event is recorded").unwrap();
    }
    assert!(!stalled.is_finished());
    holder.rollback().await.unwrap();
    stalled.await.unwrap().unwrap();
    assert_eq!(both.await.unwrap().unwrap().into_inner().accepted_count, 2);
    server.assert_exact(8).await;
    server.stop().await;
}
