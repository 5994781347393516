//! The audit log records who did what. An entry is written before the call acts and cannot be changed.

use crate::harness::*;
use crate::key_server::*;
use crate::role_matrix::{AUDITED, CELLS};
use meterd::proto::key_service_client::KeyServiceClient;
use meterd::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use std::collections::BTreeSet;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::transport::Channel;
use tonic::{Code, Request};

async fn entries(key_server: &KeyServer, request: ListAuditLogRequest) -> Vec<AuditEntry> {
    key_server.keys().list_audit_log(request).await.unwrap().into_inner().entries
}

async fn all(key_server: &KeyServer) -> Vec<AuditEntry> {
    entries(key_server, ListAuditLogRequest { page_size: 1_000, ..Default::default() }).await
}

fn create_client(client_id: &str) -> CreateClientRequest {
    let client = Client { client_id: client_id.into(), ..Default::default() };
    CreateClientRequest { client: Some(client), request_id: String::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_contains_actor_method_address_and_outcome() {
    let key_server = KeyServer::start().await;
    let mut request = Request::new(create_client("acme"));
    request.metadata_mut().insert("x-request-id", "my-id".parse().unwrap());
    clients_as(&key_server.server, &key_server.admin).create_client(request).await.unwrap();
    let mut clients = clients_as(&key_server.server, &key_server.admin);
    assert_error(clients.create_client(create_client("acme")).await, Code::AlreadyExists, "CLIENT_EXISTS");
    let bound = key_server.key(Scope::Admin, &["globex"]).await;
    let rejected = clients_as(&key_server.server, &bound).create_client(create_client("acme")).await;
    assert_error(rejected, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let reader = key_server.key(Scope::Read, &[]).await;
    let rejected = clients_as(&key_server.server, &reader).create_client(create_client("acme")).await;
    assert_error(rejected, Code::PermissionDenied, "SCOPE_MISSING");

    let log = all(&key_server).await;
    let reported: Vec<_> = log.iter().map(|entry| (&*entry.actor_id, entry.code, &*entry.reason)).collect();
    let (admin, bound) = (key_server.admin.key_id.as_str(), bound.key_id.as_str());
    let expected = [
        (bound, Some(Code::PermissionDenied as i32), "CLIENT_NOT_COVERED"),
        (admin, Some(Code::AlreadyExists as i32), "CLIENT_EXISTS"),
        (admin, Some(0), ""),
    ];
    assert_eq!(reported, expected, "entries are sorted from the newest, and calls without the scope have none");
    let first = &log[2];
    assert_eq!((first.actor_kind(), &*first.actor_name), (ActorKind::ApiKey, "test"));
    assert_eq!((&*first.method, &*first.request_id), ("metering.v1.ClientService/CreateClient", "my-id"));
    assert_eq!(first.request_json, r#"{"client":{"clientId":"acme"}}"#);
    assert!(first.address.starts_with("127.0.0.1:"), "{}", first.address);
    let time = |time: &Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos)).unwrap();
    assert!(time(&first.time) <= time(&first.finish_time));
    key_server.server.stop().await;

    let open = TestServer::start().await;
    open.create_client_in_zone("acme", "UTC").await;
    let kinds: Vec<i16> = sqlx::query_scalar("SELECT actor_kind FROM audit_log").fetch_all(&open.pool).await.unwrap();
    assert_eq!(kinds, [ActorKind::Anybody as i16], "a server without keys writes entries, too");
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_entry_exists_while_its_call_is_running() {
    let key_server = KeyServer::start().await;
    // A change of a time zone waits for every batch.
    let open = key_server.open().await;
    open.create_client_in_zone("acme", "UTC").await;
    let stalled = open.stall_writers().await;
    let mut clients = clients_as(&key_server.server, &key_server.admin);
    let calling = tokio::spawn(async move {
        let client = Client { client_id: "acme".into(), time_zone: "Europe/Berlin".into(), ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
        clients.update_client(UpdateClientRequest { client: Some(client), update_mask }).await
    });
    let of_update = async || {
        let method = "metering.v1.ClientService/UpdateClient".into();
        entries(&key_server, ListAuditLogRequest { method, ..Default::default() }).await
    };
    wait_until(async || !of_update().await.is_empty()).await;
    let entry = of_update().await.remove(0);
    assert_eq!((entry.code, entry.finish_time), (None, None));
    assert!(!calling.is_finished());
    stalled.rollback().await.unwrap();
    calling.await.unwrap().unwrap();
    let entry = of_update().await.remove(0);
    assert!(entry.code == Some(0) && entry.finish_time.is_some(), "{entry:?}");
    key_server.server.stop().await;
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_entry_cannot_be_written_does_not_act() {
    let key_server = KeyServer::start().await;
    key_server.server.sql("ALTER TABLE audit_log ADD CONSTRAINT full_up CHECK (false) NOT VALID").await;
    let mut clients = clients_as(&key_server.server, &key_server.admin);
    assert_error(clients.create_client(create_client("acme")).await, Code::Internal, "INTERNAL");
    let request = GetClientRequest { client_id: "acme".into() };
    assert_error(clients.get_client(request.clone()).await, Code::NotFound, "CLIENT_NOT_FOUND");
    key_server.server.sql("ALTER TABLE audit_log DROP CONSTRAINT full_up").await;
    // If the outcome cannot be written, the change stays.
    key_server.server.sql("ALTER TABLE audit_outcomes ADD CONSTRAINT full_up CHECK (false) NOT VALID").await;
    clients.create_client(create_client("acme")).await.unwrap();
    clients.get_client(request).await.unwrap();
    assert_eq!(all(&key_server).await[0].code, None);
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_rejects_changes_and_deletions_of_entries() {
    let key_server = KeyServer::start().await;
    clients_as(&key_server.server, &key_server.admin).create_client(create_client("acme")).await.unwrap();
    for (table, column) in [("audit_log", "method"), ("audit_outcomes", "reason")] {
        for sql in [
            format!("UPDATE {table} SET {column} = 'other'"),
            format!("UPDATE {table} SET time = now() WHERE false"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table} CASCADE"),
        ] {
            let rejected = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone())).execute(&key_server.server.pool).await;
            let rejected = rejected.expect_err(&sql).into_database_error().unwrap();
            assert_eq!(rejected.code().as_deref(), Some("42501"), "{sql}: {rejected}");
            assert!(rejected.message().contains("append-only"), "{sql}: {rejected}");
        }
    }
    assert_eq!(all(&key_server).await.len(), 1);
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_paged_and_filtered() {
    let key_server = KeyServer::start().await;
    let other = key_server.key(Scope::Admin, &[]).await;
    for (number, token) in
        [&key_server.admin, &other, &key_server.admin, &other, &key_server.admin].into_iter().enumerate()
    {
        clients_as(&key_server.server, token).create_client(create_client(&format!("c{number}"))).await.unwrap();
    }
    let request = RevokeApiKeyRequest { key_id: "none".into() };
    key_server.keys().revoke_api_key(request).await.unwrap_err();
    let everything = all(&key_server).await;
    assert_eq!(everything.len(), 6);
    assert!(everything.windows(2).all(|pair| pair[0].entry_id > pair[1].entry_id));
    let (mut paged, mut page_token) = (vec![], String::new());
    loop {
        let request = ListAuditLogRequest { page_size: 4, page_token, ..Default::default() };
        let page = key_server.keys().list_audit_log(request).await.unwrap().into_inner();
        paged.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, everything);
    let time = |index: usize| everything[index].time;
    let create = "metering.v1.ClientService/CreateClient".to_string();
    for (request, expected) in [
        (ListAuditLogRequest { actor_id: other.key_id.clone(), ..Default::default() }, &[2, 4][..]),
        (ListAuditLogRequest { method: create.clone(), ..Default::default() }, &[1, 2, 3, 4, 5]),
        (ListAuditLogRequest { method: create, actor_id: other.key_id, ..Default::default() }, &[2, 4]),
        (ListAuditLogRequest { start_time: time(2), ..Default::default() }, &[0, 1, 2]),
        (ListAuditLogRequest { end_time: time(2), ..Default::default() }, &[3, 4, 5]),
        (ListAuditLogRequest { start_time: time(4), end_time: time(2), ..Default::default() }, &[3, 4]),
        (ListAuditLogRequest { method: "nothing".into(), ..Default::default() }, &[]),
    ] {
        let expected: Vec<_> = expected.iter().map(|index| everything[*index].clone()).collect();
        assert_eq!(entries(&key_server, request.clone()).await, expected, "{request:?}");
    }
    let wrong = ListAuditLogRequest { page_size: 1_001, actor_id: "x".repeat(257), ..Default::default() };
    let rejected = key_server.keys().list_audit_log(wrong).await;
    assert_invalid(rejected, "INVALID_FIELD", &["actor_id", "page_size"]);
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_calls_that_change_something_as_an_admin_have_an_entry() {
    let key_server = KeyServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let channel = key_server.server.channel();
    let bearer = [format!("Bearer {}", key_server.admin.token)];
    let mut with_entry = BTreeSet::new();
    for (rpc, request, _) in CELLS {
        let count = async || {
            let count = sqlx::query_scalar("SELECT count(*) FROM audit_log");
            let count: i64 = count.fetch_one(&key_server.server.pool).await.unwrap();
            count
        };
        let before = count().await;
        drop(call(&channel, rpc, request, &bearer).await);
        match count().await - before {
            0 => assert!(!AUDITED.contains(&rpc), "{rpc} {request} has no entry"),
            1 => drop(with_entry.insert(rpc)),
            more => panic!("{rpc} {request} has {more} entries"),
        }
    }
    assert_eq!(with_entry, AUDITED.into());
    let unfinished = "SELECT count(*) FROM audit_log LEFT JOIN audit_outcomes o USING (entry_id) WHERE o.code IS NULL";
    let unfinished: i64 = sqlx::query_scalar(unfinished).fetch_one(&key_server.server.pool).await.unwrap();
    assert_eq!(unfinished, 0);
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_json_form_is_recorded_and_rejected() {
    let key_server = KeyServer::start().await;
    let far = prost_types::Timestamp { seconds: i64::MAX, nanos: -1 };
    let price = Price { effective_time: Some(far), ..unit_price("sms", "", "1") };
    let mut catalog = meterd::proto::catalog_service_client::CatalogServiceClient::with_interceptor(
        key_server.server.channel(),
        key_server.admin.clone(),
    );
    let rejected = catalog.create_price(CreatePriceRequest { price: Some(price), ..Default::default() }).await;
    assert_invalid(rejected, "INVALID_FIELD", &["price.effective_time"]);
    let entry = all(&key_server).await.remove(0);
    assert!(entry.request_json.starts_with(r#"{"protobufBase64":""#), "{}", entry.request_json);
    assert_eq!((entry.code, &*entry.reason), (Some(Code::InvalidArgument as i32), "INVALID_FIELD"));
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_the_entry_of_its_call_without_an_outcome() {
    let key_server = KeyServer::start().await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(["serve", "--auth=keys", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
    command.args(["--allow-non-durable-database"]).env("DATABASE_URL", &key_server.server.database_url);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
    let address = loop {
        let line = stdout.next_line().await.unwrap().expect("the server prints its addresses");
        if let Some(rest) = line.trim().strip_prefix("gRPC") {
            break format!("http://{}", rest.split_whitespace().next().unwrap());
        }
    };
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut keys = KeyServiceClient::with_interceptor(channel, key_server.admin.clone());
    // Changes of keys wait for this lock.
    let mut holder = key_server.server.pool.begin().await.unwrap();
    sqlx::query("UPDATE key_version SET version = version").execute(&mut *holder).await.unwrap();
    let key_id = key_server.admin.key_id.clone();
    let calling = tokio::spawn(async move { keys.revoke_api_key(RevokeApiKeyRequest { key_id }).await });
    wait_until(async || !all(&key_server).await.is_empty()).await;
    process.start_kill().unwrap();
    process.wait().await.unwrap();
    calling.await.unwrap().unwrap_err();
    holder.rollback().await.unwrap();
    let log = all(&key_server).await;
    assert_eq!(log.len(), 1, "the key must still be valid");
    assert_eq!((&*log[0].method, log[0].code), ("metering.v1.KeyService/RevokeApiKey", None));
    key_server.server.stop().await;
}
