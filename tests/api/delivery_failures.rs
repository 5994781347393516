//! Failures while notifications are delivered, and what they must not block.

use crate::harness::*;
use crate::notifications::*;
use crate::policies::try_update;
use crate::receivers::{Answer, HttpReceiver, SmtpReceiver};
use meterd::proto::*;
use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

/// The log of this thread. The runtime of these tests has no other thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, DefaultGuard) {
        // If there is only one subscriber, tracing caches the interest of the first thread that logs a line for all
        // threads, and that thread may have no subscriber.
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish()));
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn count(&self, phrase: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(phrase).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hook_policy(client_id: &str, targets: &[String]) -> AlertPolicy {
    let channel = |target: &String| NotificationChannel {
        kind: NotificationChannelKind::Webhook.into(),
        target: target.clone(),
        ..Default::default()
    };
    AlertPolicy { client_id: client_id.into(), channels: targets.iter().map(channel).collect(), ..Default::default() }
}

#[tokio::test]
async fn a_server_without_channels_logs_once_which_kinds_it_can_send() {
    let (log, _guard) = Log::listen();
    let mail = SmtpReceiver::start([]).await;
    let smtp_url = format!("--smtp-url=smtp://{}", mail.address);
    let server = server_with(&[&smtp_url, "--smtp-from=alerts@meterd.example"]).await;
    raise(&server, "acme").await;
    let alerts = server.alerts().list_alerts(ListAlertsRequest::default()).await.unwrap().into_inner().alerts;
    assert_eq!((alerts.len(), notifications(&server).await.len()), (1, 0));
    server.stop().await;
    assert_eq!(log.count("notifications: e-mail and webhooks are sent; no Twilio account is set"), 1);
    assert_eq!((log.count("notifications"), mail.mails().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_a_temporary_failure() {
    let errors = ["530 log in first", "534 too weak", "535 no such login", "538 encrypt first"];
    let mail = SmtpReceiver::start(errors).await;
    let twilio = HttpReceiver::start([401, 403, 408].map(Answer::Status)).await;
    let smtp_url = format!("--smtp-url=smtp://meterd:old@{}", mail.address);
    let twilio_url = format!("--twilio-api-url=http://{}", twilio.address);
    let server = server_with(&[
        &smtp_url,
        "--smtp-from=alerts@meterd.example",
        &twilio_url,
        "--twilio-account-sid=AC123",
        "--twilio-auth-token=hunter2",
        "--twilio-from=+15550000000",
        "--notification-backoff-seconds=1",
    ])
    .await;
    let mails = (0..4).map(|n| channel(NotificationChannelKind::Email, format!("ops{n}@example.com")));
    let texts = (0..3).map(|n| channel(NotificationChannelKind::Sms, format!("+1555123456{n}")));
    set_channels(&server, "", &mails.chain(texts).collect::<Vec<_>>()).await;
    raise(&server, "acme").await;
    let reported = sent(&server, 7).await;
    // Each rejected login costs one attempt.
    assert_eq!(reported.iter().map(|notification| notification.attempt_count).sum::<i32>(), 14);
    assert_eq!((mail.mails().len(), twilio.received().len()), (4, 6));
    server.stop().await;
}

#[tokio::test]
async fn a_channel_with_failing_claims_does_not_delay_others_and_continues_later() {
    let (log, _guard) = Log::listen();
    let (broken, fine) = (HttpReceiver::start([]).await, HttpReceiver::start([]).await);
    let server = server_with(&[]).await;
    server.create_client_in_zone("acme", "UTC").await;
    set_channels(&server, "", &[webhook(broken.url())]).await;
    // An alert that cannot be read. A rollback does not reset the sequence.
    server
        .sql(
            "CREATE SEQUENCE claims;
             CREATE FUNCTION claimed() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM nextval('claims'); RETURN NEW; END $$;
             CREATE TRIGGER claimed BEFORE UPDATE ON notifications FOR EACH ROW
                 WHEN (OLD.notification_id = 'unreadable' AND OLD.attempt_count < NEW.attempt_count)
                 EXECUTE FUNCTION claimed();
             INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts)
             SELECT client_id, 'unreadable', channel_id, kind, target, '[{\"no\": \"alert\"}]' FROM notification_channels",
        )
        .await;
    let tried = async |times: u64| {
        server.sql(&format!("SELECT 1 FROM claims WHERE is_called AND last_value >= {times}")).await == 1
    };
    wait_until(async || tried(1).await).await;
    set_channels(&server, "acme", &[webhook(fine.url())]).await;
    raise(&server, "acme").await;
    wait_until(async || fine.received().len() == 1).await;
    wait_until(async || tried(3).await).await;
    assert_eq!(log.count("notifications of a channel wait"), 1);
    assert_eq!((log.count("notifications wait: the database fails"), broken.received().len()), (0, 0));
    server.sql("UPDATE notifications SET alerts = (SELECT alerts FROM notifications WHERE client_id = 'acme')").await;
    sent(&server, 3).await;
    assert_eq!(ids(&broken.received()).len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_waits_for_a_channels_worker_does_not_delay_events() {
    let hook = HttpReceiver::start([]).await;
    let server = Arc::new(server_with(&[]).await);
    set_channels(&server, "", &[webhook(hook.url())]).await;
    let mut worker = server.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM notification_channels FOR UPDATE").execute(&mut *worker).await.unwrap();
    let updating = server.clone();
    let update = tokio::spawn(async move { try_update(&updating, hook_policy("", &[]), &["channels"]).await });
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until(async || server.sql(waiting).await == 1).await;
    server.track(event("acme", "metered", "1")).await.unwrap();
    assert!(!update.is_finished(), "the event was recorded only after the update had failed");
    worker.rollback().await.unwrap();
    assert_eq!(update.await.unwrap().unwrap().channels, []);
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_notifications_have_failed_when_the_call_that_removes_their_channel_returns() {
    let hook = HttpReceiver::start([Answer::Status(500)]).await;
    let server = server_with(&["--notification-backoff-seconds=3600"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    wait_until(async || notifications(&server).await[0].last_error.contains("500")).await;
    try_update(&server, hook_policy("", &[]), &["channels"]).await.unwrap();
    let failed_notification = notifications(&server).await.remove(0);
    assert_eq!(
        (failed_notification.state(), failed_notification.last_error.as_str()),
        (NotificationState::Failed, "the channel was removed")
    );
    assert!(failed_notification.finish_time.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_maximum_number_of_attempts_applies_if_outcomes_cannot_be_recorded() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&["--notification-attempts-max=2"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    server
        .sql(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'lost'; END $$;
             CREATE TRIGGER lose BEFORE UPDATE ON notifications FOR EACH ROW WHEN (NEW.state = 2) EXECUTE FUNCTION lose()",
        )
        .await;
    raise(&server, "acme").await;
    for attempt in 1..=2 {
        wait_until(async || hook.received().len() == attempt).await;
        server.sql("UPDATE notifications SET next_attempt_time = now()").await;
    }
    let failed_notification = failed(&server, 1).await.remove(0);
    assert_eq!((failed_notification.attempt_count, hook.received().len()), (2, 2));
    assert!(
        failed_notification.last_error.contains("is not known") && failed_notification.finish_time.is_some(),
        "{failed_notification:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_providers_error_is_stored_without_characters_that_the_database_rejects() {
    let twilio =
        HttpReceiver::start([Answer::Body(400, r#"{"code": 1, "message": "no\u0000such\u0007number"}"#)]).await;
    let twilio_url = format!("--twilio-api-url=http://{}", twilio.address);
    let server = server_with(&[
        &twilio_url,
        "--twilio-account-sid=AC123",
        "--twilio-auth-token=hunter2",
        "--twilio-from=+15550000000",
    ])
    .await;
    set_channels(&server, "", &[channel(NotificationChannelKind::Sms, "+15551234567")]).await;
    raise(&server, "acme").await;
    let failed_notification = failed(&server, 1).await.remove(0);
    assert!(failed_notification.last_error.ends_with(": no such number (1)"), "{failed_notification:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_prunes_old_finished_notifications_but_no_pending_ones() {
    let server = server_with(&["--alert-feed-days=10"]).await;
    set_channels(&server, "", &[webhook("http://127.0.0.1:9/")]).await;
    // A quarter of the notifications has each state. Those that have ended fill more than one chunk.
    server
        .sql(
            "INSERT INTO notifications
                 (client_id, notification_id, channel_id, kind, target, alerts, state, create_time, next_attempt_time, finish_time)
             SELECT client_id, 'notification-' || n, channel_id, kind, target, '[]', 1 + n % 4, now() - interval '1 year',
                 now() + interval '50 minutes', CASE WHEN n % 4 > 0 THEN now() - interval '9 days' END
             FROM notification_channels, generate_series(1, 3000) AS n",
        )
        .await;
    let pruned = async |expected: &str| {
        assert_eq!(
            server.run_job("retention").await,
            format!("every month is kept; 0 changes of alerts and {expected} pruned")
        );
    };
    pruned("0 notifications").await;
    server.sql("UPDATE notifications SET finish_time = finish_time - interval '1 day'").await;
    pruned("2250 notifications").await;
    let left = notifications(&server).await;
    let states: HashSet<NotificationState> = left.iter().map(Notification::state).collect();
    assert_eq!((left.len(), states), (750, HashSet::from([NotificationState::Pending])));
    server.stop().await;
}
