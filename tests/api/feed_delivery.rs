//! Subscribers that disconnect, stall and reconnect while alerts are raised concurrently and servers are restarted.
//! Each must receive every change once and in order.

use crate::harness::*;
use crate::subscriptions::{Follower, client_with_small_window, raise_in, raised};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::subscribe_alerts_response::Message;
use meterd::proto::{AlertEvent, SubscribeAlertsRequest};
use meterd_engine::clock::Clock;
use meterd_store::alerts::feed as alert_feed;
use sqlx::PgPool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request};

const RAISERS: usize = 6;
const CLIENTS: usize = 5;
const SUBSCRIBERS: usize = 50;
/// Number of subscribers that read nothing while there are more changes than a server keeps in memory.
const STALLED: usize = 10;
const STALL_CHANGES: i64 = 5_000;
const DISCONNECTS_EACH: u64 = 10;
const REPLICAS: usize = 3;
const RESTARTS: usize = 20;
const CHANGES_MIN: i64 = 9_000;
/// A subscriber that has not received all changes within this time has lost some.
const PATIENCE: Duration = Duration::from_secs(60);

async fn pause(millis_max: u64) {
    tokio::time::sleep(Duration::from_micros(rand::random_range(0..=millis_max * 1_000))).await;
}

async fn last(pool: &PgPool) -> i64 {
    alert_feed::bounds(pool).await.unwrap().last
}

/// Raises alerts on its own connection until `done` is set. The pauses change the order of beginnings and commits.
async fn raiser(pool: PgPool, done: watch::Receiver<bool>) {
    while !*done.borrow() {
        let mut tx = pool.begin().await.unwrap();
        pause(10).await;
        let (client, count) = (rand::random_range(0..CLIENTS), rand::random_range(1..=15));
        let alerts = raise_in(&mut tx, &format!("client-{client}"), count).await;
        pause(10).await;
        alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
        pause(4).await;
        // Some transactions are rolled back. Their numbers are used again.
        if rand::random_bool(0.1) {
            tx.rollback().await.unwrap();
        } else {
            tx.commit().await.unwrap();
        }
        pause(20).await;
    }
}

/// State that the subscribers share.
struct SharedState {
    pool: PgPool,
    /// The current addresses of the replicas.
    addresses: Mutex<Vec<String>>,
    /// The last number, set when there will be no more changes.
    end: watch::Receiver<Option<i64>>,
    disconnects: AtomicU64,
    errors: AtomicU64,
}

