//! Notifications: people are told of alerts, at least once, by e-mail, SMS and webhook.

use crate::alerting::metered;
use crate::harness::*;
use crate::receivers::{Answer, HttpReceiver, Received, SmtpReceiver};
use meterd::clock::Clock;
use meterd::domain::alert::Severity;
use meterd::proto::*;
use meterd::store::channels::{self, Channel};
use std::collections::HashSet;
use std::process::Stdio;
use std::time::Duration;
use tonic::Code;

/// Too early in the month for projections, and with no month before: only thresholds are raised.
const NOW: &str = "2026-11-02T12:00:00Z";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// Lets webhooks go to receivers on this machine.
const LOCAL: [&str; 2] = ["--webhook-allow-http", "--webhook-allow-private"];

async fn server_with(flags: &[&str]) -> TestServer {
    let flags: Vec<&str> = LOCAL.iter().chain(flags).copied().collect();
    let server = TestServer::start_with(&flags, Clock::fixed(time(NOW))).await;
    metered(&server, "metered").await;
    server
}

fn channel(kind: NotificationChannelKind, target: impl Into<String>) -> Channel {
    let secrets = if kind == NotificationChannelKind::Webhook { vec![SECRET.to_owned()] } else { vec![] };
    Channel { kind: kind as i16, target: target.into(), min_severity: Severity::Critical, secrets }
}

fn webhook(target: impl Into<String>) -> Channel {
    channel(NotificationChannelKind::Webhook, target)
}

/// Sets channels as they are, whatever the RPC would say of them.
async fn set_channels(server: &TestServer, client_id: &str, channels: &[Channel]) {
    let mut conn = server.pool.acquire().await.unwrap();
    channels::replace(&mut conn, client_id, channels).await.unwrap();
}

/// A client's usage reaches the critical threshold.
async fn raise(server: &TestServer, client_id: &str) {
    server.track(event(client_id, "metered", "120")).await.unwrap();
}

async fn notifications(server: &TestServer) -> Vec<Notification> {
    let request = ListNotificationsRequest { page_size: 1_000, ..Default::default() };
    server.alerts().list_notifications(request).await.unwrap().into_inner().notifications
}

fn count(notifications: &[Notification], state: NotificationState) -> usize {
    notifications.iter().filter(|notification| notification.state() == state).count()
}

/// Waits until every notification is in one of these states, and gives them.
async fn settled(server: &TestServer, expected: usize, states: &[NotificationState]) -> Vec<Notification> {
    eventually(async || {
        let all = notifications(server).await;
        all.len() == expected && all.iter().all(|notification| states.contains(&notification.state()))
    })
    .await;
    notifications(server).await
}

async fn sent(server: &TestServer, expected: usize) -> Vec<Notification> {
    settled(server, expected, &[NotificationState::Sent]).await
}

async fn failed(server: &TestServer, expected: usize) -> Vec<Notification> {
    settled(server, expected, &[NotificationState::Failed]).await
}

