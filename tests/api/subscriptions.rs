//! SubscribeAlerts: the start of a stream, its filters, how it continues, and how it ends.

use crate::harness::*;
use chrono::{DateTime, NaiveDate, Utc};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::subscribe_alerts_response::Message;
use meterd::proto::*;
use meterd_domain::alert::{self, AlertType, Change, Finding, Severity};
use meterd_engine::clock::Clock;
use meterd_store::alerts::feed as alert_feed;
use meterd_store::alerts::{self, NewAlert};
use sqlx::PgPool;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

/// Maximum time to wait for anything.
pub const SOON: Duration = Duration::from_secs(10);

/// Raises new alerts like the write path, but without a commit.
pub async fn raise_in(tx: &mut sqlx::PgConnection, client_id: &str, count: usize) -> Vec<alert::Alert> {
    raise_as(tx, client_id, count, AlertType::Threshold, Severity::Critical).await
}

pub async fn raise_as(
    tx: &mut sqlx::PgConnection,
    client_id: &str,
    count: usize,
    kind: AlertType,
    severity: Severity,
) -> Vec<alert::Alert> {
    // Each alert is in its own month, because an alert is raised once per client, type, severity and period.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let new: Vec<_> = (0..count)
        .map(|_| {
            let month = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
            let finding = Finding {
                kind,
                severity,
                service: String::new(),
                period: NaiveDate::from_ymd_opt(1970 + (month / 12) as i32, month % 12 + 1, 1).unwrap(),
                current: "100.01".parse().unwrap(),
                previous: None,
                threshold: "100".parse().unwrap(),
                percent: None,
                projected: None,
                limit: None,
            };
            NewAlert { client_id: client_id.into(), finding, message: format!("{client_id} has reached 100") }
        })
        .collect();
    alerts::raise(tx, &new).await.unwrap()
}

/// Returns the changes for alerts that were just raised.
pub fn raised(alerts: &[alert::Alert]) -> Vec<(Change, alert::Alert)> {
    alerts.iter().map(|alert| (Change::Raised, alert.clone())).collect()
}

pub async fn raise_all(
    pool: &PgPool,
    client_id: &str,
    count: usize,
    kind: AlertType,
    severity: Severity,
) -> Vec<String> {
    let mut tx = pool.begin().await.unwrap();
    let alerts = raise_as(&mut tx, client_id, count, kind, severity).await;
    alert_feed::append(&mut tx, &raised(&alerts)).await.unwrap();
    tx.commit().await.unwrap();
    alerts.into_iter().map(|alert| alert.alert_id).collect()
}

/// Raises a critical threshold alert, commits it, and returns its id.
pub async fn raise(pool: &PgPool, client_id: &str) -> String {
    raise_all(pool, client_id, 1, AlertType::Threshold, Severity::Critical).await.remove(0)
}

/// Raises many alerts in one commit.
pub async fn raise_many(pool: &PgPool, client_id: &str, count: usize) {
    raise_all(pool, client_id, count, AlertType::Threshold, Severity::Critical).await;
}

/// Returns a client with a small window, so that the server cannot send much before the client reads.
pub fn client_with_small_window(server: &TestServer) -> AlertServiceClient<Channel> {
    let endpoint = Channel::from_shared(server.address.clone()).unwrap();
    AlertServiceClient::new(endpoint.initial_stream_window_size(65_535).connect_lazy())
}

/// A stream and the token of its last message.
pub struct Follower {
    messages: Streaming<SubscribeAlertsResponse>,
    pub token: String,
}

impl Follower {
    /// Starts a stream. Its first message is a heartbeat and is sent at once.
    pub async fn begin(server: &TestServer, request: SubscribeAlertsRequest) -> Result<Self, Status> {
        Self::begin_at(&mut server.alerts(), Request::new(request)).await
    }

    pub async fn begin_at(
        alerts: &mut AlertServiceClient<Channel>,
        request: Request<SubscribeAlertsRequest>,
    ) -> Result<Self, Status> {
        let messages = alerts.subscribe_alerts(request).await?.into_inner();
        let mut follower = Self { messages, token: String::new() };
        match follower.message().await? {
            Message::Heartbeat(_) => Ok(follower),
            Message::Alert(event) => panic!("{event:?} was sent before the first heartbeat"),
        }
    }

