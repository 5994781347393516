//! Deadlines, full queues and the orderly stop.

use crate::harness::*;
use crate::http;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn keyed(key: &str) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", "1") }
}

/// Waits until a condition holds: a bound, not a guess at how long it takes.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(4), holds).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Waits until a writer has taken a batch and waits for the lock that a test holds.
async fn writer_stands(server: &TestServer) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event = 'advisory' AND query LIKE 'BEGIN; SELECT pg_advisory_xact_lock_shared(%'";
    until("a writer waits", async || sqlx::query_scalar::<_, i64>(waiting).fetch_one(&server.pool).await.unwrap() == 1)
        .await;
}

#[tokio::test]
async fn a_deadline_is_kept_and_the_event_is_counted_once_after_it_is_sent_again() {
    let server = TestServer::start_with(&["--writers=1"], Clock::system()).await;
    server.client_in("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    // The first stands in the writer, the second waits behind it.
    for key in ["k1", "k2"] {
        let request = TrackUsageRequest { event: Some(keyed(key)) };
        let path = "/metering.v1.UsageService/TrackUsage";
        let answer = http::grpc_web(&server.address, path, &request, "Grpc-Timeout: 200m\r\n").await;
        assert_eq!(answer.header("content-type"), "application/grpc-web+proto");
        let status = Status::from_header_map(&answer.headers).expect("a status in the headers");
        assert_refused::<()>(Err(status), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    assert_eq!(server.context.engine.ingest.depth(), 1);
    stalled.rollback().await.unwrap();
    until("the queue is empty", async || server.context.engine.ingest.depth() == 0).await;
    for key in ["k1", "k2"] {
        server.track(keyed(key)).await.unwrap();
    }
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_call_without_a_deadline_has_the_servers() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1"], Clock::system()).await;
    let stalled = server.stall_writers().await;
    assert_refused(server.track(keyed("k")).await, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    stalled.rollback().await.unwrap();
    server.track(keyed("k")).await.unwrap();
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_tells_a_lone_caller_when_to_come_back_and_leaves_room_for_others() {
    let server = TestServer::start_with(&["--queue-events-max=10", "--writers=1"], Clock::system()).await;
    server.client_in("acme", "UTC").await;
    server.client_in("beta", "UTC").await;
    let stalled = server.stall_writers().await;
    let send = |event: UsageEvent| {
        let mut usage = server.usage();
        tokio::spawn(async move { usage.track_usage(TrackUsageRequest { event: Some(event) }).await })
    };
    let mut calls = vec![send(keyed("first"))];
    writer_stands(&server).await;
    calls.extend((0..5).map(|number| send(keyed(&format!("k{number}")))));
    until("five wait", async || server.context.engine.ingest.depth() == 5).await;
    let status = assert_refused(server.track(keyed("more")).await, Code::ResourceExhausted, "QUEUE_FULL");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    calls.push(send(event("beta", "sms", "1")));
    until("a neighbour has room", async || server.context.engine.ingest.depth() == 6).await;
    // A batch waits for room instead.
    let mut usage = server.usage();
    let request =
        BatchTrackUsageRequest { events: vec![event("acme", "sms", "1"); 50], backfill: false, ..Default::default() };
    let batch = tokio::spawn(async move { usage.batch_track_usage(request).await });
    stalled.rollback().await.unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(batch.await.unwrap().unwrap().into_inner().accepted_count, 50);
    server.track(keyed("more")).await.unwrap();
    server.assert_exact(58).await;
    server.stop().await;
}

#[tokio::test]
async fn an_orderly_stop_settles_what_is_queued_and_ends_streams_with_the_reason() {
    let server = TestServer::start_with(&["--writers=1"], Clock::system()).await;
    server.client_in("acme", "UTC").await;
    let database_url = server.database_url.clone();
    let (messages, receiver) = mpsc::channel(1);
    messages.send(StreamUsageRequest { event: Some(keyed("streamed")) }).await.unwrap();
    let mut acks = server.usage().stream_usage(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(acks.message().await.unwrap().unwrap().settled_count, 1);

    let stalled = server.stall_writers().await;
    let send = |key: String| {
        let mut usage = server.usage();
        tokio::spawn(async move { usage.track_usage(TrackUsageRequest { event: Some(keyed(&key)) }).await })
    };
    let mut calls = vec![send("first".into())];
    writer_stands(&server).await;
    calls.extend((0..5).map(|number| send(format!("k{number}"))));
    until("five wait", async || server.context.engine.ingest.depth() == 5).await;
    let ingest = server.context.engine.ingest.clone();
    let stopping = tokio::spawn(server.stop());
    let refused = acks.message().await;
    assert_refused(refused, Code::Unavailable, "SHUTTING_DOWN");
    assert_eq!(ingest.depth(), 5, "the stop waits for the writer");
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
async fn a_stream_is_read_no_further_than_ten_thousand_events_ahead_of_what_is_settled() {
    const MESSAGES: usize = 60_000;
    let server = TestServer::start_with(&["--queue-events-max=1000000"], Clock::system()).await;
    server.client_in("acme", "UTC").await;
    let stalled = server.stall_writers().await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = sent.clone();
    let messages = (0..MESSAGES).map(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Large enough that all of them do not fit into the windows on the way.
        StreamUsageRequest { event: Some(UsageEvent { external_id: "x".repeat(256), ..event("acme", "sms", "1") }) }
    });
    let mut acks = server.usage().stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let sent = || sent.load(std::sync::atomic::Ordering::Relaxed);
    // One writer has taken a batch, of up to a thousand, and stands; the rest waits in the queue.
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
async fn a_client_whose_month_is_held_for_long_does_not_stop_the_others_of_its_writer() {
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
    // Beside it, and in one batch with it.
    let both = tokio::spawn({
        let mut usage = server.usage();
        async move {
            let events = vec![event("held", "sms", "1"), event("free", "sms", "1")];
            usage.batch_track_usage(BatchTrackUsageRequest { events, backfill: false, ..Default::default() }).await
        }
    });
    for _ in 0..3 {
        let free = tokio::time::timeout(Duration::from_secs(4), server.track(event("free", "sms", "1"))).await;
        free.expect("the neighbour is answered").unwrap();
    }
    assert!(!stalled.is_finished());
    holder.rollback().await.unwrap();
    stalled.await.unwrap().unwrap();
    assert_eq!(both.await.unwrap().unwrap().into_inner().accepted_count, 2);
    server.assert_exact(8).await;
    server.stop().await;
}
