//! API keys: creating, rotating, revoking, expiry and limits. They are valid on every replica, and their secret is
//! stored nowhere.

use crate::harness::*;
use crate::http;
use crate::key_server::*;
use chrono::{DateTime, TimeDelta, Utc};
use meterd::app;
use meterd::proto::{Scope as Scope_, *};
use meterd_domain::access::Scope;
use meterd_engine::auth::keys::LIVE_KEYS_MAX;
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

pub fn proto_time(time: DateTime<Utc>) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 })
}

pub fn new_key(scope: Scope_, client_ids: &[&str]) -> ApiKey {
    let client_ids: Vec<String> = client_ids.iter().map(ToString::to_string).collect();
    let grant = Grant { scope: scope.into(), all_clients: client_ids.is_empty(), client_ids };
    ApiKey { name: "billing".into(), grants: vec![grant], ..Default::default() }
}

pub fn token_of(api_key: Option<ApiKey>, token: String) -> Token {
    Token { key_id: api_key.unwrap().key_id, token }
}

pub async fn create(key_server: &KeyServer, api_key: ApiKey) -> Token {
    let request = CreateApiKeyRequest { api_key: Some(api_key), request_id: String::new() };
    let created = key_server.keys().create_api_key(request).await.unwrap().into_inner();
    token_of(created.api_key, created.token)
}

pub async fn read(server: &TestServer, token: &Token) -> Result<(), Status> {
    let request = ListAlertsRequest { client_ids: vec!["acme".into()], ..Default::default() };
    alerts_as(server, token).list_alerts(request).await.map(drop)
}

