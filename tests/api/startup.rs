//! The start of servers: several at once, with suitable and unsuitable databases, and with a database that is
//! unavailable.

use crate::harness::*;
use meterd::app;
use meterd::proto::{EventOutcome, GetClientRequest, UsageEvent};
use meterd_embedded_postgres::{Embedded, EmbeddedSettings};
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_started_at_once_migrate_and_seed_an_empty_database_once() {
    let url = empty_database().await;
    let options = connect::options(&url).unwrap();
    let start = || async { app::prepare(&options, &settings_of(&[])).await.unwrap().token_secret };
    let mut secrets = futures_util::future::join_all((0..6).map(|_| start())).await;
    secrets.dedup();
    assert_eq!(secrets.len(), 1, "all replicas must belong to one deployment");
    let server = TestServer::replica(&url, &[], Clock::system()).await;
    let services: i64 = sqlx::query_scalar("SELECT count(*) FROM services").fetch_one(&server.pool).await.unwrap();
    assert_eq!(services, 25);
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_non_durable_database_is_rejected_unless_allowed() {
    // The shared server of these tests runs with fsync = off.
    let options = connect::options(&empty_database().await).unwrap();
    let mut settings = settings_of(&[]);
    settings.database.allow_non_durable_database = false;
    let rejected = app::prepare(&options, &settings).await.err().unwrap().to_string();
    assert!(rejected.contains("fsync = off") && rejected.contains("--allow-non-durable-database"), "{rejected}");
}

#[tokio::test]
async fn a_currency_other_than_that_of_the_first_start_is_rejected() {
    let options = connect::options(&empty_database().await).unwrap();
    app::prepare(&options, &settings_of(&["--currency=EUR"])).await.unwrap();
    let rejected = app::prepare(&options, &settings_of(&[])).await.err().unwrap().to_string();
    assert!(rejected.contains("EUR") && rejected.contains("--currency"), "{rejected}");
}

#[tokio::test]
async fn without_keys_only_loopback_addresses_are_allowed() {
    for flag in ["--listen=0.0.0.0:0", "--http-listen=[::]:0"] {
        let settings = settings_of(&[flag]);
        let rejected = settings.check_exposure().unwrap_err().to_string();
        assert!(rejected.contains("loopback") && rejected.contains("--insecure-listen"), "{rejected}");
    }
    settings_of(&["--listen=0.0.0.0:0", "--insecure-listen"]).check_exposure().unwrap();
}

async fn health(server: &TestServer, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(server.channel()).check(request).await.unwrap().into_inner().status()
}

async fn wait_for_health(server: &TestServer, wanted: ServingStatus) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while health(server, "metering.v1.UsageService").await != wanted {
        assert!(Instant::now() < deadline, "health did not become {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_database_is_visible_in_health_and_status_and_recovers() {
    let data_dir = tempfile::Builder::new().prefix("meterd-away-").tempdir().unwrap();
    let own = EmbeddedSettings {
        data_dir: data_dir.path().to_path_buf(),
        bin_dir: None,
        download_url: None,
        download: true,
        durable: false,
    };
    let database = Embedded::start(&own).await.unwrap();
    let server = TestServer::replica(database.url(), &["--retry-seconds=2"], Clock::system()).await;
    wait_for_health(&server, ServingStatus::Serving).await;
    let event_with_key = |key: &str| UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", "1") };
    server.track(event_with_key("before")).await.unwrap();

    database.stop().await.unwrap();
    wait_for_health(&server, ServingStatus::NotServing).await;
    assert_eq!(health(&server, "").await, ServingStatus::NotServing);
    let recorded = server.track(event_with_key("meanwhile")).await.unwrap_err();
    let read = server.clients().get_client(GetClientRequest { client_id: "acme".into() }).await.unwrap_err();
    for status in [recorded, read] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "DATABASE_UNAVAILABLE");
        assert!(details.retry_info().unwrap().retry_delay.is_some());
        assert!(
            !status.message().to_lowercase().contains("select"),
            "the message must not contain SQL: {}",
            status.message()
        );
    }

    let database = Embedded::start(&own).await.unwrap();
    wait_for_health(&server, ServingStatus::Serving).await;
    let outcomes = [
        server.track(event_with_key("before")).await.unwrap().outcome(),
        server.track(event_with_key("meanwhile")).await.unwrap().outcome(),
    ];
    assert_eq!(outcomes, [EventOutcome::Duplicate, EventOutcome::Accepted]);
    server.assert_exact(2).await;
    server.stop().await;
    database.stop().await.unwrap();
}

#[test]
fn an_invalid_settings_file_is_reported_with_line_and_column_but_without_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meterd.toml");
    std::fs::write(&file, "currency = \"EUR\"\nsmtp_url = \"smtp://meterd:hunter2@localhost\nwriters = 2\n").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    let output = command.arg("--config").arg(&file).arg("migrate").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !error.contains("hunter2"), "{error}");
    assert!(error.contains(&format!("{}, line 2, column ", file.display())), "{error}");
}
