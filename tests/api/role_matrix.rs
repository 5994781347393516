//! Calls every RPC with every kind of credentials. The expected results are in a table that is independent of the
//! server's.

use crate::alerts::metered;
use crate::harness::*;
use crate::http;
use crate::jwt::{Issuer, SigningKey, bad_tokens};
use crate::key_server::*;
use meterd::grpc::methods;
use meterd::proto::{
    AlertPolicy, BatchTrackUsageResponse, EventError, ListClientsRequest, NotificationChannel, NotificationChannelKind,
    StreamUsageResponse, UpdateAlertPolicyRequest,
};
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use prost::Message;
use prost_types::FieldMask;
use serde_json::json;
use std::collections::BTreeSet;
use tonic::{Code, Status};

/// Columns of [`CELLS`]: a scope and its clients.
const CREDENTIALS: [(Scope, &[&str]); 9] = [
    (Scope::Ingest, &[]),
    (Scope::Read, &[]),
    (Scope::Admin, &[]),
    (Scope::Ingest, &["acme"]),
    (Scope::Read, &["acme"]),
    (Scope::Admin, &["acme"]),
    (Scope::Ingest, &["globex"]),
    (Scope::Read, &["globex"]),
    (Scope::Admin, &["globex"]),
];

// The expected results in three groups: all clients, acme, globex; in each group ingest, read, admin.
// y: OK. -: PERMISSION_DENIED. f: NOT_FOUND, as if the object did not exist. r: OK, but each event is rejected.
const EVENTS_OF_ACME: &str = "y-y y-y r-r";
const READS_ACME: &str = "-yy -yy ---";
const READS_ANY: &str = "-yy -yy -yy";
const READS_ALL: &str = "-yy --- ---";
const CHANGES_ACME: &str = "--y --y ---";
const CHANGES_ALL: &str = "--y --- ---";
const FOR_EVERYBODY: &str = "yyy yyy yyy";