    /// Returns the next message. Every message must have a token, and every stream must end with a status.
    pub async fn message(&mut self) -> Result<Message, Status> {
        let message = tokio::time::timeout(SOON, self.messages.message()).await.expect("a message is sent in time");
        let message = message?.expect("the stream ends with a status");
        assert!(!message.resume_token.is_empty(), "{message:?}");
        self.token = message.resume_token;
        Ok(message.message.unwrap())
    }

    /// Returns the next change and skips heartbeats.
    pub async fn change(&mut self) -> Result<AlertEvent, Status> {
        let change = async {
            loop {
                if let Message::Alert(event) = self.message().await? {
                    return Ok(event);
                }
            }
        };
        tokio::time::timeout(SOON, change).await.expect("a change is sent in time")
    }

    pub async fn alert_id(&mut self) -> String {
        self.change().await.unwrap().alert.unwrap().alert_id
    }

    /// Returns the status with which the stream ends.
    pub async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.change().await {
                return status;
            }
        }
    }

    /// Checks that there is no pending change: the next one is that of an alert raised now.
    pub async fn assert_caught_up(&mut self, server: &TestServer, client_id: &str) {
        let alert_id = raise(&server.pool, client_id).await;
        assert_eq!(self.alert_id().await, alert_id);
    }
}

pub fn all() -> SubscribeAlertsRequest {
    SubscribeAlertsRequest::default()
}

pub fn from_start() -> SubscribeAlertsRequest {
    SubscribeAlertsRequest { from_start: true, ..all() }
}

pub fn resume(token: &str) -> SubscribeAlertsRequest {
    SubscribeAlertsRequest { resume_token: token.into(), ..all() }
}

/// Flags with a short heartbeat interval, so that tests can wait for heartbeats.
pub const FAST_HEARTBEATS: [&str; 2] = ["--alert-heartbeat-ms=50", "--stop-timeout-seconds=2"];

