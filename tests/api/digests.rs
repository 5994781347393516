//! The hourly limit of notifications, and the digest of the others.

use crate::harness::*;
use crate::notifications::*;
use crate::receivers::{Answer, HttpReceiver};
use meterd::proto::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_above_the_hourly_limit_are_sent_as_one_digest() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&["--notifications-hourly-max=2"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    for number in 0..107 {
        raise(&server, &format!("client-{number:03}")).await;
    }
    let held = async |count: usize| {
        let waiting = "SELECT 1 FROM notifications WHERE state = 1 AND next_attempt_time > now() AND attempt_count = 0";
        wait_until(async || server.sql(waiting).await == count as u64).await;
    };
    held(105).await;
    wait_until(async || hook.received().len() == 2).await;

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
    let reported = body["data"]["alerts"].as_array().unwrap();
    assert_eq!(
        (reported.len(), &reported[0]["clientId"], &reported[99]["clientId"]),
        (100, &"client-002".into(), &"client-101".into())
    );

    // The digest was the first notification of the new hour, so there is room for one more. A single waiting
    // notification is not sent as a digest.
    for number in 107..109 {
        raise(&server, &format!("client-{number:03}")).await;
    }
    held(1).await;
    wait_until(async || hook.received().len() == 4).await;
    let_an_hour_pass(&server).await;
    let all = settled(&server, 110, &states).await;
    assert_eq!(count(&all, NotificationState::Digested), 105);
    assert_eq!(hook.received()[4].json()["type"], "alert.raised");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_not_counted_or_delayed_by_the_hourly_limit() {
    let hook = HttpReceiver::start([500, 500].map(Answer::Status)).await;
    let flags = ["--notifications-hourly-max=1", "--notification-backoff-seconds=1", "--notification-attempts-max=2"];
    let server = server_with(&flags).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    raise(&server, "acme").await;
    let failed_notification = failed(&server, 1).await.remove(0);
    raise(&server, "globex").await;
    let request = RetryNotificationRequest { notification_id: failed_notification.notification_id };
    server.alerts().retry_notification(request).await.unwrap();
    wait_until(async || count(&notifications(&server).await, NotificationState::Sent) == 1).await;
    let waiting: Vec<_> =
        notifications(&server).await.into_iter().filter(|n| n.state() == NotificationState::Pending).collect();
    assert_eq!((waiting.len(), waiting[0].attempt_count), (1, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_deliver_each_notification_once_and_share_the_hourly_limit() {
    let hook = HttpReceiver::start([]).await;
    let flags: Vec<&str> = LOCAL.iter().chain(&["--notifications-hourly-max=30"]).copied().collect();
    let one = server_with(&flags[2..]).await;
    let two = TestServer::replica(&one.database_url, &flags, one.clock.clone()).await;
    set_channels(&one, "", &[webhook(hook.url())]).await;
    let events = |from: usize| (from..from + 40).map(|n| event(&format!("client-{n:02}"), "metered", "120")).collect();
    let (first, second) = tokio::join!(one.batch(events(0), false), two.batch(events(40), false));
    assert!(first.iter().chain(&second).all(|result| result.outcome() == EventOutcome::Accepted));
    wait_until(async || {
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
async fn a_digest_has_the_time_of_its_oldest_notification_and_is_sent_before_newer_ones() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&["--notifications-hourly-max=1"]).await;
    set_channels(&server, "", &[webhook(hook.url())]).await;
    for number in 0..3 {
        raise(&server, &format!("client-{number}")).await;
    }
    let waiting = "SELECT 1 FROM notifications WHERE state = 1 AND next_attempt_time > now() AND attempt_count = 0";
    wait_until(async || server.sql(waiting).await == 2).await;
    // The hour ends when a new notification arrives, and there is room for only one of the two.
    server
        .sql(
            "BEGIN;
             UPDATE notification_channels SET hour_start_time = hour_start_time - interval '1 hour';
             UPDATE notifications SET next_attempt_time = next_attempt_time - interval '1 hour',
                 create_time = create_time - interval '1 hour' WHERE state = 1;
             INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts)
             SELECT client_id, 'fresh', channel_id, kind, target, alerts FROM notifications WHERE state = 2;
             COMMIT",
        )
        .await;
    wait_until(async || hook.received().len() == 2).await;
    assert_eq!(hook.received()[1].json()["type"], "alert.digest");
    let all = notifications(&server).await;
    let created = |n: &Notification| n.create_time.map(|time| (time.seconds, time.nanos)).unwrap();
    let digest = all.iter().find(|n| n.alert_count == 2).unwrap();
    let oldest = all.iter().filter(|n| n.digest_id == digest.notification_id).map(created).min().unwrap();
    assert_eq!(created(digest), oldest);
    wait_until(async || server.sql(waiting).await == 1).await;
    let_an_hour_pass(&server).await;
    let all = settled(&server, 5, &[NotificationState::Sent, NotificationState::Digested]).await;
    assert_eq!(count(&all, NotificationState::Digested), 2);
    server.stop().await;
}
