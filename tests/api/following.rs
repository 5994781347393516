//! Subscribers that break off, stall and come back, while alerts are raised side by side and servers are restarted: each has
//! every change, once and in order.

use crate::harness::*;
use crate::subscribing::{Follower, narrow, raise_in, raised};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::subscribe_alerts_response::Message;
use meterd::proto::{AlertEvent, SubscribeAlertsRequest};
use meterd_engine::clock::Clock;
use meterd_store::alert_feed;
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
/// Of them, those that read nothing while more than any server's memory goes by.
const STALLED: usize = 10;
const STALL_CHANGES: i64 = 5_000;
const DISCONNECTS_EACH: u64 = 10;
const REPLICAS: usize = 3;
const RESTARTS: usize = 20;
const CHANGES_MIN: i64 = 9_000;
/// A subscriber that has not everything by then has lost something.
const PATIENCE: Duration = Duration::from_secs(60);

async fn pause(millis_max: u64) {
    tokio::time::sleep(Duration::from_micros(rand::random_range(0..=millis_max * 1_000))).await;
}

async fn last(pool: &PgPool) -> i64 {
    alert_feed::bounds(pool).await.unwrap().last
}

/// Raises alerts until it is told to stop, on a connection of its own, with pauses that mix up beginnings and commits.
async fn raiser(pool: PgPool, done: watch::Receiver<bool>) {
    while !*done.borrow() {
        let mut tx = pool.begin().await.unwrap();
        pause(10).await;
        let (client, count) = (rand::random_range(0..CLIENTS), rand::random_range(1..=15));
        let alerts = raise_in(&mut tx, &format!("client-{client}"), count).await;
        pause(10).await;
        alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
        pause(4).await;
        // Some never come to be: their numbers are the next one's.
        if rand::random_bool(0.1) {
            tx.rollback().await.unwrap();
        } else {
            tx.commit().await.unwrap();
        }
        pause(20).await;
    }
}

/// What the subscribers share.
struct Scene {
    pool: PgPool,
    /// Where the replicas are just now.
    addresses: Mutex<Vec<String>>,
    /// The last number, once there will be no more.
    end: watch::Receiver<Option<i64>>,
    disconnects: AtomicU64,
    refusals: AtomicU64,
}

