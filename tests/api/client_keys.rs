//! Keys for some clients only. Other clients look as if they did not exist.

use crate::harness::*;
use crate::key_server::*;
use crate::role_matrix::alert_and_notification;
use meterd::proto::subscribe_alerts_response::Message;
use meterd::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use std::collections::BTreeSet;
use tonic::Code;

fn noon() -> Clock {
    Clock::fixed(time("2026-11-21T12:00:00Z"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_other_clients_get_exactly_the_response_of_missing_objects() {
    let key_server = KeyServer::start_with(&[], noon()).await;
    let flags = ["--webhook-allow-http", "--webhook-allow-private"];
    let open = TestServer::replica(&key_server.server.database_url, &flags, key_server.server.clock.clone()).await;
    let (alert_id, notification_id) = alert_and_notification(&open).await;
    let event_id = open.track(event("acme", "sms", "1")).await.unwrap().event_id;
    let token = key_server.key(Scope::Admin, &["globex"]).await;
    let channel = key_server.server.channel();
    // Only the last character differs, so that nothing but the id distinguishes the two.
    let absent = |id: &str| {
        let (start, last) = id.split_at(id.len() - 1);
        format!("{start}{}", if last == "0" { "1" } else { "0" })
    };
    let cases = [
        ("AlertService/GetAlert", r#"{"alertId":"{}"}"#, alert_id.as_str()),
        ("AlertService/AcknowledgeAlert", r#"{"alertId":"{}","acknowledgedBy":"me"}"#, &alert_id),
        ("AlertService/RetryNotification", r#"{"notificationId":"{}"}"#, &notification_id),
        ("UsageService/GetUsageEvent", r#"{"clientId":"acme","eventId":"{}"}"#, &event_id),
        ("ClientService/GetClient", r#"{"clientId":"{}"}"#, "acme"),
        ("UsageService/GetCurrentMonthUsage", r#"{"clientId":"{}"}"#, "acme"),
        ("UsageService/GetForecast", r#"{"clientId":"{}"}"#, "acme"),
        ("UsageService/ListUsageEvents", r#"{"clientId":"{}"}"#, "acme"),
        ("UsageService/ExportUsage", r#"{"clientId":"{}"}"#, "acme"),
        ("UsageService/UpdateMonthlySummaries", r#"{"clientId":"{}"}"#, "acme"),
        ("AlertService/GetAlertPolicy", r#"{"clientId":"{}"}"#, "acme"),
        ("AlertService/CheckAlerts", r#"{"clientId":"{}"}"#, "acme"),
        ("ClientService/CreateClient", r#"{"client":{"clientId":"{}"}}"#, "acme"),
        ("ClientService/UpdateClient", r#"{"client":{"clientId":"{}"},"updateMask":"displayName"}"#, "acme"),
        ("AlertService/ListAlerts", r#"{"clientIds":["{}"]}"#, "acme"),
        ("UsageService/TrackUsage", r#"{"event":{"clientId":"{}","service":"sms"}}"#, "acme"),
    ];
    for (rpc, request, id) in cases {
        let bearer = [format!("Bearer {}", token.token)];
        let answer = async |id: &str| {
            let status = call(&channel, rpc, &request.replace("{}", id), &bearer).await.unwrap_err();
            let request_id = status.metadata().get("x-request-id").unwrap().to_str().unwrap().to_string();
            let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
            let all = (status.code(), status.message().to_string(), text(status.details()));
            (all.0, all.1.replace(id, "<id>"), all.2.replace(&request_id, "<request>").replace(id, "<id>"))
        };
        let (anothers, nothings) = (answer(id).await, answer(&absent(id)).await);
        assert!([Code::NotFound, Code::PermissionDenied].contains(&anothers.0), "{rpc} {anothers:?}");
        assert!(anothers.2.contains("<request>"), "{rpc} {anothers:?}");
        assert_eq!(anothers, nothings, "{rpc}");
    }
    let acknowledged: i64 = sqlx::query_scalar("SELECT count(*) FROM alerts WHERE acknowledge_time IS NOT NULL")
        .fetch_one(&open.pool)
        .await
        .unwrap();
    assert_eq!(acknowledged, 0);
    key_server.server.stop().await;
    open.stop().await;
}

/// Creates three clients with usage and a critical alert each.
async fn three_clients(open: &TestServer) {
    crate::alerts::metered(open, "metered").await;
    let policy = AlertPolicy { monthly_warning: Some("1".into()), ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["monthly_warning".into()] });
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask };
    open.alerts().update_alert_policy(request).await.unwrap();
    for client_id in ["acme", "globex", "initech"] {
        open.track(event(client_id, "metered", "2")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_filter_selects_the_clients_of_the_key_on_every_page() {
    let key_server = KeyServer::start_with(&[], noon()).await;
    let open = key_server.open().await;
    three_clients(&open).await;
    let token = key_server.key(Scope::Read, &["acme", "globex"]).await;
    let (mut usage, mut alerts) = (usage_as(&key_server.server, &token), alerts_as(&key_server.server, &token));
    let both = BTreeSet::from(["acme".to_string(), "globex".to_string()]);

    let request = QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        group_by: vec![UsageDimension::Client.into()],
        page_size: 1,
        ..Default::default()
    };
    let (mut seen, mut page_token, mut tokens) = (BTreeSet::new(), String::new(), vec![]);
    loop {
        let page = usage.query_usage(QueryUsageRequest { page_token, ..request.clone() }).await.unwrap().into_inner();
        seen.extend(page.rows.into_iter().filter_map(|row| row.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        tokens.push(page_token.clone());
    }
    assert_eq!(seen, both);
    let total = QueryUsageRequest { group_by: vec![], ..request.clone() };
    let total = usage.query_usage(total).await.unwrap().into_inner().rows;
    assert_eq!(cost(&total[0].totals), "4", "the total must be that of both clients without the third");

    let request = ListAlertsRequest { page_size: 1, ..Default::default() };
    let (mut seen, mut page_token) = (BTreeSet::new(), String::new());
    loop {
        let page = alerts.list_alerts(ListAlertsRequest { page_token, ..request.clone() }).await.unwrap().into_inner();
        seen.extend(page.alerts.into_iter().map(|alert| alert.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, both);
    // A page token is valid only with the clients for which it was issued.
    let other = key_server.key(Scope::Read, &["initech"]).await;
    let moved = QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        group_by: vec![UsageDimension::Client.into()],
        page_size: 1,
        page_token: tokens.pop().unwrap(),
        ..Default::default()
    };
    for stranger in [&other, &key_server.admin] {
        let rejection = usage_as(&key_server.server, stranger).query_usage(moved.clone()).await;
        assert_invalid(rejection, "PAGE_TOKEN_INVALID", &["page_token"]);
    }
    key_server.server.stop().await;
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_and_its_resume_token_cover_only_the_clients_of_the_key() {
    let key_server = KeyServer::start_with(&[], noon()).await;
    let open = key_server.open().await;
    three_clients(&open).await;
    let token = key_server.key(Scope::Read, &["acme", "globex"]).await;
    let mut alerts = alerts_as(&key_server.server, &token);
    let request = SubscribeAlertsRequest { from_start: true, ..Default::default() };
    let mut stream = alerts.subscribe_alerts(request).await.unwrap().into_inner();
    let next = async |stream: &mut tonic::Streaming<SubscribeAlertsResponse>| loop {
        let message = stream.message().await.unwrap().unwrap();
        if let Some(Message::Alert(alert)) = message.message {
            return (alert.alert.unwrap().client_id, message.resume_token);
        }
    };
    let (first, resume_token) = next(&mut stream).await;
    assert_eq!((first.as_str(), next(&mut stream).await.0.as_str()), ("acme", "globex"));
    // Nothing about the third client is sent, also for live changes.
    for client_id in ["initech", "globex"] {
        open.track(event(client_id, "metered", "1000000")).await.unwrap();
    }
    assert_eq!(next(&mut stream).await.0, "globex");
    let resume =
        |resume_token: &str| SubscribeAlertsRequest { resume_token: resume_token.into(), ..Default::default() };
    let mut resumed = alerts.subscribe_alerts(resume(&resume_token)).await.unwrap().into_inner();
    assert_eq!((next(&mut resumed).await.0.as_str(), next(&mut resumed).await.0.as_str()), ("globex", "globex"));
    let other = key_server.key(Scope::Read, &["initech"]).await;
    for stranger in [&other, &key_server.admin] {
        let rejection = alerts_as(&key_server.server, stranger).subscribe_alerts(resume(&resume_token)).await;
        assert_invalid(rejection, "RESUME_TOKEN_INVALID", &["resume_token"]);
    }
    key_server.server.stop().await;
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_events_of_other_clients_are_rejected() {
    let key_server = KeyServer::start().await;
    let token = key_server.key(Scope::Ingest, &["acme"]).await;
    let mut usage = usage_as(&key_server.server, &token);
    let clients = ["acme", "globex", "acme", "", "initech"];
    let events: Vec<UsageEvent> = clients.map(|client_id| event(client_id, "sms", "1")).into();
    let outcome = |result: &UsageResult| {
        let reason = result.error.as_ref().map_or("", |error| &error.reason);
        (result.outcome(), reason.to_string())
    };
    let accepted = || (EventOutcome::Accepted, String::new());
    let rejected = |reason: &str| (EventOutcome::Rejected, reason.to_string());
    let not_covered = || rejected("CLIENT_NOT_COVERED");
    let request = BatchTrackUsageRequest { events: events.clone(), backfill: false, ..Default::default() };
    let answer = usage.batch_track_usage(request).await.unwrap().into_inner();
    let outcomes: Vec<_> = answer.results.iter().map(outcome).collect();
    let expected = [accepted(), not_covered(), accepted(), rejected("INVALID_FIELD"), not_covered()];
    assert_eq!(outcomes, expected);
    assert_eq!((answer.accepted_count, answer.failed_count), (2, 3));

    let messages = events.into_iter().map(|event| StreamUsageRequest { event: Some(event) });
    let mut acks = usage.stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let (mut settled, mut rejection) = (0, vec![]);
    while let Some(ack) = acks.message().await.unwrap() {
        settled = ack.settled_count;
        rejection
            .extend(ack.results.into_iter().map(|result| (result.message_number, outcome(&result.result.unwrap()))));
    }
    assert_eq!(settled, 5);
    assert_eq!(rejection, [(2, not_covered()), (4, rejected("INVALID_FIELD")), (5, not_covered())]);
    let lone = usage.track_usage(TrackUsageRequest { event: Some(event("globex", "sms", "1")) }).await;
    assert_error(lone, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    key_server.server.assert_exact(4).await;
    let clients: Vec<String> =
        sqlx::query_scalar("SELECT client_id FROM clients").fetch_all(&key_server.server.pool).await.unwrap();
    assert_eq!(clients, ["acme"], "no other client must be created");
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_is_truncated_in_errors_whatever_its_length() {
    let key_server = KeyServer::start().await;
    let token = key_server.key(Scope::Admin, &["acme"]).await;
    let request = GetClientRequest { client_id: "x".repeat(1_000_000) };
    let rejection = clients_as(&key_server.server, &token).get_client(request).await;
    let status = assert_error(rejection, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    assert!(status.message().len() < 200, "{}", status.message().len());
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_belongs_to_the_key_that_sent_it() {
    let key_server = KeyServer::start_with(&[], noon()).await;
    let open = key_server.open().await;
    let first = key_server.key(Scope::Admin, &["acme", "globex"]).await;
    let second = key_server.key(Scope::Admin, &["globex", "initech"]).await;
    let channel = key_server.server.channel();
    let create = async |token: Option<&str>, client_id: &str| {
        let bearer: Vec<String> = token.iter().map(|token| format!("Bearer {token}")).collect();
        let request = format!(r#"{{"client":{{"clientId":"{client_id}"}},"requestId":"r1"}}"#);
        let channel = if token.is_some() { channel.clone() } else { open.channel() };
        call(&channel, "ClientService/CreateClient", &request, &bearer).await
    };
    create(Some(&first.token), "acme").await.unwrap();
    // The other caller does not learn that the id was used, and its own result is stored separately.
    create(Some(&second.token), "initech").await.unwrap();
    create(Some(&second.token), "initech").await.unwrap();
    create(Some(&first.token), "acme").await.unwrap();
    create(None, "umbrella").await.unwrap();
    for token in [&first.token, &second.token] {
        let reused = create(Some(token), "globex").await;
        assert_error(reused, Code::AlreadyExists, "REQUEST_ID_REUSED");
    }
    // A result from before request ids belonged to callers is returned to a caller that sends exactly the same request.
    open.sql("DELETE FROM create_requests WHERE principal = ''").await;
    open.sql("UPDATE create_requests SET principal = '' WHERE position('initech'::bytea IN response) > 0").await;
    create(Some(&second.token), "initech").await.unwrap();
    create(Some(&second.token), "globex").await.unwrap();
    key_server.server.stop().await;
    open.stop().await;
}
