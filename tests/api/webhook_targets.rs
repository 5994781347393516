//! Allowed targets of webhooks, signatures, and secrets that must not appear in output.

use crate::alerts::metered;
use crate::harness::*;
use crate::notifications::*;
use crate::receivers::{Answer, HttpReceiver};
use meterd::proto::*;
use meterd_engine::clock::Clock;
use meterd_store::alerts::channels::Channel;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let elsewhere = HttpReceiver::start([]).await;
    let hook = HttpReceiver::start([Answer::Redirect(elsewhere.url())]).await;
    let server = server_with(&["--notification-attempts-max=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let failed_notifications = failed(&server, 1).await;
    assert!(failed_notifications[0].last_error.contains("redirects are not followed"), "{failed_notifications:?}");
    assert_eq!((hook.received().len(), elsewhere.received().len()), (1, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_do_not_reach_private_addresses_by_number_or_by_name() {
    let hook = HttpReceiver::start([]).await;
    let flags = ["--webhook-allow-http", "--notification-attempts-max=1"];
    let server = TestServer::start_with(&flags, Clock::fixed(time(NOW))).await;
    metered(&server, "metered").await;
    let port = hook.address.port();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
    ];
    // The system's resolver returns loopback addresses for it.
    let names = ["localhost"];
    let targets: Vec<String> = hosts.iter().chain(&names).map(|host| format!("http://{host}:{port}/")).collect();
    set_channels(&server, "", &targets.iter().map(webhook).collect::<Vec<_>>()).await;
    raise(&server, "acme").await;
    let failed_notifications = failed(&server, targets.len()).await;
    for notification in &failed_notifications {
        assert!(notification.last_error.contains("private, loopback, link-local"), "{notification:?}");
    }
    assert_eq!(hook.received().len(), 0);

    // A target that is visibly private is rejected when the channel is set.
    let never_public = ["localhost", "LOCALHOST.", "a.localhost", "intranet", "db.internal", "printer.local"];
    for host in hosts.into_iter().chain(never_public) {
        let channel = NotificationChannel {
            kind: NotificationChannelKind::Webhook.into(),
            target: format!("http://{host}:{port}/"),
            ..Default::default()
        };
        let policy = AlertPolicy { channels: vec![channel], ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["channels".into()] });
        let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask };
        let answer = server.alerts().update_alert_policy(request).await;
        assert_invalid(answer, "INVALID_FIELD", &["policy.channels[0].target"]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stricter_settings_apply_to_existing_channels() {
    let hook = HttpReceiver::start([]).await;
    let flags = ["--webhook-allow-private", "--notification-attempts-max=1"];
    let server = TestServer::start_with(&flags, Clock::fixed(time(NOW))).await;
    metered(&server, "metered").await;
    set_channels(&server, "", &[webhook(hook.url()), channel(NotificationChannelKind::Email, "ops@example.com")]).await;
    raise(&server, "acme").await;
    let failed_notifications = failed(&server, 2).await;
    let errors: Vec<&str> = failed_notifications.iter().map(|notification| notification.last_error.as_str()).collect();
    assert!(errors.iter().any(|error| error.contains("must be https")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("no SMTP server is set")), "{errors:?}");
    assert_eq!(hook.received().len(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_can_verify_with_the_old_and_the_new_key_while_it_is_changed() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&[]).await;
    let with =
        |secrets: &[&str]| Channel { secrets: secrets.iter().map(|s| s.to_string()).collect(), ..webhook(hook.url()) };
    for (client_id, secrets) in [("a", &[OLD_SECRET][..]), ("b", &[SECRET, OLD_SECRET]), ("c", &[SECRET])] {
        set_channels(&server, "", &[with(secrets)]).await;
        raise(&server, client_id).await;
        wait_until(async || notifications(&server).await.iter().all(|n| n.state() == NotificationState::Sent)).await;
    }
    let verified: Vec<(bool, bool)> =
        hook.received().iter().map(|post| (post.is_signed_with(OLD_SECRET), post.is_signed_with(SECRET))).collect();
    assert_eq!(verified, [(true, false), (true, true), (false, true)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incomplete_transport_is_rejected_at_the_start_without_printing_secrets() {
    for flags in [
        &["--smtp-url=smtp://meterd:hunter2@localhost"][..],
        &["--smtp-from=a@b.example"],
        &["--smtp-url=meterd:hunter2@localhost", "--smtp-from=a@b.example"],
        &["--smtp-url=smtp://localhost", "--smtp-from=nobody"],
        &["--twilio-auth-token=hunter2"],
        &[
            "--twilio-auth-token=hunter2",
            "--twilio-account-sid=AC1",
            "--twilio-from=+15550000000",
            "--twilio-api-url=x",
        ],
    ] {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"))
            .args(["serve", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--allow-non-durable-database"])
            .args(flags)
            .env("DATABASE_URL", fresh_database().await)
            .stdin(Stdio::null())
            .output();
        let output =
            tokio::time::timeout(Duration::from_secs(60), output).await.expect("the command ends in time").unwrap();
        let printed = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && printed.contains("--smtp-") | printed.contains("--twilio-"),
            "{flags:?}: {printed}"
        );
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    let help = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["serve", "--help"])
        .envs([("METERD_SMTP_URL", "smtp://meterd:hunter2@localhost"), ("METERD_TWILIO_AUTH_TOKEN", "hunter2")])
        .output();
    let help = String::from_utf8(help.await.unwrap().stdout).unwrap();
    assert!(help.contains("METERD_SMTP_URL") && !help.contains("hunter2"), "{help}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_without_root_certificates() {
    let mut server = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["serve", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--allow-non-durable-database"])
        .env("DATABASE_URL", fresh_database().await)
        .envs([("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .expect("the server starts in time")
        .unwrap();
    assert!(first.is_some_and(|line| line.ends_with("is ready")));
    server.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_and_unknown_names_have_the_same_error() {
    let flags = ["--webhook-allow-http", "--notification-attempts-max=1"];
    let server = TestServer::start_with(&flags, Clock::fixed(time(NOW))).await;
    metered(&server, "metered").await;
    // Channels as if the names had changed later. They are set directly in the database, because the RPC rejects
    // visibly private targets.
    let resolver = meterd_resolver_names();
    set_channels(&server, "", &resolver.iter().map(|name| webhook(format!("http://{name}/"))).collect::<Vec<_>>())
        .await;
    raise(&server, "acme").await;
    let failed_notifications = failed(&server, resolver.len()).await;
    let errors: Vec<&str> = failed_notifications.iter().map(|notification| notification.last_error.as_str()).collect();
    assert!(errors.iter().all(|error| error.contains("leads to no public address")), "{errors:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_a_failed_webhook_names_the_cause() {
    let server = server_with(&["--notification-attempts-max=1"]).await;
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = silent.local_addr().unwrap();
    tokio::spawn(async move {
        // Reads the request and closes the connection.
        while let Ok((mut connection, _)) = silent.accept().await {
            let mut bytes = [0; 4096];
            drop(tokio::io::AsyncReadExt::read(&mut connection, &mut bytes).await);
        }
    });
    let plain = HttpReceiver::start([]).await;
    let targets = [
        (format!("http://{closed}/"), "the connection was refused: nothing listens at that port"),
        (format!("http://{rude}/"), "the receiver closed the connection without an answer"),
        (format!("https://{}/", plain.address), "the receiver does not speak TLS at that port"),
        ("http://no-such-host.invalid/".to_owned(), "the host name is not known"),
    ];
    set_channels(&server, "", &targets.iter().map(|(target, _)| webhook(target)).collect::<Vec<_>>()).await;
    raise(&server, "acme").await;
    let failed_notifications = failed(&server, targets.len()).await;
    for (target, expected_text) in targets {
        let matching = failed_notifications.iter().find(|notification| notification.target == target).unwrap();
        assert_eq!(matching.last_error, expected_text, "{target}");
    }
    server.stop().await;
}

/// Returns unknown names, and one that the system may resolve to itself.
fn meterd_resolver_names() -> Vec<String> {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    ["no-such-host.invalid".to_owned(), own].into_iter().filter(|name| !name.is_empty()).collect()
}