/// Follows the feed from its start, and breaks off again and again. Gives all it received.
async fn subscriber(scene: Arc<Scene>, number: usize, client_ids: Vec<String>) -> Vec<(i64, String)> {
    let filters = SubscribeAlertsRequest { client_ids, ..Default::default() };
    let (mut received, mut token, mut broken_off) = (vec![], String::new(), 0);
    let mut stall = number < STALLED;
    let mut deadline = None;
    loop {
        let address = scene.addresses.lock().unwrap()[rand::random_range(0..REPLICAS)].clone();
        let channel = Channel::from_shared(address).unwrap().initial_stream_window_size(65_535).connect_lazy();
        let request =
            SubscribeAlertsRequest { from_start: token.is_empty(), resume_token: token.clone(), ..filters.clone() };
        let mut alerts = AlertServiceClient::new(channel);
        let mut follower = match Follower::begin_at(&mut alerts, Request::new(request)).await {
            Ok(follower) => follower,
            Err(status) => {
                assert!(!matches!(status.code(), Code::OutOfRange | Code::InvalidArgument), "{status}");
                scene.refusals.fetch_add(1, Ordering::Relaxed);
                pause(50).await;
                continue;
            }
        };
        // Spread over the whole feed; at its end there is little more to come.
        let break_off_after = match (broken_off < DISCONNECTS_EACH, *scene.end.borrow()) {
            (false, _) => usize::MAX,
            (true, Some(_)) => 1,
            (true, None) if filters.client_ids.is_empty() => rand::random_range(0..1_000),
            (true, None) => rand::random_range(0..200),
        };
        for count in 0.. {
            token = follower.token.clone();
            let end = *scene.end.borrow();
            let begun = *deadline.get_or_insert_with(Instant::now);
            let at_end = received.last().is_some_and(|(sequence, _)| Some(*sequence) == end);
            if broken_off == DISCONNECTS_EACH && end.is_some() && (at_end || begun.elapsed() > PATIENCE) {
                return received;
            }
            if end.is_none() {
                deadline = None;
            }
            if count >= break_off_after {
                broken_off += 1;
                scene.disconnects.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if stall && count == 50 {
                stall = false;
                let begin = last(&scene.pool).await;
                while last(&scene.pool).await < begin + STALL_CHANGES {
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
async fn nobody_misses_a_change_whoever_breaks_off_stalls_or_is_restarted() {
    let url = fresh_database().await;
    let flags = ["--alert-heartbeat-ms=200", "--stop-timeout-seconds=1"];
    let replica = || TestServer::replica(&url, &flags, Clock::system());
    let mut servers = vec![];
    for _ in 0..REPLICAS {
        servers.push(replica().await);
    }
    let options = meterd_store::connect::options(&url).unwrap();
    let pool = meterd_store::connect::pool(options, RAISERS as u32 + 4);
    let (done, is_done) = watch::channel(false);
    let mut raisers = JoinSet::new();
    for _ in 0..RAISERS {
        raisers.spawn(raiser(pool.clone(), is_done.clone()));
    }
    let (end, is_end) = watch::channel(None);
    let scene = Arc::new(Scene {
        pool: pool.clone(),
        addresses: Mutex::new(servers.iter().map(|server| server.address.clone()).collect()),
        end: is_end,
        disconnects: AtomicU64::new(0),
        refusals: AtomicU64::new(0),
    });
    let mut subscribers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        // Every second one wants some clients only, the one of the last change among them.
        let client_ids = match number % 2 {
            0 => vec![],
            _ => vec![format!("client-{}", number % CLIENTS), "client-last".into()],
        };
        let (scene, filter) = (scene.clone(), client_ids.clone());
        subscribers.spawn(async move { (filter, subscriber(scene, number, client_ids).await) });
    }

    for restart in 0..RESTARTS {
        let at = restart % REPLICAS;
        let fresh = replica().await;
        scene.addresses.lock().unwrap()[at] = fresh.address.clone();
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
         restarts and {} refused calls, {STALLED} of them stalled for {STALL_CHANGES} changes: {missing} missing, {wrong} \
         subscribers with a gap, a repetition or another order",
        scene.disconnects.load(Ordering::Relaxed),
        scene.refusals.load(Ordering::Relaxed),
    );
    assert!(rows.iter().zip(1..).all(|((sequence, ..), expected)| *sequence == expected), "the feed has no gaps");
    assert_eq!((missing, wrong), (0, 0));
    assert_eq!(scene.disconnects.load(Ordering::Relaxed), SUBSCRIBERS as u64 * DISCONNECTS_EACH);
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_stream_that_stalled_goes_on_from_the_table_where_it_was() {
    let server = TestServer::start().await;
    let mut follower =
        Follower::begin_at(&mut narrow(&server), Request::new(SubscribeAlertsRequest::default())).await.unwrap();
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
        assert!(metrics.lines().any(|line| line.starts_with(&label)), "{label} in {metrics}");
    }
    for gauge in ["meterd_alert_subscriptions ", "meterd_alert_feed_sequence "] {
        assert!(metrics.lines().any(|line| line.starts_with(gauge)), "{gauge} in {metrics}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stream_outlives_a_database_that_is_away_for_a_while() {
    let server = TestServer::start_with(&["--alert-heartbeat-ms=100"], Clock::system()).await;
    let mut follower =
        Follower::begin_at(&mut narrow(&server), Request::new(SubscribeAlertsRequest::default())).await.unwrap();
    let raise = async |count| {
        let mut tx = server.pool.begin().await.unwrap();
        let alerts = raise_in(&mut tx, "acme", count).await;
        alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
        tx.commit().await.unwrap();
    };
    for _ in 0..6 {
        raise(1_000).await;
    }
    // Nobody comes in any more, and who is in is thrown out: also the reads of a stream that has to catch up.
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
    // Until it has to go to the table, and cannot for a while.
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
    assert!((1..6_000).contains(&sequence), "the database was away, at {sequence}");
    allow(true).await;
    raise(1).await;
    for sequence in sequence + 1..=6_001 {
        assert_eq!(follower.change().await.unwrap().sequence, sequence);
    }
    server.stop().await;
}
