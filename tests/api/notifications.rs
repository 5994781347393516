//! Notifications of alerts are delivered at least once, by e-mail, SMS and webhook.

use crate::alerts::metered;
use crate::harness::*;
use crate::receivers::{Answer, HttpReceiver, Received, SmtpReceiver};
use meterd::proto::*;
use meterd_domain::alert::Severity;
use meterd_engine::clock::Clock;
use meterd_store::alerts::channels::{self, Channel};
use std::collections::HashSet;
use std::time::Duration;
use tonic::Code;

/// So early in the month that there are no projections, and without a previous month, so that only thresholds raise
/// alerts.
pub const NOW: &str = "2026-11-02T12:00:00Z";
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// Allows webhooks to receivers on this machine.
pub const LOCAL: [&str; 2] = ["--webhook-allow-http", "--webhook-allow-private"];

pub async fn server_with(flags: &[&str]) -> TestServer {
    let flags: Vec<&str> = LOCAL.iter().chain(flags).copied().collect();
    let server = TestServer::start_with(&flags, Clock::fixed(time(NOW))).await;
    metered(&server, "metered").await;
    server
}

pub fn channel(kind: NotificationChannelKind, target: impl Into<String>) -> Channel {
    let secrets = if kind == NotificationChannelKind::Webhook { vec![SECRET.to_owned()] } else { vec![] };
    Channel { kind: kind as i16, target: target.into(), min_severity: Severity::Critical, secrets }
}

pub fn webhook(target: impl Into<String>) -> Channel {
    channel(NotificationChannelKind::Webhook, target)
}

/// Sets channels directly in the database, without the checks of the RPC.
pub async fn set_channels(server: &TestServer, client_id: &str, channels: &[Channel]) {
    let mut conn = server.pool.acquire().await.unwrap();
    channels::replace(&mut conn, client_id, channels).await.unwrap();
}

/// Makes a client reach its critical threshold.
pub async fn raise(server: &TestServer, client_id: &str) {
    server.track(event(client_id, "metered", "120")).await.unwrap();
}

pub async fn notifications(server: &TestServer) -> Vec<Notification> {
    let request = ListNotificationsRequest { page_size: 1_000, ..Default::default() };
    server.alerts().list_notifications(request).await.unwrap().into_inner().notifications
}

pub fn count(notifications: &[Notification], state: NotificationState) -> usize {
    notifications.iter().filter(|notification| notification.state() == state).count()
}

/// Waits until every notification is in one of these states, and returns them.
pub async fn settled(server: &TestServer, expected: usize, states: &[NotificationState]) -> Vec<Notification> {
    wait_until(async || {
        let all = notifications(server).await;
        all.len() == expected && all.iter().all(|notification| states.contains(&notification.state()))
    })
    .await;
    notifications(server).await
}

pub async fn sent(server: &TestServer, expected: usize) -> Vec<Notification> {
    settled(server, expected, &[NotificationState::Sent]).await
}

pub async fn failed(server: &TestServer, expected: usize) -> Vec<Notification> {
    settled(server, expected, &[NotificationState::Failed]).await
}

/// Moves the times of channels and waiting notifications back by an hour.
pub async fn let_an_hour_pass(server: &TestServer) {
    server
        .sql(
            "BEGIN;
             UPDATE notification_channels SET hour_start_time = hour_start_time - interval '1 hour';
             UPDATE notifications SET next_attempt_time = next_attempt_time - interval '1 hour',
                 create_time = create_time - interval '1 hour' WHERE state = 1;
             COMMIT",
        )
        .await;
}

