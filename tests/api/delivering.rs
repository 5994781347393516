//! What goes wrong while notifications are delivered, and what it must not hold up.

use crate::harness::*;
use crate::notifying::*;
use crate::policies::try_update;
use crate::receivers::{Answer, HttpReceiver, SmtpReceiver};
use meterd::proto::*;
use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

/// What is logged in this thread, where the runtime of a test has no other.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, DefaultGuard) {
        // With one subscriber alone, tracing takes what the first thread that comes by wants of a line, and that may be one
        // without any, for what all want.
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
async fn a_server_without_channels_sends_nothing_and_says_once_what_it_could_send() {
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
async fn a_password_that_was_changed_is_a_passing_failure() {
    let refusals = ["530 log in first", "534 too weak", "535 no such login", "538 encrypt first"];
    let mail = SmtpReceiver::start(refusals).await;
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
    let told = sent(&server, 7).await;
    // Each refusal costs one attempt.
    assert_eq!(told.iter().map(|notification| notification.attempt_count).sum::<i32>(), 14);
    assert_eq!((mail.mails().len(), twilio.received().len()), (4, 6));
    server.stop().await;
}

#[tokio::test]
async fn a_channel_whose_claims_fail_holds_up_no_other_is_logged_once_and_goes_on_when_it_can() {
    let (log, _guard) = Log::listen();
    let (broken, fine) = (HttpReceiver::start([]).await, HttpReceiver::start([]).await);
    let server = server_with(&[]).await;
    server.client_in("acme", "UTC").await;
    set_channels(&server, "", &[webhook(broken.url())]).await;
    // An alert that cannot be read. What is rolled back does not take back the sequence.
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
    eventually(async || tried(1).await).await;
    set_channels(&server, "acme", &[webhook(fine.url())]).await;
    raise(&server, "acme").await;
    eventually(async || fine.received().len() == 1).await;
    eventually(async || tried(3).await).await;
    assert_eq!(log.count("notifications of a channel wait"), 1);
    assert_eq!((log.count("notifications wait: the database fails"), broken.received().len()), (0, 0));
    server.sql("UPDATE notifications SET alerts = (SELECT alerts FROM notifications WHERE client_id = 'acme')").await;
    sent(&server, 3).await;
    assert_eq!(ids(&broken.received()).len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_waits_for_a_worker_with_its_channel_holds_up_no_event() {
    let hook = HttpReceiver::start([]).await;
    let server = Arc::new(server_with(&[]).await);
    set_channels(&server, "", &[webhook(hook.url())]).await;
    let mut worker = server.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM notification_channels FOR UPDATE").execute(&mut *worker).await.unwrap();
    let updating = server.clone();
    let update = tokio::spawn(async move { try_update(&updating, hook_policy("", &[]), &["channels"]).await });
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(async || server.sql(waiting).await == 1).await;
    server.track(event("acme", "metered", "1")).await.unwrap();
    assert!(!update.is_finished(), "the event came through only after the policy had given up");
    worker.rollback().await.unwrap();
    assert_eq!(update.await.unwrap().unwrap().channels, []);
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_channel_is_given_up_when_the_call_that_removes_it_answers() {
    let hook = HttpReceiver::start([Answer::Status(500)]).await;
    let server = server_with(&["--notification-backoff-seconds=3600"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    eventually(async || notifications(&server).await[0].last_error.contains("500")).await;
    try_update(&server, hook_policy("", &[]), &["channels"]).await.unwrap();
    let given_up = notifications(&server).await.remove(0);
    assert_eq!(
        (given_up.state(), given_up.last_error.as_str()),
        (NotificationState::Failed, "the channel was removed")
    );
    assert!(given_up.finish_time.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_most_attempts_hold_where_their_outcome_cannot_be_noted() {
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
        eventually(async || hook.received().len() == attempt).await;
        server.sql("UPDATE notifications SET next_attempt_time = now()").await;
    }
    let given_up = failed(&server, 1).await.remove(0);
    assert_eq!((given_up.attempt_count, hook.received().len()), (2, 2));
    assert!(given_up.last_error.contains("is not known") && given_up.finish_time.is_some(), "{given_up:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_says_is_kept_without_characters_that_the_database_does_not_take() {
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
    let given_up = failed(&server, 1).await.remove(0);
    assert!(given_up.last_error.ends_with(": no such number (1)"), "{given_up:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_prunes_notifications_that_ended_long_ago_and_none_that_waits() {
    let server = server_with(&["--alert-feed-days=10"]).await;
    set_channels(&server, "", &[webhook("http://127.0.0.1:9/")]).await;
    // A quarter of each state; more than one chunk of those that have ended.
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