pub async fn revoke(key_server: &KeyServer, key_id: &str) -> ApiKey {
    let request = RevokeApiKeyRequest { key_id: key_id.into() };
    key_server.keys().revoke_api_key(request).await.unwrap().into_inner().api_key.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_shown_once_and_is_valid_at_once_on_every_replica() {
    let key_server = KeyServer::start().await;
    let second = key_server.replica().await;
    for _ in 0..5 {
        let token = create(&key_server, new_key(Scope_::Read, &["acme"])).await;
        read(&second, &token).await.unwrap();
        read(&key_server.server, &token).await.unwrap();
    }
    let request = ListApiKeysRequest { page_size: 2, ..Default::default() };
    let (mut listed, mut page_token) = (vec![], String::new());
    loop {
        let page = ListApiKeysRequest { page_token, ..request.clone() };
        let page = key_server.keys().list_api_keys(page).await.unwrap().into_inner();
        assert!(page.api_keys.len() <= 2);
        listed.extend(page.api_keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed.len(), 6);
    assert_eq!(listed[0].key_id, key_server.admin.key_id);
    let last = listed.last().unwrap();
    let expected = new_key(Scope_::Read, &["acme"]);
    assert_eq!((&last.name, &last.grants), (&expected.name, &expected.grants));
    let request = GetApiKeyRequest { key_id: last.key_id.clone() };
    let got = key_server.keys().get_api_key(request).await.unwrap().into_inner().api_key.unwrap();
    assert_eq!(got, *last);
    revoke(&key_server, &last.key_id).await;
    let request = ListApiKeysRequest { live_only: true, ..Default::default() };
    assert_eq!(key_server.keys().list_api_keys(request).await.unwrap().into_inner().api_keys.len(), 5);
    let unknown = key_server.keys().get_api_key(GetApiKeyRequest { key_id: "none".into() }).await;
    assert_error(unknown, Code::NotFound, "API_KEY_NOT_FOUND");
    key_server.server.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_create_gets_the_first_answer_without_the_token() {
    let key_server = KeyServer::start().await;
    let api_key = Some(new_key(Scope_::Ingest, &[]));
    let request = CreateApiKeyRequest { api_key: api_key.clone(), request_id: "r1".into() };
    let first = key_server.keys().create_api_key(request.clone()).await.unwrap().into_inner();
    let again = key_server.keys().create_api_key(request).await.unwrap().into_inner();
    assert_eq!((first.token.is_empty(), &again.token), (false, &String::new()));
    assert_eq!(first.api_key, again.api_key);
    let other = CreateApiKeyRequest { api_key: Some(new_key(Scope_::Read, &[])), request_id: "r1".into() };
    assert_error(key_server.keys().create_api_key(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    let key_id = first.api_key.unwrap().key_id;
    let request = RotateApiKeyRequest { key_id, request_id: "r2".into(), ..Default::default() };
    let first = key_server.keys().rotate_api_key(request.clone()).await.unwrap().into_inner();
    let again = key_server.keys().rotate_api_key(request).await.unwrap().into_inner();
    assert_eq!((first.token.is_empty(), &again.token), (false, &String::new()));
    assert_eq!((first.api_key, first.old_api_key), (again.api_key, again.old_api_key));
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_of_the_key_service_is_rejected_with_every_field() {
    let key_server = KeyServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let mut keys = key_server.keys();
    let past = Some(timestamp("2026-11-21T12:00:00Z"));
    let grant = |scope: i32, client_ids: &[&str], all_clients| Grant {
        scope,
        client_ids: client_ids.iter().map(ToString::to_string).collect(),
        all_clients,
    };
    let cases: Vec<(ApiKey, &[&str])> = vec![
        (ApiKey::default(), &["api_key.name", "api_key.grants"]),
        (
            ApiKey { name: "x".repeat(257), requests_per_second: -1, expire_time: past, ..new_key(Scope_::Read, &[]) },
            &["api_key.name", "api_key.requests_per_second", "api_key.expire_time"],
        ),
        (ApiKey { requests_per_second: 1_000_001, ..new_key(Scope_::Read, &[]) }, &["api_key.requests_per_second"]),
        (
            ApiKey { grants: vec![grant(0, &["a"], false), grant(9, &[], true)], ..new_key(Scope_::Read, &[]) },
            &["api_key.grants[0].scope", "api_key.grants[1].scope"],
        ),
        (
            ApiKey { grants: vec![grant(2, &["a"], true), grant(2, &[], false)], ..new_key(Scope_::Read, &[]) },
            &["api_key.grants[0]", "api_key.grants[1]", "api_key.grants[1].scope"],
        ),
        (
            ApiKey { grants: vec![grant(2, &["", "\u{7}"], false)], ..new_key(Scope_::Read, &[]) },
            &["api_key.grants[0].client_ids[0]", "api_key.grants[0].client_ids[1]"],
        ),
        (
            ApiKey { grants: vec![grant(2, &[], true); 4], ..new_key(Scope_::Read, &[]) },
            &["api_key.grants", "api_key.grants[1].scope", "api_key.grants[2].scope"],
        ),
    ];
    for (api_key, fields) in cases {
        let request = CreateApiKeyRequest { api_key: Some(api_key), request_id: String::new() };
        assert_invalid(keys.create_api_key(request).await, "INVALID_FIELD", fields);
    }
    // The limit is 100 clients in all grants together, because a filter must be able to name all clients of a key.
    let ids: Vec<String> = (0..101).map(|number| format!("c{number}")).collect();
    let of =
        |scope: Scope_, ids: &[String]| Grant { scope: scope.into(), client_ids: ids.to_vec(), all_clients: false };
    let too_many = vec![of(Scope_::Read, &ids[..60]), of(Scope_::Admin, &ids[60..])];
    let fitting = vec![of(Scope_::Read, &ids[..60]), of(Scope_::Admin, &ids[1..100])];
    let request = |grants| CreateApiKeyRequest {
        api_key: Some(ApiKey { grants, ..new_key(Scope_::Read, &[]) }),
        request_id: String::new(),
    };
    assert_invalid(keys.create_api_key(request(too_many)).await, "INVALID_FIELD", &["api_key.grants"]);
    let created = keys.create_api_key(request(fitting)).await.unwrap().into_inner();
    let token = token_of(created.api_key, created.token);
    alerts_as(&key_server.server, &token).list_alerts(ListAlertsRequest::default()).await.unwrap();

    let overlap = |seconds, nanos| RotateApiKeyRequest {
        key_id: key_server.admin.key_id.clone(),
        overlap: Some(prost_types::Duration { seconds, nanos }),
        expire_time: past,
        ..Default::default()
    };
    for request in [overlap(-1, 0), overlap(90 * 86_400, 1), overlap(0, -1), overlap(i64::MAX, i32::MAX)] {
        assert_invalid(keys.rotate_api_key(request).await, "INVALID_FIELD", &["overlap", "expire_time"]);
    }
    assert_invalid(keys.rotate_api_key(RotateApiKeyRequest::default()).await, "INVALID_FIELD", &["key_id"]);
    assert_invalid(keys.revoke_api_key(RevokeApiKeyRequest::default()).await, "INVALID_FIELD", &["key_id"]);
    let unknown = keys.revoke_api_key(RevokeApiKeyRequest { key_id: "none".into() }).await;
    assert_error(unknown, Code::NotFound, "API_KEY_NOT_FOUND");
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_live_keys_is_limited() {
    let key_server = KeyServer::start().await;
    let sql = format!(
        "INSERT INTO api_keys (key_id, secret_hash, name, read_clients, version)
         SELECT 'k' || n, sha256(n::text::bytea), 'filler', '{{\"\"}}', 0 FROM generate_series(2, {LIVE_KEYS_MAX}) n"
    );
    key_server.server.sql(&sql).await;
    let request = || CreateApiKeyRequest { api_key: Some(new_key(Scope_::Read, &[])), request_id: String::new() };
    assert_error(key_server.keys().create_api_key(request()).await, Code::ResourceExhausted, "TOO_MANY_API_KEYS");
    revoke(&key_server, "k2").await;
    key_server.keys().create_api_key(request()).await.unwrap();
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_is_valid_until_its_overlap_ends() {
    let clock = Clock::fixed(time("2026-11-21T12:00:00Z"));
    let key_server = KeyServer::start_with(&[], clock.clone()).await;
    let second = key_server.replica().await;
    let mut api_key = new_key(Scope_::Read, &["acme"]);
    api_key.requests_per_second = 7;
    let old = create(&key_server, api_key).await;
    let request = RotateApiKeyRequest {
        key_id: old.key_id.clone(),
        overlap: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
        ..Default::default()
    };
    let rotated = key_server.keys().rotate_api_key(request).await.unwrap().into_inner();
    let (created, before) = (rotated.api_key.clone().unwrap(), rotated.old_api_key.unwrap());
    assert_eq!((&created.rotated_from, &created.name, &created.grants), (&old.key_id, &before.name, &before.grants));
    assert_eq!((created.requests_per_second, before.expire_time), (7, Some(timestamp("2026-11-21T13:00:00Z"))));
    let new = token_of(rotated.api_key, rotated.token);
    clock.set(time("2026-11-21T12:59:59Z"));
    for server in [&key_server.server, &second] {
        for token in [&old, &new] {
            read(server, token).await.unwrap();
        }
    }
    // The other replica knows the end of the old key before it is reached.
    wait_until(async || {
        clock.set(time("2026-11-21T13:00:00Z"));
        let rejected = read(&second, &old).await.is_err();
        clock.set(time("2026-11-21T12:59:59Z"));
        rejected
    })
    .await;
    clock.set(time("2026-11-21T13:00:00Z"));
    for server in [&key_server.server, &second] {
        assert_error(read(server, &old).await, Code::Unauthenticated, "CREDENTIALS_EXPIRED");
        read(server, &new).await.unwrap();
    }
    let request = RotateApiKeyRequest { key_id: old.key_id, ..Default::default() };
    assert_error(key_server.keys().rotate_api_key(request).await, Code::FailedPrecondition, "API_KEY_NOT_LIVE");
    // A key that expires sooner anyway is not valid for longer.
    let mut brief = new_key(Scope_::Read, &[]);
    brief.expire_time = Some(timestamp("2026-11-21T13:30:00Z"));
    let brief = create(&key_server, brief).await;
    let request = RotateApiKeyRequest { key_id: brief.key_id, ..Default::default() };
    let old = key_server.keys().rotate_api_key(request).await.unwrap().into_inner().old_api_key.unwrap();
    assert_eq!(old.expire_time, Some(timestamp("2026-11-21T13:30:00Z")));
    key_server.server.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_is_valid_as_long_as_the_old_one_by_default() {
    let key_server = KeyServer::start().await;
    let clock = Clock::system();
    let until = |time: DateTime<Utc>| prost_types::Timestamp { seconds: time.timestamp(), nanos: 0 };
    // Created a month ago, valid for ninety days.
    let mut api_key = new_key(Scope_::Read, &["acme"]);
    api_key.expire_time = Some(until(clock.now() + TimeDelta::days(60)));
    let old = create(&key_server, api_key).await;
    key_server
        .server
        .sql("UPDATE api_keys SET create_time = create_time - interval '30 days' WHERE expire_time IS NOT NULL")
        .await;
    let rotate = async |key_id: &str, expire_time| {
        let request = RotateApiKeyRequest { key_id: key_id.into(), expire_time, ..Default::default() };
        key_server.keys().rotate_api_key(request).await.unwrap().into_inner().api_key.unwrap()
    };
    let life = |key: &ApiKey| key.expire_time.unwrap().seconds - clock.now().timestamp();
    let kept = rotate(&old.key_id, None).await;
    assert!((life(&kept) - 90 * 86_400).abs() < 60, "{kept:?}");
    let requested = until(clock.now() + TimeDelta::days(7));
    assert_eq!(rotate(&kept.key_id, Some(requested)).await.expire_time, Some(requested));
    let forever = create(&key_server, new_key(Scope_::Read, &["acme"])).await;
    assert_eq!(rotate(&forever.key_id, None).await.expire_time, None);
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_above_its_rate_limit_is_rejected_with_a_retry_time() {
    let key_server = KeyServer::start_with(&["--key-requests-per-second=3"], Clock::system()).await;
    let mut limited = new_key(Scope_::Read, &["acme"]);
    limited.requests_per_second = 2;
    let (two, default) = (create(&key_server, limited).await, key_server.key(Scope::Read, &["acme"]).await);
    for (token, calls) in [(&two, 2), (&default, 3)] {
        let (mut good, started) = (0, Instant::now());
        let rejected = loop {
            match read(&key_server.server, token).await {
                Ok(()) => good += 1,
                Err(status) => break status,
            }
        };
        // Each part of a second that has passed meanwhile allows one more call.
        assert!((calls..=calls + 1 + started.elapsed().as_secs() as u32 * calls).contains(&good), "{good}");
        let delay = rejected.get_error_details().retry_info().unwrap().retry_delay.unwrap();
        assert!(delay > Duration::ZERO && delay <= Duration::from_secs(1), "{delay:?}");
        assert_error::<()>(Err(rejected), Code::ResourceExhausted, "RATE_LIMITED");
        tokio::time::sleep(delay).await;
        read(&key_server.server, token).await.unwrap();
    }
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_use_of_a_key_is_recorded() {
    let key_server = KeyServer::start().await;
    let second = key_server.replica().await;
    let (used, unused) = (key_server.key(Scope::Read, &["acme"]).await, key_server.key(Scope::Read, &["acme"]).await);
    let before = key_server.server.clock.now();
    read(&second, &used).await.unwrap();
    let (start, last) = unused.token.split_at(unused.token.len() - 1);
    let wrong = format!("{start}{}", if last == "0" { "1" } else { "0" });
    let rejected = read(&second, &Token { token: wrong, ..unused.clone() }).await;
    assert_error(rejected, Code::Unauthenticated, "CREDENTIALS_INVALID");
    // A last use that is not recorded yet is recorded at the end.
    second.stop().await;
    let last_used = async |token: &Token| {
        let request = GetApiKeyRequest { key_id: token.key_id.clone() };
        key_server.keys().get_api_key(request).await.unwrap().into_inner().api_key.unwrap().last_used_time
    };
    let time = last_used(&used).await.expect("the last use is recorded");
    assert!((before.timestamp()..=before.timestamp() + 20).contains(&time.seconds));
    assert_eq!(last_used(&unused).await, None);
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_require_the_read_scope_for_all_clients_and_probes_require_no_key() {
    let key_server = KeyServer::start_with(&["--key-requests-per-second=1"], Clock::system()).await;
    let address = &key_server.server.http_address;
    let get = async |path: &str, token: Option<&Token>| {
        let header = token.map_or_else(String::new, |token| format!("Authorization: Bearer {}\r\n", token.token));
        http::get_with(address, path, &header).await
    };
    assert_eq!(get("/healthz", None).await.status, 200);
    wait_until(async || get("/readyz", None).await.status == 200).await;
    let rejected = get("/metrics", None).await;
    assert_eq!((rejected.status, rejected.header("www-authenticate")), (401, "Bearer"));
    assert!(!rejected.text().contains("meterd_"), "{}", rejected.text());
    let stranger = Token { key_id: String::new(), token: meterd_engine::auth::token::new().token };
    assert_eq!(get("/metrics", Some(&stranger)).await.status, 401);
    let acme: &[&str] = &["acme"];
    for (scope, clients, expected) in [
        (Scope::Ingest, &[][..], 403),
        (Scope::Read, acme, 403),
        (Scope::Admin, acme, 403),
        (Scope::Read, &[], 200),
        (Scope::Admin, &[], 200),
    ] {
        let token = key_server.key(scope, clients).await;
        assert_eq!(get("/metrics", Some(&token)).await.status, expected, "{scope:?} {clients:?}");
    }
    let token = key_server.key(Scope::Read, &[]).await;
    let mut statuses = vec![];
    for _ in 0..10 {
        statuses.push(get("/metrics", Some(&token)).await.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    key_server.server.stop().await;
}

#[tokio::test]
async fn a_server_that_requires_keys_does_not_start_without_a_key_and_says_how_to_create_one() {
    let database_url = fresh_database().await;
    let options = connect::options(&database_url).unwrap();
    let start = async || {
        let settings = settings_of(&["--auth=keys"]);
        let deployment = app::prepare(&options, &settings).await.unwrap();
        app::build(settings, &options, deployment, Clock::system()).await.map(drop)
    };
    let mut expired = spec(grant(Scope::Admin, &[]));
    expired.expire_time = Some(Clock::system().now() - TimeDelta::seconds(1));
    for _ in 0..2 {
        let rejected = start().await.err().unwrap().to_string();
        assert!(rejected.contains("meterd keys create NAME --scope admin --all-clients --direct"), "{rejected}");
        create_key_in_database(&database_url, &expired).await;
    }
    // A server starts although the only admin key has expired, so that callers can still record events.
    create_key_in_database(&database_url, &spec(grant(Scope::Ingest, &["acme"]))).await;
    start().await.unwrap();
}