#[tokio::test]
async fn a_stream_starts_with_a_heartbeat_and_sends_new_alerts() {
    let server = TestServer::start().await;
    raise(&server.pool, "acme").await;
    // When a subscriber has received the alert, the reader of this replica has seen it.
    Follower::begin(&server, from_start()).await.unwrap().change().await.unwrap();
    let mut follower = Follower::begin(&server, all()).await.unwrap();
    let alert_id = raise(&server.pool, "acme").await;
    let event = follower.change().await.unwrap();
    assert_eq!((event.sequence, event.change()), (2, AlertChange::Raised));
    assert!(event.change_time.is_some());
    let alert = event.alert.unwrap();
    assert_eq!((&*alert.alert_id, &*alert.client_id, &*alert.current), (&*alert_id, "acme", "100.01"));
    assert_eq!((alert.r#type(), alert.severity()), (meterd::proto::AlertType::Threshold, AlertSeverity::Critical));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_from_the_start_sends_all_changes_in_order() {
    let server = TestServer::start_with(&FAST_HEARTBEATS, Clock::system()).await;
    let mut expected = vec![];
    for number in 0..5 {
        expected.push(raise(&server.pool, &format!("client-{number}")).await);
    }
    let mut follower = Follower::begin(&server, from_start()).await.unwrap();
    for (alert_id, sequence) in expected.iter().zip(1..) {
        let event = follower.change().await.unwrap();
        assert_eq!((event.sequence, &event.alert.unwrap().alert_id), (sequence, alert_id));
    }
    follower.assert_caught_up(&server, "acme").await;
    server.stop().await;
}

#[tokio::test]
async fn acknowledged_and_resolved_alerts_are_sent_too() {
    let server = TestServer::start().await;
    let mut follower = Follower::begin(&server, all()).await.unwrap();
    let alert_id = raise(&server.pool, "acme").await;
    let request = AcknowledgeAlertRequest { alert_id: alert_id.clone(), acknowledged_by: "ana".into() };
    for _ in 0..2 {
        // The second time changes nothing, so nothing is sent.
        server.alerts().acknowledge_alert(request.clone()).await.unwrap();
    }
    let mut tx = server.pool.begin().await.unwrap();
    let resolved = alerts::resolve(&mut tx, "acme", &[alert_id]).await.unwrap();
    alert_feed::append(&mut tx, &[(Change::Resolved, resolved[0].clone())]).await.unwrap();
    tx.commit().await.unwrap();
    let mut changes = vec![];
    for _ in 0..3 {
        let event = follower.change().await.unwrap();
        let alert = event.alert.clone().unwrap();
        changes.push((event.change(), alert.acknowledged_by, alert.resolve_time.is_some()));
    }
    let expected = [
        (AlertChange::Raised, String::new(), false),
        (AlertChange::Acknowledged, "ana".into(), false),
        (AlertChange::Resolved, "ana".into(), true),
    ];
    assert_eq!(changes, expected);
    server.stop().await;
}

#[tokio::test]
async fn filters_apply_to_changes_in_memory_and_in_the_table() {
    let server = TestServer::start_with(&FAST_HEARTBEATS, Clock::system()).await;
    let clients = SubscribeAlertsRequest { client_ids: vec!["b".into(), "a".into()], ..all() };
    let types = SubscribeAlertsRequest { types: vec![AlertType::Spike as i32], ..all() };
    let severe = SubscribeAlertsRequest { min_severity: AlertSeverity::Critical.into(), ..all() };
    let cases = [
        (clients, "a Threshold 1, b Spike 2, a Threshold 2"),
        (types, "b Spike 2"),
        (severe, "b Spike 2, c Threshold 2, a Threshold 2"),
    ];
    let mut live = vec![];
    for (request, _) in &cases {
        live.push(Follower::begin(&server, request.clone()).await.unwrap());
    }
    raise_all(&server.pool, "a", 1, AlertType::Threshold, Severity::Warning).await;
    raise_all(&server.pool, "b", 1, AlertType::Spike, Severity::Critical).await;
    raise_all(&server.pool, "c", 1, AlertType::Threshold, Severity::Critical).await;
    let tokens: Vec<_> = live.iter().map(|follower| follower.token.clone()).collect();
    // So many more changes that the first ones are only in the table.
    for _ in 0..5 {
        raise_all(&server.pool, "z", 1_000, AlertType::Threshold, Severity::Warning).await;
    }
    raise(&server.pool, "a").await;
    let mut followers = vec![];
    for (((request, expected), mut live), token) in cases.into_iter().zip(live).zip(tokens) {
        let request = SubscribeAlertsRequest { resume_token: token, ..request };
        let mut late = Follower::begin(&server, request).await.unwrap();
        for follower in [&mut live, &mut late] {
            let mut seen = vec![];
            for _ in expected.split(", ") {
                let alert = follower.change().await.unwrap().alert.unwrap();
                seen.push(format!("{} {:?} {}", alert.client_id, alert.r#type(), alert.severity));
            }
            assert_eq!(seen.join(", "), expected);
        }
        followers.extend([live, late]);
    }
    // No stream sends a change again, or a change that its filter excludes.
    let next = raise_all(&server.pool, "a", 1, AlertType::Spike, Severity::Critical).await.remove(0);
    for follower in &mut followers {
        assert_eq!(follower.alert_id().await, next);
    }
    server.stop().await;
}

#[tokio::test]
async fn heartbeats_are_sent_without_changes_and_advance_past_filtered_changes() {
    let server = TestServer::start_with(&FAST_HEARTBEATS, Clock::system()).await;
    let request = SubscribeAlertsRequest { client_ids: vec!["acme".into()], ..all() };
    let mut follower = Follower::begin(&server, request.clone()).await.unwrap();
    let first = follower.token.clone();
    follower.message().await.unwrap();
    assert_eq!(follower.token, first, "the token must not change without a change");
    raise(&server.pool, "other").await;
    let started = Instant::now();
    while follower.token == first {
        assert!(matches!(follower.message().await.unwrap(), Message::Heartbeat(_)));
        assert!(started.elapsed() < SOON, "the token did not advance");
    }
    // The change of the other client is before the token. After retention deletes it, the token is still valid.
    assert_eq!(alert_feed::prune(&server.pool, DateTime::<Utc>::MAX_UTC, 10).await.unwrap(), 1);
    let request = SubscribeAlertsRequest { resume_token: follower.token.clone(), ..request };
    Follower::begin(&server, request).await.unwrap().assert_caught_up(&server, "acme").await;
    server.stop().await;
}

#[tokio::test]
async fn wrong_filters_are_rejected_at_once() {
    let server = TestServer::start().await;
    let token = Follower::begin(&server, all()).await.unwrap().token;
    let wrong = SubscribeAlertsRequest {
        client_ids: vec!["x".into(); 101],
        types: vec![1, 9],
        min_severity: 7,
        resume_token: token,
        from_start: true,
    };
    let fields = ["client_ids", "types[1]", "min_severity", "from_start"];
    assert_invalid(server.alerts().subscribe_alerts(wrong).await, "INVALID_FIELD", &fields);
    server.stop().await;
}

#[tokio::test]
async fn streams_of_a_stopping_server_end_with_shutting_down() {
    let server = TestServer::start().await;
    let mut followers = VecDeque::new();
    for _ in 0..3 {
        followers.push_back(Follower::begin(&server, all()).await.unwrap());
    }
    let stopping = tokio::spawn(server.stop());
    for follower in followers {
        let status = assert_error(Err::<(), _>(follower.end().await), Code::Unavailable, "SHUTTING_DOWN");
        assert!(status.get_details_retry_info().is_some());
    }
    tokio::time::timeout(SOON, stopping).await.expect("the server stops before its limit").unwrap();
}

#[tokio::test]
async fn a_subscription_above_the_limit_is_rejected_until_another_ends() {
    let server = TestServer::start_with(&["--subscriptions-max=2"], Clock::system()).await;
    let first = Follower::begin(&server, all()).await.unwrap();
    let _second = Follower::begin(&server, all()).await.unwrap();
    let rejected = Follower::begin(&server, all()).await.map(|_| ());
    let status = assert_error(rejected, Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS");
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    drop(first);
    let freed = async {
        while Follower::begin(&server, all()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, freed).await.expect("the slot is free in time");
    server.stop().await;
}

#[tokio::test]
async fn the_deadline_of_calls_does_not_end_a_stream() {
    let server = TestServer::start_with(&["--request-timeout-seconds=1", FAST_HEARTBEATS[0]], Clock::system()).await;
    for caller_timeout in [None, Some(Duration::from_millis(500))] {
        let mut request = Request::new(all());
        if let Some(timeout) = caller_timeout {
            request.set_timeout(timeout);
        }
        let mut follower = Follower::begin_at(&mut server.alerts(), request).await.unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1_500) {
            follower.message().await.unwrap();
        }
        follower.assert_caught_up(&server, "acme").await;
    }
    server.stop().await;
}

#[tokio::test]
async fn the_status_of_an_ended_stream_contains_its_request_id() {
    let server = TestServer::start().await;
    let mut request = Request::new(all());
    request.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    let follower = Follower::begin_at(&mut server.alerts(), request).await.unwrap();
    let stopping = tokio::spawn(server.stop());
    let status = follower.end().await;
    assert_eq!(status.get_details_error_info().unwrap().metadata["request_id"], "mine-1");
    stopping.await.unwrap();
}

#[tokio::test]
async fn streams_continue_after_the_readers_connection_was_closed() {
    let server = TestServer::start().await;
    let mut follower = Follower::begin(&server, all()).await.unwrap();
    for _ in 0..5 {
        let cut = server
            .sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND query NOT LIKE 'SELECT pg_term%'",
            )
            .await;
        assert!(cut > 0, "the reader had no connection");
        follower.assert_caught_up(&server, "acme").await;
    }
    server.stop().await;
}