/// An hour goes by for the channels and what they hold up.
async fn let_an_hour_pass(server: &TestServer) {
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

fn ids(received: &[Received]) -> HashSet<String> {
    received.iter().map(|request| request.header("webhook-id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_arrives_once_by_e_mail_sms_and_webhook() {
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
    let told = sent(&server, 3).await;
    assert!(told.iter().all(|notification| notification.attempt_count == 1 && notification.last_error.is_empty()));
    let id_of = |kind: NotificationChannelKind| {
        told.iter().find(|notification| notification.kind() == kind).unwrap().notification_id.clone()
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
    let expected = serde_json::json!({
        "type": "alert.raised",
        "timestamp": NOW,
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
            "raiseTime": NOW,
            "raiseCount": 1,
        },
    });
    assert_eq!(post.json(), expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_hears_of_every_client_and_a_client_of_itself_from_the_severity_on_that_they_chose() {
    let (operator, own) = (HttpReceiver::start([]).await, HttpReceiver::start([]).await);
    let server = server_with(&[]).await;
    server.client_in("acme", "UTC").await;
    set_channels(&server, "", &[webhook(operator.url())]).await;
    set_channels(&server, "acme", &[Channel { min_severity: Severity::Warning, ..webhook(own.url()) }]).await;
    for client_id in ["acme", "globex"] {
        server.track(event(client_id, "metered", "60")).await.unwrap();
        server.track(event(client_id, "metered", "60")).await.unwrap();
    }
    sent(&server, 4).await;
    let told = |receiver: &HttpReceiver| {
        let mut told: Vec<String> = receiver
            .received()
            .iter()
            .map(|post| {
                let data = &post.json()["data"];
                format!("{} {}", data["clientId"], data["severity"]).replace('"', "")
            })
            .collect();
        told.sort();
        told
    };
    assert_eq!(told(&operator), ["acme ALERT_SEVERITY_CRITICAL", "globex ALERT_SEVERITY_CRITICAL"]);
    assert_eq!(told(&own), ["acme ALERT_SEVERITY_CRITICAL", "acme ALERT_SEVERITY_WARNING"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_tried_again_after_an_error_and_after_a_timeout_with_the_same_id_and_body() {
    let hook = HttpReceiver::start([Answer::Status(500), Answer::Late(Duration::from_secs(60))]).await;
    let server = server_with(&["--notification-timeout-seconds=1", "--notification-backoff-seconds=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    eventually(async || !hook.received().is_empty()).await;
    server.clock.set(time("2026-11-02T12:00:09Z"));
    let told = sent(&server, 1).await;
    assert_eq!((told[0].attempt_count, told[0].last_error.as_str()), (3, ""));
    let received = hook.received();
    assert_eq!(received.len(), 3);
    assert_eq!(ids(&received), HashSet::from([told[0].notification_id.clone()]));
    assert!(received.iter().all(|post| post.body == received[0].body && post.is_signed_with(SECRET)));
    // As of the attempt: receivers refuse old ones.
    assert_eq!(received[2].header("webhook-timestamp"), time("2026-11-02T12:00:09Z").timestamp().to_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_after_the_last_attempt_is_listed_with_the_reason_and_delivered_when_it_is_retried() {
    let hook = HttpReceiver::start([500, 503].map(Answer::Status)).await;
    let server = server_with(&["--notification-attempts-max=2", "--notification-backoff-seconds=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let given_up = failed(&server, 1).await.remove(0);
    assert_eq!((given_up.attempt_count, hook.received().len()), (2, 2));
    assert!(given_up.last_error.contains("503"), "{given_up:?}");
    assert!(given_up.finish_time.is_some() && given_up.next_attempt_time.is_none());

    let request = RetryNotificationRequest { notification_id: given_up.notification_id.clone() };
    let retried = server.alerts().retry_notification(request.clone()).await.unwrap().into_inner().notification.unwrap();
    assert_eq!((retried.last_error.as_str(), retried.finish_time), ("", None));
    let told = sent(&server, 1).await;
    assert_eq!((told[0].attempt_count, &told[0].notification_id), (1, &given_up.notification_id));
    assert_eq!((hook.received().len(), ids(&hook.received()).len()), (3, 1));
    let again = server.alerts().retry_notification(request).await;
    assert_refused(again, Code::FailedPrecondition, "NOTIFICATION_NOT_FAILED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_refusal_is_not_tried_again_and_a_passing_one_is() {
    let refusals = ["550 no such user", "451 not now"];
    let refused = r#"{"code": 21211, "message": "Invalid 'To' Phone Number"}"#;
    let mail = SmtpReceiver::start(refusals).await;
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
    let given_up = failed(&server, 3).await;
    for (kind, said) in [
        (NotificationChannelKind::Email, "no such user"),
        (NotificationChannelKind::Sms, "Invalid 'To' Phone Number (21211)"),
        (NotificationChannelKind::Webhook, "410"),
    ] {
        let of_kind = given_up.iter().find(|notification| notification.kind() == kind).unwrap();
        assert!(of_kind.last_error.contains(said) && of_kind.attempt_count == 1, "{of_kind:?}");
    }
    for given_up in given_up {
        let request = RetryNotificationRequest { notification_id: given_up.notification_id };
        server.alerts().retry_notification(request).await.unwrap();
    }
    let told = sent(&server, 3).await;
    assert!(told.iter().all(|notification| notification.attempt_count == 2), "{told:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let elsewhere = HttpReceiver::start([]).await;
    let hook = HttpReceiver::start([Answer::Redirect(elsewhere.url())]).await;
    let server = server_with(&["--notification-attempts-max=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let given_up = failed(&server, 1).await;
    assert!(given_up[0].last_error.contains("redirects are not followed"), "{given_up:?}");
    assert_eq!((hook.received().len(), elsewhere.received().len()), (1, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_do_not_reach_inner_addresses_neither_by_number_nor_by_name() {
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
    // The system's resolver gives loopback addresses for it.
    let names = ["localhost", "localhost."];
    let targets: Vec<String> = hosts.iter().chain(&names).map(|host| format!("http://{host}:{port}/")).collect();
    set_channels(&server, "", &targets.iter().map(webhook).collect::<Vec<_>>()).await;
    raise(&server, "acme").await;
    let given_up = failed(&server, targets.len()).await;
    for notification in &given_up {
        assert!(notification.last_error.contains("private, loopback, link-local"), "{notification:?}");
    }
    assert_eq!(hook.received().len(), 0);

    // What can be seen at once is refused when the channel is set.
    for host in hosts {
        let channel = NotificationChannel {
            kind: NotificationChannelKind::Webhook.into(),
            target: format!("http://{host}:{port}/"),
            ..Default::default()
        };
        let policy = AlertPolicy { channels: vec![channel], ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["channels".into()] });
        let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask };
        let answer = server.alerts().update_alert_policy(request).await;
        assert_wrong(answer, "INVALID_FIELD", &["policy.channels[0].target"]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_have_become_stricter_hold_for_channels_that_are_there() {
    let hook = HttpReceiver::start([]).await;
    let flags = ["--webhook-allow-private", "--notification-attempts-max=1"];
    let server = TestServer::start_with(&flags, Clock::fixed(time(NOW))).await;
    metered(&server, "metered").await;
    set_channels(&server, "", &[webhook(hook.url()), channel(NotificationChannelKind::Email, "ops@example.com")]).await;
    raise(&server, "acme").await;
    let given_up = failed(&server, 2).await;
    let errors: Vec<&str> = given_up.iter().map(|notification| notification.last_error.as_str()).collect();
    assert!(errors.iter().any(|error| error.contains("must be https")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("no SMTP server is set")), "{errors:?}");
    assert_eq!(hook.received().len(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_key_is_changed_receivers_verify_with_the_old_one_and_with_the_new_one() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&[]).await;
    let with =
        |secrets: &[&str]| Channel { secrets: secrets.iter().map(|s| s.to_string()).collect(), ..webhook(hook.url()) };
    for (client_id, secrets) in [("a", &[OLD_SECRET][..]), ("b", &[SECRET, OLD_SECRET]), ("c", &[SECRET])] {
        set_channels(&server, "", &[with(secrets)]).await;
        raise(&server, client_id).await;
        eventually(async || notifications(&server).await.iter().all(|n| n.state() == NotificationState::Sent)).await;
    }
    let verified: Vec<(bool, bool)> =
        hook.received().iter().map(|post| (post.is_signed_with(OLD_SECRET), post.is_signed_with(SECRET))).collect();
    assert_eq!(verified, [(true, false), (true, true), (false, true)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_most_of_an_hour_alerts_wait_and_come_as_one_digest() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&["--notifications-hourly-max=2"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    for number in 0..107 {
        raise(&server, &format!("client-{number:03}")).await;
    }
    let held = async |count: usize| {
        let waiting = "SELECT 1 FROM notifications WHERE state = 1 AND next_attempt_time > now() AND attempt_count = 0";
        eventually(async || server.sql(waiting).await == count as u64).await;
    };
    held(105).await;
    assert_eq!(hook.received().len(), 2);

    let_an_hour_pass(&server).await;
    let states = [NotificationState::Sent, NotificationState::Digested];
    let all = settled(&server, 108, &states).await;
    let digests: Vec<_> = all.iter().filter(|notification| notification.alert_count > 1).collect();
    let [digest] = &digests[..] else { panic!("{digests:?}") };
    assert_eq!((digest.state(), digest.alert_count, digest.alert_ids.len()), (NotificationState::Sent, 105, 100));
    let digested: Vec<_> = all.iter().filter(|n| n.state() == NotificationState::Digested).collect();
    assert_eq!(digested.len(), 105);
    assert!(
        digested
            .iter()
            .all(|n| n.digest_id == digest.notification_id && n.attempt_count == 0 && n.finish_time.is_some())
    );

    let received = hook.received();
    assert_eq!(received.len(), 3);
    let body = received[2].json();
    assert_eq!((&body["type"], &body["data"]["alertCount"]), (&"alert.digest".into(), &105.into()));
    let told = body["data"]["alerts"].as_array().unwrap();
    assert_eq!(
        (told.len(), &told[0]["clientId"], &told[99]["clientId"]),
        (100, &"client-002".into(), &"client-101".into())
    );

    // The digest was the first of the new hour, so there is room for one more; a single one that waits is no digest.
    for number in 107..109 {
        raise(&server, &format!("client-{number:03}")).await;
    }
    held(1).await;
    assert_eq!(hook.received().len(), 4);
    let_an_hour_pass(&server).await;
    let all = settled(&server, 110, &states).await;
    assert_eq!(count(&all, NotificationState::Digested), 105);
    assert_eq!(hook.received()[4].json()["type"], "alert.raised");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_do_not_count_in_the_hour_and_are_not_held_up_by_it() {
    let hook = HttpReceiver::start([500, 500].map(Answer::Status)).await;
    let flags = ["--notifications-hourly-max=1", "--notification-backoff-seconds=1", "--notification-attempts-max=2"];
    let server = server_with(&flags).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let given_up = failed(&server, 1).await.remove(0);
    raise(&server, "globex").await;
    let request = RetryNotificationRequest { notification_id: given_up.notification_id };
    server.alerts().retry_notification(request).await.unwrap();
    eventually(async || count(&notifications(&server).await, NotificationState::Sent) == 1).await;
    let waiting: Vec<_> =
        notifications(&server).await.into_iter().filter(|n| n.state() == NotificationState::Pending).collect();
    assert_eq!((waiting.len(), waiting[0].attempt_count), (1, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_deliver_each_once_and_share_the_hour() {
    let hook = HttpReceiver::start([]).await;
    let flags: Vec<&str> = LOCAL.iter().chain(&["--notifications-hourly-max=30"]).copied().collect();
    let one = server_with(&flags[2..]).await;
    let two = TestServer::replica(&one.database_url, &flags, one.clock.clone()).await;
    set_channels(&one, "", &[webhook(hook.url())]).await;
    let events = |from: usize| (from..from + 40).map(|n| event(&format!("client-{n:02}"), "metered", "120")).collect();
    let (first, second) = tokio::join!(one.batch(events(0), false), two.batch(events(40), false));
    assert!(first.iter().chain(&second).all(|result| result.outcome() == EventOutcome::Accepted));
    eventually(async || {
        let all = notifications(&one).await;
        count(&all, NotificationState::Sent) == 30
            && one.sql("SELECT 1 FROM notifications WHERE state = 1 AND next_attempt_time > now()").await == 50
    })
    .await;
    assert_eq!((hook.received().len(), ids(&hook.received()).len()), (30, 30));
    let_an_hour_pass(&one).await;
    let all = settled(&one, 81, &[NotificationState::Sent, NotificationState::Digested]).await;
    assert_eq!(count(&all, NotificationState::Digested), 50);
    assert_eq!((hook.received().len(), ids(&hook.received()).len()), (31, 31));
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_is_not_noted_is_repeated_under_the_same_id() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&[]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    // The note of the first delivery is lost.
    server
        .sql(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'lost'; END $$;
             CREATE TRIGGER lose BEFORE UPDATE ON notifications FOR EACH ROW WHEN (NEW.state = 2) EXECUTE FUNCTION lose()",
        )
        .await;
    raise(&server, "acme").await;
    eventually(async || hook.received().len() == 1).await;
    server.sql("DROP TRIGGER lose ON notifications").await;
    let claimed = notifications(&server).await.remove(0);
    assert_eq!((claimed.state(), claimed.attempt_count), (NotificationState::Pending, 1));
    // Nobody else takes it before the claim has run out.
    assert_eq!(
        server.sql("SELECT 1 FROM notifications WHERE next_attempt_time > now() + interval '50 seconds'").await,
        1
    );
    server.sql("UPDATE notifications SET next_attempt_time = now()").await;
    let told = sent(&server, 1).await;
    assert_eq!((told[0].attempt_count, hook.received().len(), ids(&hook.received()).len()), (2, 2, 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_under_way_is_finished_before_the_server_stops() {
    let hook = HttpReceiver::start([Answer::Late(Duration::from_secs(1))]).await;
    let server = server_with(&[]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    eventually(async || hook.received().len() == 1).await;
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
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    let stuck = HttpReceiver::start(std::iter::repeat_n(Answer::Late(Duration::from_secs(60)), 100)).await;
    let fine = HttpReceiver::start([]).await;
    let server = server_with(&[]).await;
    server.client_in("acme", "UTC").await;
    set_channels(&server, "", &[webhook(stuck.url())]).await;
    set_channels(&server, "acme", &[webhook(fine.url())]).await;
    for number in 0..10 {
        raise(&server, &format!("client-{number}")).await;
    }
    eventually(async || !stuck.received().is_empty()).await;
    raise(&server, "acme").await;
    let begun = std::time::Instant::now();
    eventually(async || fine.received().len() == 1).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Those of one claim only: the channel waits for them.
    assert!(stuck.received().len() <= 4);
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_channel_that_was_removed_is_given_up_and_goes_to_the_one_that_is_set_again() {
    let hook = HttpReceiver::start([Answer::Status(500)]).await;
    let server = server_with(&["--notification-backoff-seconds=3600"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    eventually(async || notifications(&server).await[0].last_error.contains("500")).await;
    set_channels(&server, "", &[]).await;
    let given_up = failed(&server, 1).await.remove(0);
    assert_eq!(given_up.last_error, "the channel was removed");
    set_channels(&server, "", &[webhook(hook.url())]).await;
    let request = RetryNotificationRequest { notification_id: given_up.notification_id };
    server.alerts().retry_notification(request).await.unwrap();
    sent(&server, 1).await;

    // Queued by a transaction that still saw the channel.
    server.sql("UPDATE notifications SET state = 1, channel_id = -1, next_attempt_time = now()").await;
    let flags: Vec<&str> = LOCAL.to_vec();
    let other = TestServer::replica(&server.database_url, &flags, server.clock.clone()).await;
    let given_up = failed(&server, 1).await;
    assert_eq!(given_up[0].last_error, "the channel was removed");
    other.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_are_listed_by_whose_they_are_and_by_state_page_by_page() {
    let (operator, own) =
        (HttpReceiver::start([]).await, HttpReceiver::start([Answer::Status(410), Answer::Status(410)]).await);
    let server = server_with(&[]).await;
    server.client_in("acme", "UTC").await;
    set_channels(&server, "", &[webhook(operator.url())]).await;
    set_channels(&server, "acme", &[Channel { min_severity: Severity::Warning, ..webhook(own.url()) }]).await;
    for units in ["60", "60"] {
        server.track(event("acme", "metered", units)).await.unwrap();
    }
    raise(&server, "globex").await;
    settled(&server, 4, &[NotificationState::Sent, NotificationState::Failed]).await;
    let list = async |request: ListNotificationsRequest| {
        server.alerts().list_notifications(request).await.map(|answer| answer.into_inner())
    };
    let sent = NotificationState::Sent.into();
    for (request, expected) in [
        (ListNotificationsRequest::default(), 4),
        (ListNotificationsRequest { operator_only: true, ..Default::default() }, 2),
        (ListNotificationsRequest { client_id: "acme".into(), ..Default::default() }, 2),
        (ListNotificationsRequest { client_id: "globex".into(), ..Default::default() }, 0),
        (ListNotificationsRequest { states: vec![sent], ..Default::default() }, 2),
        (ListNotificationsRequest { client_id: "acme".into(), states: vec![sent], ..Default::default() }, 0),
    ] {
        let (mut page_token, mut found) = (String::new(), vec![]);
        loop {
            let page = list(ListNotificationsRequest { page_size: 1, page_token, ..request.clone() }).await.unwrap();
            assert!(page.notifications.len() <= 1);
            found.extend(page.notifications);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let whole = list(request.clone()).await.unwrap().notifications;
        assert_eq!((whole.len(), &whole), (expected, &found), "{request:?}");
        let time = |n: &Notification| n.create_time.map(|time| (time.seconds, time.nanos));
        assert!(whole.windows(2).all(|pair| time(&pair[0]) >= time(&pair[1])));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_of_notification_calls_is_refused_with_the_fields() {
    let server = TestServer::start().await;
    let mut alerts = server.alerts();
    let request = ListNotificationsRequest {
        client_id: "acme".into(),
        operator_only: true,
        states: vec![1, 0, 9],
        page_size: 1_001,
        ..Default::default()
    };
    let fields = ["operator_only", "states[1]", "states[2]", "page_size"];
    assert_wrong(alerts.list_notifications(request).await, "INVALID_FIELD", &fields);
    let request = ListNotificationsRequest { page_token: "forged".into(), ..Default::default() };
    assert_wrong(alerts.list_notifications(request).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    let retry = |id: &str| RetryNotificationRequest { notification_id: id.into() };
    assert_wrong(alerts.retry_notification(retry("")).await, "INVALID_FIELD", &["notification_id"]);
    assert_refused(alerts.retry_notification(retry("none")).await, Code::NotFound, "NOTIFICATION_NOT_FOUND");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_who_was_not_told_and_tells_them() {
    let hook = HttpReceiver::start([Answer::Status(410)]).await;
    let server = server_with(&[]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let id = failed(&server, 1).await.remove(0).notification_id;
    let meterd = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
        command.args(arguments).env("METERD_SERVER", &server.address).stdin(Stdio::null());
        let output = command.output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    for arguments in [&["notifications", "--failed"][..], &["notifications", "list", "--operator"]] {
        let (fine, shown, error) = meterd(arguments).await;
        assert!(fine && shown.contains(&id) && shown.contains("FAILED") && shown.contains("410"), "{shown}{error}");
    }
    let (_, shown, _) = meterd(&["notifications", "--client", "acme"]).await;
    assert_eq!(shown, "no notifications\n");
    let (fine, shown, error) = meterd(&["notifications", "retry", &id]).await;
    assert!(fine && shown.contains("PENDING"), "{shown}{error}");
    sent(&server, 1).await;
    let (_, shown, _) = meterd(&["notifications", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["state"], &shown["notification_id"]), (&"SENT".into(), &id.as_str().into()));
    let (fine, _, error) = meterd(&["notifications", "retry", &id]).await;
    assert!(!fine && error.contains("NOTIFICATION_NOT_FAILED"), "{error}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_transport_is_refused_at_the_start_and_no_secret_is_said() {
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
        let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it starts").unwrap();
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains("--smtp-") | said.contains("--twilio-"), "{flags:?}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    let help = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["serve", "--help"])
        .envs([("METERD_SMTP_URL", "smtp://meterd:hunter2@localhost"), ("METERD_TWILIO_AUTH_TOKEN", "hunter2")])
        .output();
    let help = String::from_utf8(help.await.unwrap().stdout).unwrap();
    assert!(help.contains("METERD_SMTP_URL") && !help.contains("hunter2"), "{help}");
}
