//! The real binary is killed with SIGKILL while the receiver of a webhook delays its response. The next server delivers
//! the notification again with the same id.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{
    AlertPolicy, ListNotificationsRequest, NotificationChannel, NotificationChannelKind, NotificationState,
    TrackUsageRequest, UpdateAlertPolicyRequest, UsageEvent,
};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server process with its own data directory. Both end with the test.
struct Process {
    data_dir: PathBuf,
    ports: [u16; 2],
    server: Child,
}

impl Process {
    fn start() -> Self {
        let data_dir = tempfile::Builder::new().prefix("meterd-notify-").tempdir().unwrap().keep();
        let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let server = spawn(&data_dir, ports);
        Self { data_dir, ports, server }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// Kills meterd with SIGKILL. Its PostgreSQL keeps running.
    fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
        if let Ok(file) = std::fs::read_to_string(self.data_dir.join("postgres/postmaster.pid")) {
            let pid = file.lines().next().unwrap_or_default().to_owned();
            drop(Command::new("kill").args(["-QUIT", &pid]).stderr(Stdio::null()).status());
            std::thread::sleep(Duration::from_millis(500));
        }
        drop(std::fs::remove_dir_all(&self.data_dir));
    }
}

fn spawn(data_dir: &Path, [grpc, http]: [u16; 2]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["serve", "--webhook-allow-http", "--webhook-allow-private", "--log=warn"])
        .arg(format!("--data-dir={}", data_dir.display()))
        .arg(format!("--listen=127.0.0.1:{grpc}"))
        .arg(format!("--http-listen=127.0.0.1:{http}"))
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

async fn eventually(is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "the condition was not true within 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Stores ids and bodies. Does not respond to the first request.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(String, String)>>>);

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: String) {
    let first = {
        let mut received = receiver.0.lock().unwrap();
        received.push((headers["webhook-id"].to_str().unwrap().to_owned(), body));
        received.len() == 1
    };
    if first {
        std::future::pending::<()>().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_server_resends_a_notification_of_a_killed_server_with_the_same_id() {
    let receiver = Receiver::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("http://{}/alerts", listener.local_addr().unwrap());
    let router = Router::new().fallback(receive).with_state(receiver.clone());
    tokio::spawn(axum::serve(listener, router).into_future());

    let mut process = Process::start();
    let channel = tonic::transport::Channel::from_shared(process.address()).unwrap().connect_lazy();
    let (alerts, mut usage) = (AlertServiceClient::new(channel.clone()), UsageServiceClient::new(channel));
    let hook =
        NotificationChannel { kind: NotificationChannelKind::Webhook.into(), target, ..NotificationChannel::default() };
    let request = UpdateAlertPolicyRequest {
        policy: Some(AlertPolicy { channels: vec![hook], ..AlertPolicy::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["channels".into()] }),
    };
    eventually(async || alerts.clone().update_alert_policy(request.clone()).await.is_ok()).await;
    let event =
        UsageEvent { client_id: "acme".into(), service: "sms".into(), units: "20000".into(), ..UsageEvent::default() };
    usage.track_usage(TrackUsageRequest { event: Some(event) }).await.unwrap();
    eventually(async || !receiver.0.lock().unwrap().is_empty()).await;
    process.kill();

    let url = meterd_embedded_postgres::attach(&process.data_dir).await.unwrap().unwrap();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let claimed = "SELECT state, attempt_count, next_attempt_time > now() FROM notifications WHERE kind = 3";
    let claimed: Vec<(i16, i32, bool)> = sqlx::query_as(claimed).fetch_all(&pool).await.unwrap();
    assert_eq!(claimed, [(1, 1, true)], "the claim of the killed server is valid, and no result is recorded");
    // Let the claim expire.
    sqlx::query("UPDATE notifications SET next_attempt_time = now()").execute(&pool).await.unwrap();
    process.server = spawn(&process.data_dir, process.ports);

    let listed = async || {
        let answer = alerts.clone().list_notifications(ListNotificationsRequest::default()).await;
        answer.map(|answer| answer.into_inner().notifications).unwrap_or_default()
    };
    eventually(async || listed().await.first().is_some_and(|one| one.state() == NotificationState::Sent)).await;
    let (reported, received) = (listed().await, receiver.0.lock().unwrap().clone());
    assert_eq!((reported.len(), reported[0].attempt_count, received.len()), (1, 2, 2));
    assert_eq!(received[0], received[1]);
    assert_eq!(received[0].0, reported[0].notification_id);
    pool.close().await;
}