/// Follows the feed from its start and disconnects repeatedly. Returns everything that it received.
async fn subscriber(shared: Arc<SharedState>, number: usize, client_ids: Vec<String>) -> Vec<(i64, String)> {
    let filters = SubscribeAlertsRequest { client_ids, ..Default::default() };
    let (mut received, mut token, mut broken_off) = (vec![], String::new(), 0);
    let mut stall = number < STALLED;
    let mut deadline = None;
    loop {
        let address = shared.addresses.lock().unwrap()[rand::random_range(0..REPLICAS)].clone();
        let channel = Channel::from_shared(address).unwrap().initial_stream_window_size(65_535).connect_lazy();
        let request =
            SubscribeAlertsRequest { from_start: token.is_empty(), resume_token: token.clone(), ..filters.clone() };
        let mut alerts = AlertServiceClient::new(channel);
        let mut follower = match Follower::begin_at(&mut alerts, Request::new(request)).await {
            Ok(follower) => follower,
            Err(status) => {
                assert!(!matches!(status.code(), Code::OutOfRange | Code::InvalidArgument), "{status}");
                shared.errors.fetch_add(1, Ordering::Relaxed);
                pause(50).await;
                continue;
            }
        };
        // The disconnects are spread over the whole feed, because few changes arrive at its end.
        let break_off_after = match (broken_off < DISCONNECTS_EACH, *shared.end.borrow()) {
            (false, _) => usize::MAX,
            (true, Some(_)) => 1,
            (true, None) if filters.client_ids.is_empty() => rand::random_range(0..1_000),
            (true, None) => rand::random_range(0..200),
        };
        for count in 0.. {
            token = follower.token.clone();
            let end = *shared.end.borrow();
            let started = *deadline.get_or_insert_with(Instant::now);
            let at_end = received.last().is_some_and(|(sequence, _)| Some(*sequence) == end);
            if broken_off == DISCONNECTS_EACH && end.is_some() && (at_end || started.elapsed() > PATIENCE) {
                return received;
            }
            if end.is_none() {
                deadline = None;
            }
            if count >= break_off_after {
                broken_off += 1;
                shared.disconnects.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if stall && count == 50 {
                stall = false;
                let begin = last(&shared.pool).await;
                while last(&shared.pool).await < begin + STALL_CHANGES {
                    pause(200).await;
                }
            }
            match follower.message().await {
                Ok(Message::Alert(AlertEvent { sequence, alert, .. })) => {
                    received.push((sequence, alert.unwrap().alert_id));
                }
                Ok(Message::Heartbeat(_)) => {}
                Err(status) => {
                    assert!(!matches!(status.code(), Code::OutOfRange | Code::InvalidArgument), "{status}");
                    break;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_subscriber_misses_a_change_after_disconnects_stalls_and_restarts() {
    let url = fresh_database().await;
    let flags = ["--alert-heartbeat-ms=200", "--stop-timeout-seconds=1"];
    let replica = || TestServer::replica(&url, &flags, Clock::system());
    let mut servers = vec![];
    for _ in 0..REPLICAS {
        servers.push(replica().await);
    }
    let options = meterd_store::database::connect::options(&url).unwrap();
    let pool = meterd_store::database::connect::pool(options, RAISERS as u32 + 4);
    let (done, is_done) = watch::channel(false);
    let mut raisers = JoinSet::new();
    for _ in 0..RAISERS {
        raisers.spawn(raiser(pool.clone(), is_done.clone()));
    }
    let (end, is_end) = watch::channel(None);
    let shared = Arc::new(SharedState {
        pool: pool.clone(),
        addresses: Mutex::new(servers.iter().map(|server| server.address.clone()).collect()),
        end: is_end,
        disconnects: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    });
    let mut subscribers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        // Every second subscriber filters by clients, including the client of the last change.
        let client_ids = match number % 2 {
            0 => vec![],
            _ => vec![format!("client-{}", number % CLIENTS), "client-last".into()],
        };
        let (shared, filter) = (shared.clone(), client_ids.clone());
        subscribers.spawn(async move { (filter, subscriber(shared, number, client_ids).await) });
    }

    for restart in 0..RESTARTS {
        let at = restart % REPLICAS;
        let fresh = replica().await;
        shared.addresses.lock().unwrap()[at] = fresh.address.clone();
        std::mem::replace(&mut servers[at], fresh).stop().await;
    }
    while last(&pool).await < CHANGES_MIN {
        pause(100).await;
    }
    done.send_replace(true);
    raisers.join_all().await;
    let mut tx = pool.begin().await.unwrap();
    let alerts = raise_in(&mut tx, "client-last", 1).await;
    alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
    tx.commit().await.unwrap();
    end.send_replace(Some(last(&pool).await));

    let rows: Vec<(i64, String, String)> =
        sqlx::query_as("SELECT sequence, client_id, alert ->> 'alert_id' FROM alert_feed ORDER BY sequence")
            .fetch_all(&pool)
            .await
            .unwrap();
    let (mut changes, mut missing, mut wrong) = (0, 0, 0);
    while let Some(subscriber) = subscribers.join_next().await {
        let (filter, received) = subscriber.unwrap();
        let expected: Vec<_> = rows
            .iter()
            .filter(|(_, client_id, _)| filter.is_empty() || filter.contains(client_id))
            .map(|(sequence, _, alert_id)| (*sequence, alert_id.clone()))
            .collect();
        changes += received.len();
        missing += expected.iter().filter(|change| received.binary_search(change).is_err()).count();
        wrong += usize::from(received != expected);
    }
    let in_feed = rows.len();
    println!(
        "{in_feed} changes in the feed; {SUBSCRIBERS} subscribers received {changes} of them, over {} disconnects, {RESTARTS} \
         restarts and {} rejected calls, {STALLED} of them stalled for {STALL_CHANGES} changes: {missing} missing, {wrong} \
         subscribers with a gap, a repetition or another order",
        shared.disconnects.load(Ordering::Relaxed),
        shared.errors.load(Ordering::Relaxed),
    );
    assert!(rows.iter().zip(1..).all(|((sequence, ..), expected)| *sequence == expected), "the feed has gaps");
    assert_eq!((missing, wrong), (0, 0));
    assert_eq!(shared.disconnects.load(Ordering::Relaxed), SUBSCRIBERS as u64 * DISCONNECTS_EACH);
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_stalled_stream_continues_from_the_table_at_its_position() {
    let server = TestServer::start().await;
    let mut follower =
        Follower::begin_at(&mut client_with_small_window(&server), Request::new(SubscribeAlertsRequest::default()))
            .await
            .unwrap();
    for _ in 0..7 {
        let mut tx = server.pool.begin().await.unwrap();
        let alerts = raise_in(&mut tx, "acme", 1_000).await;
        alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
        tx.commit().await.unwrap();
    }
    for sequence in 1..=7_000 {
        assert_eq!(follower.change().await.unwrap().sequence, sequence);
    }
    let metrics = meterd::web::recorder().render();
    for from in ["memory", "table"] {
        let label = format!("meterd_alert_changes_sent_total{{from=\"{from}\"}} ");
        assert!(metrics.lines().any(|line| line.starts_with(&label)), "no {label} in {metrics}");
    }
    for gauge in ["meterd_alert_subscriptions ", "meterd_alert_feed_sequence "] {
        assert!(metrics.lines().any(|line| line.starts_with(gauge)), "no {gauge} in {metrics}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stream_continues_after_the_database_was_unavailable() {
    let server = TestServer::start_with(&["--alert-heartbeat-ms=100"], Clock::system()).await;
    let mut follower =
        Follower::begin_at(&mut client_with_small_window(&server), Request::new(SubscribeAlertsRequest::default()))
            .await
            .unwrap();
    let raise = async |count| {
        let mut tx = server.pool.begin().await.unwrap();
        let alerts = raise_in(&mut tx, "acme", count).await;
        alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
        tx.commit().await.unwrap();
    };
    for _ in 0..6 {
        raise(1_000).await;
    }
    // The database closes all connections and accepts no new ones, so a stream that catches up cannot read.
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&server.pool).await.unwrap();
    let elsewhere = server.database_url.replace(&format!("/{name}?"), "/postgres?");
    let other = PgPool::connect(&elsewhere).await.unwrap();
    let allow = async |allowed: bool| {
        let sql = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&other).await.unwrap();
    };
    allow(false).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(cut).bind(&name).execute(&other).await.unwrap();
    // Wait until the stream must read the table and cannot.
    let (mut sequence, mut heartbeats) = (0, 0);
    while heartbeats < 10 {
        match follower.message().await.unwrap() {
            Message::Heartbeat(_) => heartbeats += 1,
            Message::Alert(event) => {
                (sequence, heartbeats) = (sequence + 1, 0);
                assert_eq!(event.sequence, sequence);
            }
        }
    }
    assert!((1..6_000).contains(&sequence), "the database was available at {sequence}");
    allow(true).await;
    raise(1).await;
    for sequence in sequence + 1..=6_001 {
        assert_eq!(follower.change().await.unwrap().sequence, sequence);
    }
    server.stop().await;
}