/// RPC, request, expected results. `{alert}` and `{notification}` are ids of acme's objects.
pub const CELLS: [(&str, &str, &str); 95] = [
    ("UsageService/TrackUsage", r#"{"event":{"clientId":"acme","service":"sms"}}"#, "y-y y-y ---"),
    ("UsageService/BatchTrackUsage", r#"{"events":[{"clientId":"acme","service":"sms"}]}"#, EVENTS_OF_ACME),
    ("UsageService/StreamUsage", r#"{"event":{"clientId":"acme","service":"sms"}}"#, EVENTS_OF_ACME),
    ("UsageService/GetCurrentMonthUsage", r#"{"clientId":"acme"}"#, READS_ACME),
    ("UsageService/GetForecast", r#"{"clientId":"acme"}"#, READS_ACME),
    (
        "UsageService/GetUsageSummary",
        r#"{"clientId":"acme","startDate":"2026-11-01","endDate":"2026-11-30"}"#,
        READS_ACME,
    ),
    (
        "UsageService/QueryUsage",
        r#"{"clientIds":["acme"],"startDate":"2026-11-01","endDate":"2026-11-30"}"#,
        READS_ACME,
    ),
    ("UsageService/QueryUsage", r#"{"startDate":"2026-11-01","endDate":"2026-11-30"}"#, READS_ANY),
    (
        "UsageService/QueryUsage",
        r#"{"clientIds":["acme","globex"],"startDate":"2026-11-01","endDate":"2026-11-30"}"#,
        READS_ALL,
    ),
    ("UsageService/GetUsageEvent", r#"{"clientId":"acme","eventId":"x"}"#, READS_ACME),
    ("UsageService/ListUsageEvents", r#"{"clientId":"acme"}"#, READS_ACME),
    ("UsageService/ExportUsage", r#"{"clientId":"acme"}"#, READS_ACME),
    ("UsageService/ExportUsage", "{}", READS_ALL),
    ("UsageService/GetPlatformUsage", "{}", READS_ALL),
    ("UsageService/UpdateMonthlySummaries", r#"{"clientId":"acme"}"#, CHANGES_ACME),
    ("UsageService/UpdateMonthlySummaries", "{}", CHANGES_ALL),
    ("UsageService/ListMonthlySummaries", r#"{"clientId":"acme"}"#, READS_ACME),
    ("UsageService/ListMonthlySummaries", "{}", READS_ALL),
    (
        "UsageService/RebuildRollups",
        r#"{"clientId":"acme","startDate":"2026-11-01","endDate":"2026-11-30"}"#,
        CHANGES_ACME,
    ),
    ("UsageService/RebuildRollups", r#"{"startDate":"2026-11-01","endDate":"2026-11-30"}"#, CHANGES_ALL),
    ("AlertService/CheckAlerts", r#"{"clientId":"acme"}"#, CHANGES_ACME),
    ("AlertService/CheckAlerts", "{}", CHANGES_ALL),
    ("AlertService/ListAlerts", r#"{"clientIds":["acme"]}"#, READS_ACME),
    ("AlertService/ListAlerts", "{}", READS_ANY),
    ("AlertService/ListAlerts", r#"{"clientIds":["globex","acme"]}"#, READS_ALL),
    ("AlertService/GetAlert", r#"{"alertId":"{alert}"}"#, "-yy -yy -ff"),
    ("AlertService/AcknowledgeAlert", r#"{"alertId":"{alert}","acknowledgedBy":"me"}"#, "--y --y --f"),
    ("AlertService/SubscribeAlerts", r#"{"clientIds":["acme"]}"#, READS_ACME),
    ("AlertService/SubscribeAlerts", "{}", READS_ANY),
    ("AlertService/SubscribeAlerts", r#"{"clientIds":["acme","globex"]}"#, READS_ALL),
    ("AlertService/GetAlertPolicy", r#"{"clientId":"acme"}"#, CHANGES_ACME),
    ("AlertService/GetAlertPolicy", "{}", CHANGES_ALL),
    (
        "AlertService/UpdateAlertPolicy",
        r#"{"policy":{"clientId":"acme","spikeEnabled":true},"updateMask":"spikeEnabled"}"#,
        CHANGES_ACME,
    ),
    ("AlertService/UpdateAlertPolicy", r#"{"policy":{"spikeEnabled":true},"updateMask":"spikeEnabled"}"#, CHANGES_ALL),
    ("AlertService/UpdateAlertPolicy", "{}", CHANGES_ALL),
    ("AlertService/ListNotifications", r#"{"clientId":"acme"}"#, CHANGES_ACME),
    ("AlertService/ListNotifications", "{}", CHANGES_ALL),
    ("AlertService/ListNotifications", r#"{"operatorOnly":true}"#, CHANGES_ALL),
    ("AlertService/RetryNotification", r#"{"notificationId":"{notification}"}"#, "--y --y --f"),
    ("AlertService/SendTestNotification", r#"{"clientId":"acme"}"#, CHANGES_ACME),
    ("AlertService/SendTestNotification", "{}", CHANGES_ALL),
    ("CatalogService/ListServices", "{}", FOR_EVERYBODY),
    ("CatalogService/CreateService", r#"{"service":{"service":"created"}}"#, CHANGES_ALL),
    ("UsageService/VoidUsage", r#"{"clientId":"acme","events":[{"idempotencyKey":"x"}],"reason":"r"}"#, "y-y y-y ---"),
    (
        "UsageService/CorrectUsage",
        r#"{"clientId":"acme","corrections":[{"event":{"idempotencyKey":"x"},"corrected":{"service":"sms"}}],"reason":"r"}"#,
        "y-y y-y ---",
    ),
    ("UsageService/ListAdjustments", r#"{"clientId":"acme"}"#, READS_ACME),
    ("UsageService/ExplainCharge", r#"{"clientId":"acme","eventId":"x"}"#, READS_ACME),
    ("UsageService/ExplainUsage", r#"{"clientId":"acme","startDate":"2026-11-01","endDate":"2026-11-30"}"#, READS_ACME),
    (
        "CatalogService/RepriceUsage",
        r#"{"startMonth":"2026-11","endMonth":"2026-11","validateOnly":true}"#,
        CHANGES_ALL,
    ),
    ("CatalogService/GetRepriceRun", r#"{"runId":"1"}"#, CHANGES_ALL),
    ("CatalogService/CancelRepriceRun", r#"{"runId":"1"}"#, CHANGES_ALL),
    ("BillingService/CreatePlan", r#"{"plan":{"planId":"p"}}"#, CHANGES_ALL),
    ("BillingService/GetPlan", r#"{"planId":"starter"}"#, READS_ALL),
    ("BillingService/ListPlans", "{}", READS_ALL),
    ("BillingService/SetClientPlan", r#"{"clientId":"acme","planId":"none"}"#, CHANGES_ACME),
    ("BillingService/ListClientPlans", r#"{"clientId":"acme"}"#, READS_ACME),
    ("BillingService/GetPlanFees", r#"{"clientId":"acme"}"#, READS_ACME),
    (
        "BillingService/CreateCreditGrant",
        r#"{"grant":{"clientId":"acme","amount":"1","source":"CREDIT_SOURCE_PURCHASE"}}"#,
        CHANGES_ACME,
    ),
    ("BillingService/GetCreditGrant", r#"{"clientId":"acme","grantId":"x"}"#, READS_ACME),
    ("BillingService/ListCreditGrants", r#"{"clientId":"acme"}"#, READS_ACME),
    ("BillingService/VoidCreditGrant", r#"{"clientId":"acme","grantId":"x"}"#, CHANGES_ACME),
    ("BillingService/GetCreditBalance", r#"{"clientId":"acme"}"#, READS_ACME),
    ("BillingService/GetCurrentPeriod", r#"{"clientId":"acme"}"#, READS_ACME),
    (
        "BillingService/CreateLimit",
        r#"{"limit":{"clientId":"acme","measure":"LIMIT_MEASURE_UNITS","period":"LIMIT_PERIOD_DAY","amount":"9"}}"#,
        CHANGES_ACME,
    ),
    (
        "BillingService/UpdateLimit",
        r#"{"limit":{"clientId":"acme","limitId":"none"},"updateMask":"displayName"}"#,
        CHANGES_ACME,
    ),
    ("BillingService/DeleteLimit", r#"{"clientId":"acme","limitId":"none"}"#, CHANGES_ACME),
    ("BillingService/GetLimit", r#"{"clientId":"acme","limitId":"none"}"#, READS_ACME),
    ("BillingService/ListLimits", r#"{"clientId":"acme"}"#, READS_ACME),
    ("BillingService/CheckLimit", r#"{"clientId":"acme"}"#, READS_ACME),
    ("BillingService/BatchCheckLimits", r#"{"clientIds":["acme"]}"#, READS_ACME),
    ("CatalogService/ListPrices", "{}", FOR_EVERYBODY),
    ("CatalogService/CreatePrice", r#"{"price":{"service":"sms","model":"m","rates":{"unit":"1"}}}"#, CHANGES_ALL),
    ("CatalogService/RetirePrice", r#"{"priceId":"999999"}"#, CHANGES_ALL),
    (
        "CatalogService/ImportPrices",
        r#"{"prices":[{"service":"sms","model":"n","rates":{"unit":"1"}}],"source":"list"}"#,
        CHANGES_ALL,
    ),
    (
        "CatalogService/CreateModelAlias",
        r#"{"modelAlias":{"service":"openai","alias":"a","model":"gpt-4o-mini"}}"#,
        CHANGES_ALL,
    ),
    ("CatalogService/ListModelAliases", "{}", FOR_EVERYBODY),
    ("CatalogService/EstimateCost", r#"{"service":"sms"}"#, FOR_EVERYBODY),
    ("ClientService/CreateClient", r#"{"client":{"clientId":"acme"}}"#, CHANGES_ACME),
    ("ClientService/GetClient", r#"{"clientId":"acme"}"#, READS_ACME),
    (
        "ClientService/UpdateClient",
        r#"{"client":{"clientId":"acme","displayName":"Acme"},"updateMask":"displayName"}"#,
        CHANGES_ACME,
    ),
    ("ClientService/ListClients", "{}", READS_ALL),
    ("JobService/ListJobs", "{}", CHANGES_ALL),
    ("JobService/RunJob", r#"{"job":"no-job"}"#, CHANGES_ALL),
    (
        "KeyService/CreateApiKey",
        r#"{"apiKey":{"name":"k","grants":[{"scope":"SCOPE_READ","clientIds":["acme"]}]}}"#,
        CHANGES_ALL,
    ),
    ("KeyService/CreateApiKey", "{}", CHANGES_ALL),
    ("KeyService/GetApiKey", r#"{"keyId":"x"}"#, CHANGES_ALL),
    ("KeyService/ListApiKeys", "{}", CHANGES_ALL),
    ("KeyService/RevokeApiKey", r#"{"keyId":"x"}"#, CHANGES_ALL),
    ("KeyService/RotateApiKey", r#"{"keyId":"x"}"#, CHANGES_ALL),
    ("KeyService/ListAuditLog", "{}", CHANGES_ALL),
    // An unknown client is rejected in the same way as an existing one.
    ("UsageService/GetCurrentMonthUsage", r#"{"clientId":"nobody"}"#, READS_ALL),
    ("ClientService/GetClient", r#"{"clientId":"nobody"}"#, READS_ALL),
    ("ClientService/CreateClient", r#"{"client":{"clientId":"nobody"}}"#, CHANGES_ALL),
    ("AlertService/GetAlert", r#"{"alertId":"nothing"}"#, "-ff -ff -ff"),
    ("AlertService/AcknowledgeAlert", r#"{"alertId":"nothing","acknowledgedBy":"me"}"#, "--f --f --f"),
];

/// RPCs that change something as an admin and are recorded in the audit log.
pub const AUDITED: [&str; 27] = [
    "UsageService/UpdateMonthlySummaries",
    "UsageService/RebuildRollups",
    "AlertService/CheckAlerts",
    "AlertService/AcknowledgeAlert",
    "AlertService/UpdateAlertPolicy",
    "AlertService/RetryNotification",
    "AlertService/SendTestNotification",
    "BillingService/CreatePlan",
    "BillingService/SetClientPlan",
    "BillingService/CreateCreditGrant",
    "BillingService/VoidCreditGrant",
    "BillingService/CreateLimit",
    "BillingService/UpdateLimit",
    "BillingService/DeleteLimit",
    "CatalogService/CreateService",
    "CatalogService/CreatePrice",
    "CatalogService/RetirePrice",
    "CatalogService/ImportPrices",
    "CatalogService/RepriceUsage",
    "CatalogService/CancelRepriceRun",
    "CatalogService/CreateModelAlias",
    "ClientService/CreateClient",
    "ClientService/UpdateClient",
    "JobService/RunJob",
    "KeyService/CreateApiKey",
    "KeyService/RevokeApiKey",
    "KeyService/RotateApiKey",
];

/// Returns all RPCs of the API, such as "UsageService/TrackUsage".
fn rpcs() -> BTreeSet<String> {
    let services = contract().services().filter(|service| service.package_name() == "metering.v1");
    services
        .flat_map(|service| {
            let name = service.name().to_string();
            service.methods().map(move |method| format!("{name}/{}", method.name())).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_role_matrix_has_one_row_for_every_rpc() {
    let rows: Vec<&str> = methods::ROWS.iter().map(|row| row.method).collect();
    let named: BTreeSet<String> = rows.iter().map(|row| row.trim_start_matches("metering.v1.").into()).collect();
    assert_eq!(named, rpcs());
    assert_eq!(named.len(), rows.len(), "an RPC has two rows");
    for row in methods::ROWS {
        let (service, rpc) = row.method.split_once('/').unwrap();
        let service = contract().get_service_by_name(service).unwrap();
        let method = service.methods().find(|method| method.name() == rpc).unwrap();
        assert_eq!(row.request, method.input().name(), "{}", row.method);
        let messages = methods::messages(&format!("/{}", row.method));
        let streams = (method.is_client_streaming(), method.is_server_streaming());
        assert_eq!((messages.request_stream, messages.response_stream), streams, "{}", row.method);
        let audited = AUDITED.contains(&row.method.trim_start_matches("metering.v1."));
        assert_eq!(row.audited, audited, "{}", row.method);
    }
    let tried: BTreeSet<String> = CELLS.iter().map(|(rpc, ..)| rpc.to_string()).collect();
    assert_eq!(tried, rpcs(), "the table must have every RPC");
}

/// Creates an alert of acme and a pending notification of it.
pub async fn alert_and_notification(server: &TestServer) -> (String, String) {
    for client_id in ["acme", "globex"] {
        server.create_client_in_zone(client_id, "UTC").await;
    }
    metered(server, "metered").await;
    let channel = NotificationChannel {
        kind: NotificationChannelKind::Webhook.into(),
        target: "http://127.0.0.1:1/".into(),
        ..Default::default()
    };
    let policy = AlertPolicy {
        client_id: "acme".into(),
        monthly_warning: Some("1".into()),
        channels: vec![channel],
        ..Default::default()
    };
    let update_mask = Some(FieldMask { paths: vec!["monthly_warning".into(), "channels".into()] });
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask };
    server.alerts().update_alert_policy(request).await.unwrap();
    server.track(event("acme", "metered", "2")).await.unwrap();
    let alert_id = sqlx::query_scalar("SELECT alert_id FROM alerts").fetch_one(&server.pool).await.unwrap();
    let notification_id = "SELECT notification_id FROM notifications WHERE client_id = 'acme'";
    (alert_id, sqlx::query_scalar(notification_id).fetch_one(&server.pool).await.unwrap())
}

/// Returns whether each event of a response was rejected, in the form of a stream or a batch.
fn refuses_each(rpc: &str, answer: &[u8]) -> bool {
    let results = match rpc {
        "UsageService/BatchTrackUsage" => BatchTrackUsageResponse::decode(answer).unwrap().results,
        "UsageService/StreamUsage" => {
            let acknowledged = StreamUsageResponse::decode(answer).unwrap();
            assert_eq!(acknowledged.settled_count, 1);
            acknowledged.results.into_iter().filter_map(|result| result.result).collect()
        }
        _ => return false,
    };
    let denied =
        |error: &EventError| (error.code, &*error.reason) == (Code::PermissionDenied as i32, "CLIENT_NOT_COVERED");
    !results.is_empty() && results.iter().all(|result| result.error.as_ref().is_some_and(denied))
}

/// Returns whether a result is as the table says.
fn matches_cell(expected: char, rpc: &str, answer: &Result<Vec<u8>, Status>) -> bool {
    let errors = [Code::Unauthenticated, Code::PermissionDenied];
    let faults = [Code::Unimplemented, Code::Internal, Code::Unavailable, Code::Unknown, Code::DeadlineExceeded];
    match (expected, answer) {
        ('r', Ok(message)) => refuses_each(rpc, message),
        ('y', Ok(message)) => !refuses_each(rpc, message),
        ('y', Err(status)) => !errors.contains(&status.code()) && !faults.contains(&status.code()),
        ('-', Err(status)) => status.code() == Code::PermissionDenied,
        ('f', Err(status)) => status.code() == Code::NotFound,
        ('u', Err(status)) => status.code() == Code::Unauthenticated,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_returns_the_expected_result_for_every_kind_of_credentials() {
    let now = time("2026-11-21T12:00:00Z");
    let signing = SigningKey::new("one");
    let issuer = Issuer::start(&[&signing]).await;
    let flags = issuer.flags();
    let key_server = KeyServer::start_with(&[&flags[0], &flags[1]], Clock::fixed(now)).await;
    let flags = ["--webhook-allow-http", "--webhook-allow-private"];
    let open = TestServer::replica(&key_server.server.database_url, &flags, key_server.server.clock.clone()).await;
    let (alert_id, notification_id) = alert_and_notification(&open).await;

    // Invalid credentials are rejected before anything else is checked.
    let bearer = |token: &str| format!("Bearer {token}");
    let (admin, stranger) = (key_server.admin.token.clone(), meterd_engine::auth::token::new().token);
    let revoked = key_server.key(Scope::Admin, &[]).await;
    let expire_time = Some(time("2026-11-21T11:59:59Z"));
    let expired = keys_spec_expiring(&open, expire_time).await;
    open.sql(&format!(
        "UPDATE key_version SET version = version + 1; UPDATE api_keys SET revoke_time = now(), \
        version = (SELECT version FROM key_version) WHERE key_id = '{}'",
        revoked.key_id
    ))
    .await;
    let secret = stranger.rsplit('_').next().unwrap();
    let mut columns: Vec<(String, Vec<String>, Option<usize>)> = [
        ("no header", vec![]),
        ("empty header", vec![String::new()]),
        ("no scheme", vec![admin.clone()]),
        ("another scheme", vec![format!("Basic {admin}")]),
        ("scheme alone", vec!["Bearer ".into()]),
        ("no token", vec![bearer("x")]),
        ("a token cut short", vec![bearer(&admin[..admin.len() - 1])]),
        ("upper case", vec![bearer(&admin.to_uppercase())]),
        ("two headers", vec![bearer(&admin), bearer(&admin)]),
        ("wrong secret", vec![bearer(&format!("mtr_{}_{secret}", key_server.admin.key_id))]),
        ("unknown id", vec![bearer(&stranger)]),
        ("revoked", vec![bearer(&revoked.token)]),
        ("expired", vec![bearer(&expired.token)]),
    ]
    .map(|(name, headers)| (name.to_string(), headers, None))
    .into();
    for (column, (scope, client_ids)) in CREDENTIALS.iter().enumerate() {
        let token = key_server.key(*scope, client_ids).await.token;
        columns.push((format!("{} {client_ids:?}", scope.name()), vec![bearer(&token)], Some(column)));
        let clients = if client_ids.is_empty() { json!("*") } else { json!(client_ids) };
        let token = signing.sign(&issuer.claims(now, &format!("meterd:{}", scope.name()), clients));
        columns.push((format!("{} {client_ids:?} by JWT", scope.name()), vec![bearer(&token)], Some(column)));
    }
    for (why, token) in bad_tokens(&issuer, &signing, now) {
        columns.push((format!("JWT: {why}"), vec![bearer(&token)], None));
    }

    let channel = key_server.server.channel();
    let (mut cells, mut wrong) = (0, vec![]);
    for (rpc, request, answers) in CELLS {
        let request = request.replace("{alert}", &alert_id).replace("{notification}", &notification_id);
        let answers: Vec<char> = answers.chars().filter(|answer| *answer != ' ').collect();
        assert_eq!(answers.len(), CREDENTIALS.len(), "{rpc}");
        for (name, headers, column) in &columns {
            let expected = column.map_or('u', |column| answers[column]);
            let answer = call(&channel, rpc, &request, headers).await;
            cells += 1;
            if !matches_cell(expected, rpc, &answer) {
                wrong.push(format!("{rpc} {request} with {name}: {answer:?} instead of {expected}"));
            }
        }
    }
    println!("role matrix: {} of {cells} cells", cells - wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    key_server.server.stop().await;
    open.stop().await;
}

async fn keys_spec_expiring(server: &TestServer, expire_time: Option<chrono::DateTime<chrono::Utc>>) -> Token {
    let mut expired = spec(grant(Scope::Admin, &[]));
    expired.expire_time = expire_time;
    create_key_in_database(&server.database_url, &expired).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_web_requires_keys_like_grpc() {
    let key_server = KeyServer::start().await;
    let path = "/metering.v1.ClientService/ListClients";
    let request = ListClientsRequest::default();
    let answer = http::grpc_web(&key_server.server.address, path, &request, "").await;
    let status = Status::from_header_map(&answer.headers).expect("the headers contain a status");
    assert_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_MISSING");
    let bound = key_server.key(Scope::Read, &["acme"]).await;
    let header = |token: &Token| format!("Authorization: Bearer {}\r\n", token.token);
    let answer = http::grpc_web(&key_server.server.address, path, &request, &header(&bound)).await;
    let status = Status::from_header_map(&answer.headers).expect("the headers contain a status");
    assert_error::<()>(Err(status), Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let answer = http::grpc_web(&key_server.server.address, path, &request, &header(&key_server.admin)).await;
    assert_eq!(answer.frames().1["grpc-status"], "0");
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_and_health_require_keys_by_their_own_settings() {
    let health = "/grpc.health.v1.Health/Check";
    let reflection = [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    // A request to list the services as protobuf bytes: field 7, empty.
    let list = vec![0x3a, 0x00];
    for (setting, without, with) in [
        ("off", Code::Unimplemented, Code::Unimplemented),
        ("keys", Code::Unauthenticated, Code::Ok),
        ("public", Code::Ok, Code::Ok),
    ] {
        let flags = [format!("--health={setting}"), format!("--reflection={setting}")];
        let key_server = KeyServer::start_with(&[&flags[0], &flags[1]], Clock::system()).await;
        let token = key_server.key(Scope::Ingest, &["acme"]).await;
        let channel = key_server.server.channel();
        let code = async |path: &str, message: &[u8], headers: &[String]| {
            call_path(&channel, path, message.to_vec(), headers).await.map_or_else(|status| status.code(), |_| Code::Ok)
        };
        let bearer = [format!("Bearer {}", token.token)];
        for (path, message) in [(health, &[][..])].into_iter().chain(reflection.map(|path| (path, &list[..]))) {
            assert_eq!(code(path, message, &[]).await, without, "{setting} {path}");
            assert_eq!(code(path, message, &bearer).await, with, "{setting} {path}");
        }
        key_server.server.stop().await;
    }
    let open = TestServer::start().await;
    let answer = call_path(&open.channel(), reflection[0], list, &[]).await;
    assert!(answer.is_ok(), "reflection requires a key by default");
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_method_requires_a_key_and_is_no_label_of_the_metrics() {
    let key_server = KeyServer::start().await;
    let channel = key_server.server.channel();
    let bearer = [format!("Bearer {}", key_server.admin.token)];
    for path in ["/metering.v1.UsageService/Nothing8b1f", "/other.Service/Nothing8b1f", "/Nothing8b1f"] {
        let status = call_path(&channel, path, vec![], &[]).await.unwrap_err();
        assert_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_MISSING");
        assert_eq!(call_path(&channel, path, vec![], &bearer).await.unwrap_err().code(), Code::Unimplemented);
    }
    let header = format!("Authorization: {}\r\n", bearer[0]);
    let page = http::get_with(&key_server.server.http_address, "/metrics", &header).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("meterd_rpc_seconds") && !page.text().contains("Nothing8b1f"));
    key_server.server.stop().await;
}