pub fn ids(received: &[Received]) -> HashSet<String> {
    received.iter().map(|request| request.header("webhook-id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_is_delivered_once_by_e_mail_sms_and_webhook() {
    let (mail, twilio, hook) =
        (SmtpReceiver::start([]).await, HttpReceiver::start([]).await, HttpReceiver::start([]).await);
    let smtp_url = format!("--smtp-url=smtp://meterd:p%40ss@{}", mail.address);
    let twilio_url = format!("--twilio-api-url=http://{}", twilio.address);
    let server = server_with(&[
        &smtp_url,
        "--smtp-from=meterd <alerts@meterd.example>",
        &twilio_url,
        "--twilio-account-sid=AC123",
        "--twilio-auth-token=hunter2",
        "--twilio-from=+15550000000",
    ])
    .await;
    let channels = [
        channel(NotificationChannelKind::Email, "ops@example.com"),
        channel(NotificationChannelKind::Sms, "+15551234567"),
        webhook(hook.url()),
    ];
    set_channels(&server, "", &channels).await;
    raise(&server, "acme").await;
    let alerts_received = sent(&server, 3).await;
    assert!(
        alerts_received
            .iter()
            .all(|notification| notification.attempt_count == 1 && notification.last_error.is_empty())
    );
    let id_of = |kind: NotificationChannelKind| {
        alerts_received.iter().find(|notification| notification.kind() == kind).unwrap().notification_id.clone()
    };
    let request = ListAlertsRequest::default();
    let alerts = server.alerts().list_alerts(request).await.unwrap().into_inner().alerts;
    let [alert] = &alerts[..] else { panic!("{alerts:?}") };
    let message = "acme has used 120.00 USD in November 2026: the critical threshold of 100.00 USD is reached.";
    assert_eq!(alert.message, message);

    let mails = mail.mails();
    let [mail] = &mails[..] else { panic!("{mails:?}") };
    assert_eq!((mail.from.as_str(), mail.to.as_str()), ("alerts@meterd.example", "ops@example.com"));
    assert_eq!(mail.login, "meterd p@ss");
    let (headers, body) = mail.data.split_once("\n\n").unwrap();
    let headers = headers.replace("\n ", " ");
    let id = id_of(NotificationChannelKind::Email);
    assert!(headers.contains(&format!("Message-ID: <{id}@meterd.example>")), "{headers}");
    assert!(headers.contains(&format!("Subject: [critical] {message}")), "{headers}");
    assert!(headers.contains("Date: Mon, 02 Nov 2026 12:00:00 +0000"), "{headers}");
    let body = body.replace("=\n", "");
    assert!(body.contains(message) && body.contains("120 USD") && body.contains(&alert.alert_id), "{body}");

    let requests = twilio.received();
    let [sms] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(sms.path, "/2010-04-01/Accounts/AC123/Messages.json");
    // AC123:hunter2
    assert_eq!(sms.header("authorization"), "Basic QUMxMjM6aHVudGVyMg==");
    assert_eq!(sms.header("content-type"), "application/x-www-form-urlencoded");
    assert!(
        sms.body.starts_with("To=%2B15551234567&From=%2B15550000000&Body=%5Bcritical%5D+acme+has+used+120.00"),
        "{}",
        sms.body
    );

    let requests = hook.received();
    let [post] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((post.method.as_str(), post.path.as_str()), ("POST", "/alerts"));
    assert_eq!(post.header("webhook-id"), id_of(NotificationChannelKind::Webhook));
    assert_eq!(post.header("webhook-timestamp"), time(NOW).timestamp().to_string());
    assert_eq!(post.header("content-type"), "application/json");
    assert!(post.is_signed_with(SECRET) && !post.is_signed_with(OLD_SECRET));
    let raised = alert.raise_time.unwrap();
    let raised = chrono::DateTime::from_timestamp(raised.seconds, raised.nanos as u32).unwrap();
    let raised = raised.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
    let expected = serde_json::json!({
        "type": "alert.raised",
        "timestamp": raised,
        "data": {
            "alertId": alert.alert_id,
            "clientId": "acme",
            "type": "ALERT_TYPE_THRESHOLD",
            "severity": "ALERT_SEVERITY_CRITICAL",
            "period": "2026-11",
            "message": message,
            "current": "120",
            "threshold": "100",
            "currency": "USD",
            "raiseTime": raised,
            "raiseCount": 1,
        },
    });
    assert_eq!(post.json(), expected);
    let metrics = meterd::web::recorder().render();
    for kind in ["email", "sms", "webhook"] {
        let counter = format!("meterd_notifications_total{{kind=\"{kind}\",outcome=\"sent\"}}");
        assert!(metrics.contains(&counter), "{metrics}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_and_each_client_get_alerts_from_their_chosen_severity() {
    let (operator, own) = (HttpReceiver::start([]).await, HttpReceiver::start([]).await);
    let server = server_with(&[]).await;
    server.create_client_in_zone("acme", "UTC").await;
    set_channels(&server, "", &[webhook(operator.url())]).await;
    set_channels(&server, "acme", &[Channel { min_severity: Severity::Warning, ..webhook(own.url()) }]).await;
    for client_id in ["acme", "globex"] {
        server.track(event(client_id, "metered", "60")).await.unwrap();
        server.track(event(client_id, "metered", "60")).await.unwrap();
    }
    sent(&server, 4).await;
    let alerts_received = |receiver: &HttpReceiver| {
        let mut alerts_received: Vec<String> = receiver
            .received()
            .iter()
            .map(|post| {
                let data = &post.json()["data"];
                format!("{} {}", data["clientId"], data["severity"]).replace('"', "")
            })
            .collect();
        alerts_received.sort();
        alerts_received
    };
    assert_eq!(alerts_received(&operator), ["acme ALERT_SEVERITY_CRITICAL", "globex ALERT_SEVERITY_CRITICAL"]);
    assert_eq!(alerts_received(&own), ["acme ALERT_SEVERITY_CRITICAL", "acme ALERT_SEVERITY_WARNING"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_retried_with_the_same_id_and_body_after_an_error_or_timeout() {
    let hook = HttpReceiver::start([Answer::Status(500), Answer::Late(Duration::from_secs(60))]).await;
    let server = server_with(&["--notification-timeout-seconds=1", "--notification-backoff-seconds=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    wait_until(async || !hook.received().is_empty()).await;
    server.clock.set(time("2026-11-02T12:00:09Z"));
    let alerts_received = sent(&server, 1).await;
    assert_eq!((alerts_received[0].attempt_count, alerts_received[0].last_error.as_str()), (3, ""));
    let received = hook.received();
    assert_eq!(received.len(), 3);
    assert_eq!(ids(&received), HashSet::from([alerts_received[0].notification_id.clone()]));
    assert!(received.iter().all(|post| post.body == received[0].body && post.is_signed_with(SECRET)));
    // The timestamp is that of the attempt, because receivers reject old ones.
    assert_eq!(received[2].header("webhook-timestamp"), time("2026-11-02T12:00:09Z").timestamp().to_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_notification_is_listed_with_its_reason_and_can_be_retried() {
    let hook = HttpReceiver::start([500, 503].map(Answer::Status)).await;
    let server = server_with(&["--notification-attempts-max=2", "--notification-backoff-seconds=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let failed_notification = failed(&server, 1).await.remove(0);
    assert_eq!((failed_notification.attempt_count, hook.received().len()), (2, 2));
    assert!(failed_notification.last_error.contains("503"), "{failed_notification:?}");
    assert!(failed_notification.finish_time.is_some() && failed_notification.next_attempt_time.is_none());

    let request = RetryNotificationRequest { notification_id: failed_notification.notification_id.clone() };
    let retried = server.alerts().retry_notification(request.clone()).await.unwrap().into_inner().notification.unwrap();
    assert_eq!((retried.last_error.as_str(), retried.finish_time), ("", None));
    let alerts_received = sent(&server, 1).await;
    assert_eq!(
        (alerts_received[0].attempt_count, &alerts_received[0].notification_id),
        (1, &failed_notification.notification_id)
    );
    assert_eq!((hook.received().len(), ids(&hook.received()).len()), (3, 1));
    let again = server.alerts().retry_notification(request).await;
    assert_error(again, Code::FailedPrecondition, "NOTIFICATION_NOT_FAILED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_error_is_not_retried_and_a_temporary_one_is() {
    let errors = ["550 no such user", "451 not now"];
    let refused = r#"{"code": 21211, "message": "Invalid 'To' Phone Number"}"#;
    let mail = SmtpReceiver::start(errors).await;
    let twilio = HttpReceiver::start([Answer::Body(400, refused), Answer::Status(429)]).await;
    let hook = HttpReceiver::start([410, 429].map(Answer::Status)).await;
    let smtp_url = format!("--smtp-url=smtp://{}", mail.address);
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
    let channels = [
        channel(NotificationChannelKind::Email, "ops@example.com"),
        channel(NotificationChannelKind::Sms, "+15551234567"),
        webhook(hook.url()),
    ];
    set_channels(&server, "", &channels).await;
    raise(&server, "acme").await;
    let failed_notifications = failed(&server, 3).await;
    for (kind, said) in [
        (NotificationChannelKind::Email, "no such user"),
        (NotificationChannelKind::Sms, "Invalid 'To' Phone Number (21211)"),
        (NotificationChannelKind::Webhook, "410"),
    ] {
        let matching = failed_notifications.iter().find(|notification| notification.kind() == kind).unwrap();
        assert!(matching.last_error.contains(said) && matching.attempt_count == 1, "{matching:?}");
    }
    for failed_notification in failed_notifications {
        let request = RetryNotificationRequest { notification_id: failed_notification.notification_id };
        server.alerts().retry_notification(request).await.unwrap();
    }
    let alerts_received = sent(&server, 3).await;
    assert!(alerts_received.iter().all(|notification| notification.attempt_count == 2), "{alerts_received:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unrecorded_delivery_is_repeated_with_the_same_id() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&[]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    // Recording the first delivery fails. The sequence counts it, because no rollback resets a sequence.
    server
        .sql(
            "CREATE SEQUENCE lost;
             CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM nextval('lost'); RAISE EXCEPTION 'lost'; END $$;
             CREATE TRIGGER lose BEFORE UPDATE ON notifications FOR EACH ROW WHEN (NEW.state = 2) EXECUTE FUNCTION lose()",
        )
        .await;
    raise(&server, "acme").await;
    wait_until(async || server.sql("SELECT 1 FROM lost WHERE is_called").await == 1).await;
    assert_eq!(hook.received().len(), 1);
    server.sql("DROP TRIGGER lose ON notifications").await;
    let claimed = notifications(&server).await.remove(0);
    assert_eq!((claimed.state(), claimed.attempt_count), (NotificationState::Pending, 1));
    // No other worker claims it before the claim expires.
    assert_eq!(
        server.sql("SELECT 1 FROM notifications WHERE next_attempt_time > now() + interval '50 seconds'").await,
        1
    );
    server.sql("UPDATE notifications SET next_attempt_time = now()").await;
    let alerts_received = sent(&server, 1).await;
    assert_eq!((alerts_received[0].attempt_count, hook.received().len(), ids(&hook.received()).len()), (2, 2, 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_delivery_is_finished_before_the_server_stops() {
    let hook = HttpReceiver::start([Answer::Late(Duration::from_secs(1))]).await;
    let server = server_with(&[]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    wait_until(async || hook.received().len() == 1).await;
    let pool = server.pool.clone();
    let state = sqlx::query_scalar::<_, i16>("SELECT state FROM notifications");
    assert_eq!(state.fetch_one(&pool).await.unwrap(), NotificationState::Pending as i16);
    let url = server.database_url.clone();
    server.stop().await;
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let state = sqlx::query_scalar::<_, i16>("SELECT state FROM notifications");
    assert_eq!(state.fetch_one(&pool).await.unwrap(), NotificationState::Sent as i16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_receiver_does_not_delay_others() {
    let stuck = HttpReceiver::start(std::iter::repeat_n(Answer::Late(Duration::from_secs(60)), 100)).await;
    let fine = HttpReceiver::start([]).await;
    let server = server_with(&[]).await;
    server.create_client_in_zone("acme", "UTC").await;
    set_channels(&server, "", &[webhook(stuck.url())]).await;
    set_channels(&server, "acme", &[webhook(fine.url())]).await;
    for number in 0..10 {
        raise(&server, &format!("client-{number}")).await;
    }
    wait_until(async || !stuck.received().is_empty()).await;
    raise(&server, "acme").await;
    let begun = std::time::Instant::now();
    wait_until(async || fine.received().len() == 1).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Only the notifications of one claim are sent, because the channel waits for them.
    assert!(stuck.received().len() <= 4);
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_of_a_removed_channel_fail_and_can_be_retried_when_it_is_set_again() {
    let hook = HttpReceiver::start([Answer::Status(500)]).await;
    let server = server_with(&["--notification-backoff-seconds=3600"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    wait_until(async || notifications(&server).await[0].last_error.contains("500")).await;
    set_channels(&server, "", &[]).await;
    let failed_notification = failed(&server, 1).await.remove(0);
    assert_eq!(failed_notification.last_error, "the channel was removed");
    set_channels(&server, "", &[webhook(hook.url())]).await;
    let request = RetryNotificationRequest { notification_id: failed_notification.notification_id };
    server.alerts().retry_notification(request).await.unwrap();
    sent(&server, 1).await;

    // Added by a transaction that still saw the channel.
    server.sql("UPDATE notifications SET state = 1, channel_id = -1, next_attempt_time = now()").await;
    let flags: Vec<&str> = LOCAL.to_vec();
    let other = TestServer::replica(&server.database_url, &flags, server.clock.clone()).await;
    let failed_notifications = failed(&server, 1).await;
    assert_eq!(failed_notifications[0].last_error, "the channel was removed");
    other.stop().await;
    server.stop().await;
}
