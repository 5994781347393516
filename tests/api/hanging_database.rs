//! A database that hangs: its connections stay open and it does not answer. Callers get an error in time, and no event
//! is lost or counted twice.

use crate::harness::*;
use meterd::proto::{BatchTrackUsageRequest, EventOutcome, StreamUsageRequest, TrackUsageRequest, UsageEvent};
use meterd_engine::clock::Clock;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Code;

const RETRY: Duration = Duration::from_secs(2);
/// The limit that the documentation of the setting states.
const LATER_MAX: Duration = Duration::from_secs(5);

/// A proxy between a server and its database that can be stopped.
struct PausableProxy {
    /// The connections are numbered in the order in which they were opened. Those below this number are stopped.
    paused_below: watch::Sender<usize>,
    opened: Arc<AtomicUsize>,
    url: String,
    _folder: tempfile::TempDir,
    accepting: JoinHandle<()>,
}

impl PausableProxy {
    async fn in_front_of(database_url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let host = database_url.split("host=").nth(1).unwrap().split('&').next().unwrap();
        let target = PathBuf::from(host.replace("%2F", "/")).join(".s.PGSQL.5432");
        let (paused_below, opened) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let (state, counter) = (paused_below.subscribe(), opened.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::Relaxed);
                let (state, target) = (state.clone(), target.clone());
                tokio::spawn(async move {
                    let (from_read, from_write) = from.into_split();
                    let (to_read, to_write) = UnixStream::connect(&target).await.unwrap().into_split();
                    let forth = pass(from_read, to_write, number, state.clone());
                    let back = pass(to_read, from_write, number, state);
                    tokio::select! { () = forth => {}, () = back => {} }
                });
            }
        });
        let url = database_url.replace(host, &folder.path().display().to_string());
        Self { paused_below, opened, url, _folder: folder, accepting }
    }
}

/// Copies bytes, except while the proxy is stopped.
async fn pass(
    mut from: tokio::net::unix::OwnedReadHalf,
    mut to: tokio::net::unix::OwnedWriteHalf,
    number: usize,
    mut paused_below: watch::Receiver<usize>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        if paused_below.wait_for(|below| number >= *below).await.is_err()
            || to.write_all(&buffer[..bytes]).await.is_err()
        {
            return;
        }
    }
}

fn event_with_key(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

fn assert_in_time(started: Instant, what: &str) {
    let waited = started.elapsed();
    println!("{what}: answered after {waited:?}");
    assert!(waited < RETRY + LATER_MAX, "{what} was answered after {waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_in_time_if_the_database_hangs_and_resent_events_count_once() {
    let database_url = fresh_database().await;
    let proxy = PausableProxy::in_front_of(&database_url).await;
    let server = TestServer::replica(&proxy.url, &["--retry-seconds", "2", "--writers", "1"], Clock::system()).await;
    server.track(event_with_key("k0", event("acme", "sms", "1"))).await.unwrap();
    proxy.paused_below.send_replace(usize::MAX);
    let mut callers = JoinSet::new();
    // Some calls arrive while the writer hangs, some while it retries.
    for number in 0..8u64 {
        let mut usage = server.usage();
        callers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(700 * number)).await;
            let event =
                event_with_key(&format!("lone-{number}"), event(["acme", "other"][number as usize % 2], "sms", "1"));
            let mut request = tonic::Request::new(TrackUsageRequest { event: Some(event) });
            request.set_timeout(Duration::from_secs(100));
            let started = Instant::now();
            let status = usage.track_usage(request).await.unwrap_err();
            assert_eq!(error_parts(&status).0, Code::Unavailable);
            assert_eq!(error_parts(&status).1, "DATABASE_UNAVAILABLE");
            assert_in_time(started, "a lone event");
        });
    }
    let mut usage = server.usage();
    let unknown = TrackUsageRequest { event: Some(event("acme", "no_such_service", "1")) };
    callers.spawn(async move {
        let started = Instant::now();
        assert_eq!(usage.track_usage(unknown).await.unwrap_err().code(), Code::Unavailable);
        assert_in_time(started, "an event of an unknown service");
    });
    let batch: Vec<UsageEvent> =
        (0..9_000).map(|number| event_with_key(&format!("b{number}"), event("many", "sms", "1"))).collect();
    let (mut usage, events) = (server.usage(), batch.clone());
    callers.spawn(async move {
        let started = Instant::now();
        let request = BatchTrackUsageRequest { events, ..Default::default() };
        let results = usage.batch_track_usage(request).await.unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.outcome() == EventOutcome::Unavailable));
        assert_in_time(started, "a batch");
    });
    let mut usage = server.usage();
    callers.spawn(async move {
        let started = Instant::now();
        let messages = (0..100).map(|number| event_with_key(&format!("s{number}"), event("streamed", "sms", "1")));
        let messages: Vec<_> = messages.map(|event| StreamUsageRequest { event: Some(event) }).collect();
        let mut acks = usage.stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
        let mut unavailable = 0;
        while let Some(ack) = acks.message().await.unwrap() {
            unavailable += ack.results.len();
        }
        assert_eq!(unavailable, 100);
        assert_in_time(started, "a stream");
    });
    callers.join_all().await;
    proxy.paused_below.send_replace(0);
    for number in 0..8 {
        let again = event_with_key(&format!("lone-{number}"), event(["acme", "other"][number % 2], "sms", "1"));
        server.track(again).await.unwrap();
    }
    let results = server.batch(batch, false).await;
    use EventOutcome::{Accepted, Duplicate};
    assert!(results.iter().all(|result| [Accepted, Duplicate].contains(&result.outcome())));
    let streamed = server.sql("SELECT FROM usage_events WHERE client_id = 'streamed'").await;
    server.assert_exact(1 + 8 + 9_000 + streamed as i64).await;
    server.stop().await;
    proxy.accepting.abort();
}

#[tokio::test]
async fn a_read_replaces_connections_that_hang() {
    let proxy = PausableProxy::in_front_of(&fresh_database().await).await;
    let server = TestServer::replica(&proxy.url, &[], Clock::system()).await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!(server.month("acme").await.totals.unwrap().units, "1");
    // The next read checks its connection, because it was idle for more than a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    proxy.paused_below.send_replace(proxy.opened.load(Ordering::Relaxed));
    let started = Instant::now();
    assert_eq!(server.month("acme").await.totals.unwrap().units, "1");
    let waited = started.elapsed();
    println!("a read on a connection that hangs was answered after {waited:?}");
    assert!((1..5).contains(&waited.as_secs()), "{waited:?}");
    proxy.paused_below.send_replace(0);
    server.stop().await;
    proxy.accepting.abort();
}
