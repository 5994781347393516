//! The calls and the command that list and retry notifications.

use crate::harness::*;
use crate::notifications::*;
use crate::receivers::{Answer, HttpReceiver};
use meterd::proto::*;
use meterd_domain::alert::Severity;
use meterd_store::alerts::channels::Channel;
use std::process::Stdio;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_are_listed_by_client_and_state_page_by_page() {
    let (operator, own) =
        (HttpReceiver::start([]).await, HttpReceiver::start([Answer::Status(410), Answer::Status(410)]).await);
    let server = server_with(&[]).await;
    server.create_client_in_zone("acme", "UTC").await;
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
async fn bad_input_of_notification_calls_is_rejected_with_the_fields() {
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
    assert_invalid(alerts.list_notifications(request).await, "INVALID_FIELD", &fields);
    let request = ListNotificationsRequest { page_token: "forged".into(), ..Default::default() };
    assert_invalid(alerts.list_notifications(request).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    let retry = |id: &str| RetryNotificationRequest { notification_id: id.into() };
    assert_invalid(alerts.retry_notification(retry("")).await, "INVALID_FIELD", &["notification_id"]);
    assert_error(alerts.retry_notification(retry("none")).await, Code::NotFound, "NOTIFICATION_NOT_FOUND");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_lists_failed_notifications_and_retries_them() {
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
    // It may be delivered before it is shown.
    assert!(fine && (shown.contains("PENDING") || shown.contains("SENT")), "{shown}{error}");
    sent(&server, 1).await;
    let (_, shown, _) = meterd(&["notifications", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["state"], &shown["notification_id"]), (&"SENT".into(), &id.as_str().into()));
    let (fine, _, error) = meterd(&["notifications", "retry", &id]).await;
    assert!(!fine && error.contains("NOTIFICATION_NOT_FAILED"), "{error}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_is_sent_once_to_every_channel_and_returns_the_results() {
    let (taking, refusing) = (HttpReceiver::start([]).await, HttpReceiver::start([Answer::Status(500)]).await);
    let server = server_with(&[]).await;
    server.create_client_in_zone("acme", "UTC").await;
    set_channels(&server, "acme", &[webhook(taking.url()), webhook(refusing.url())]).await;
    let send = async |client_id: &str| {
        let request = SendTestNotificationRequest { client_id: client_id.into() };
        server.alerts().send_test_notification(request).await
    };
    let mut tests = send("acme").await.unwrap().into_inner().notifications;
    tests.sort_by_key(|test| test.state);
    let states: Vec<_> = tests.iter().map(|test| (test.state(), test.attempt_count, test.alert_count)).collect();
    assert_eq!(states, [(NotificationState::Sent, 1, 0), (NotificationState::Failed, 1, 0)]);
    assert!(tests[1].last_error.contains("500"), "{tests:?}");
    let [received] = &taking.received()[..] else { panic!("not exactly one test was received") };
    let body: serde_json::Value = serde_json::from_str(&received.body).unwrap();
    assert_eq!(body["type"], "notification.test");
    assert!(received.is_signed_with(SECRET) && received.header("webhook-id") == tests[0].notification_id);
    assert_eq!(notifications(&server).await.len(), 2, "the test notifications must be listed");

    assert_eq!(send("").await.unwrap().into_inner().notifications, [], "the operator has no channels");
    assert_error(send("nobody").await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_tests_channels_and_fails_unless_all_accept() {
    let hook = HttpReceiver::start([Answer::Status(200), Answer::Status(410)]).await;
    let server = server_with(&[]).await;
    let meterd = async |args: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
        command.args(["notifications", "test"]).args(args).args(["--server", &server.address]);
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.into_owned())
    };
    let (ok, printed) = meterd(&[]).await;
    assert!(!ok && printed.contains("the operator has no channels"), "{printed}");
    set_channels(&server, "", &[webhook(hook.url())]).await;
    let (ok, printed) = meterd(&[]).await;
    assert!(ok && printed.contains("SENT"), "{printed}");
    let (ok, printed) = meterd(&["--json"]).await;
    assert!(!ok && printed.contains("\"state\":\"FAILED\"") && printed.contains("410"), "{printed}");
    server.stop().await;
}
