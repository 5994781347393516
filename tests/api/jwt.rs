//! Tokens of an identity provider: a real HTTP server with its keys, and all tokens that must be rejected.

use crate::harness::*;
use crate::key_server::*;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use hmac::{Hmac, KeyInit, Mac};
use meterd::config::AuthSettings;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use sha2::Sha256;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The time in tests with a fixed clock.
const NOON: &str = "2026-11-21T12:00:00Z";
const AUDIENCE: &str = "meterd";

/// A key of the provider for ES256.
pub struct SigningKey {
    id: String,
    pair: EcdsaKeyPair,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl SigningKey {
    pub fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { id: id.into(), pair }
    }

    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": encode(&point[1..33]), "y": encode(&point[33..]),
        })
    }

    /// Signs a token with this header.
    fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature))
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }), claims)
    }
}

/// The responses of the provider, and how often its keys were requested.
#[derive(Default)]
struct Answers {
    keys: Value,
    configuration: Option<Value>,
    fails: bool,
    requested: usize,
}

/// An identity provider on 127.0.0.1.
#[derive(Clone)]
pub struct Issuer {
    pub url: String,
    answers: Arc<Mutex<Answers>>,
}

impl Issuer {
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = Self { url, answers: Arc::default() };
        issuer.set_keys(keys.iter().map(|key| key.jwk()).collect());
        let router = Router::new().fallback(answer).with_state(issuer.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        issuer
    }

    fn set_keys(&self, keys: Vec<Value>) {
        self.answers.lock().unwrap().keys = json!({ "keys": keys });
    }

    fn set_fails(&self, fails: bool) {
        self.answers.lock().unwrap().fails = fails;
    }

    fn requested(&self) -> usize {
        self.answers.lock().unwrap().requested
    }

    /// Returns the flags of a server that accepts its tokens.
    pub fn flags(&self) -> [String; 2] {
        [format!("--jwt-issuer={}", self.url), format!("--jwt-audience={AUDIENCE}")]
    }

    /// Returns claims that are valid for an hour.
    pub fn claims(&self, now: chrono::DateTime<chrono::Utc>, scope: &str, clients: Value) -> Value {
        json!({
            "iss": self.url, "aud": AUDIENCE, "sub": "jane", "exp": now.timestamp() + 3_600, "iat": now.timestamp(),
            "scope": scope, "meterd_clients": clients,
        })
    }
}

async fn answer(State(issuer): State<Issuer>, uri: Uri) -> (StatusCode, String) {
    let mut answers = issuer.answers.lock().unwrap();
    let configuration = json!({ "issuer": issuer.url, "jwks_uri": format!("{}/keys", issuer.url) });
    let body = match uri.path() {
        _ if answers.fails => return (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        "/.well-known/openid-configuration" => answers.configuration.clone().unwrap_or(configuration),
        "/keys" => {
            answers.requested += 1;
            answers.keys.clone()
        }
        _ => return (StatusCode::NOT_FOUND, String::new()),
    };
    (StatusCode::OK, body.to_string())
}

/// Starts a server that accepts the provider's tokens, at noon.
async fn server_of(issuer: &Issuer) -> KeyServer {
    let flags = issuer.flags();
    KeyServer::start_with(&[&flags[0], &flags[1]], Clock::fixed(time(NOON))).await
}

async fn read(server: &TestServer, token: &str) -> Result<(), Status> {
    let token = Token { key_id: String::new(), token: token.into() };
    let request = ListAlertsRequest { client_ids: vec!["acme".into()], ..Default::default() };
    alerts_as(server, &token).list_alerts(request).await.map(drop)
}

fn with(claims: &Value, claim: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[claim] = value;
    claims
}

fn without(claims: &Value, claim: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

/// Returns invalid tokens and the reason why each is invalid.
pub fn bad_tokens(
    issuer: &Issuer,
    key: &SigningKey,
    now: chrono::DateTime<chrono::Utc>,
) -> Vec<(&'static str, String)> {
    let good = issuer.claims(now, "meterd:admin", json!("*"));
    let seconds = now.timestamp();
    let stranger = SigningKey::new(&key.id);
    let hmac = |secret: &[u8], header: &Value| {
        let message = format!("{}.{}", encode(header.to_string()), encode(good.to_string()));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(message.as_bytes());
        format!("{message}.{}", encode(mac.finalize().into_bytes()))
    };
    let hs256 = json!({ "alg": "HS256", "kid": key.id });
    let jwk = key.jwk().to_string();
    let signed = key.sign(&good);
    let (message, signature) = signed.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let none = |alg: &str| format!("{}.{}.", encode(json!({ "alg": alg }).to_string()), encode(good.to_string()));
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
    flipped[40] ^= 1;
    vec![
        ("expired", key.sign(&with(&good, "exp", json!(seconds - 60)))),
        ("not good yet", key.sign(&with(&good, "nbf", json!(seconds + 61)))),
        ("another audience", key.sign(&with(&good, "aud", json!("others")))),
        ("other audiences", key.sign(&with(&good, "aud", json!(["others", "meterd2"])))),
        ("another issuer", key.sign(&with(&good, "iss", json!("https://evil.example.com")))),
        ("no exp", key.sign(&without(&good, "exp"))),
        ("exp as text", key.sign(&with(&good, "exp", json!("4102444800")))),
        ("no iss", key.sign(&without(&good, "iss"))),
        ("no aud", key.sign(&without(&good, "aud"))),
        ("no sub", key.sign(&without(&good, "sub"))),
        ("empty sub", key.sign(&with(&good, "sub", json!("")))),
        ("long sub", key.sign(&with(&good, "sub", json!("x".repeat(257))))),
        ("U+0000 in sub", key.sign(&with(&good, "sub", json!("a\u{0}")))),
        ("clients as number", key.sign(&with(&good, "meterd_clients", json!(7)))),
        (
            "101 clients",
            key.sign(&with(&good, "meterd_clients", json!((0..101).map(|n| n.to_string()).collect::<Vec<_>>()))),
        ),
        ("alg none", none("none")),
        ("alg None", none("None")),
        ("signature of a stranger under the same kid", stranger.sign(&good)),
        ("HS256 by the public key", hmac(jwk.as_bytes(), &hs256)),
        ("HS256 by the public point", hmac(key.pair.public_key().as_ref(), &hs256)),
        ("HS256 signature called ES256", hmac(jwk.as_bytes(), &json!({ "alg": "ES256", "kid": key.id }))),
        ("an algorithm that is not taken", key.sign_as(&json!({ "alg": "ES384", "kid": key.id }), &good)),
        ("the key as another type", key.sign_as(&json!({ "alg": "RS256", "kid": key.id }), &good)),
        (
            "its own key in the header",
            stranger.sign_as(&json!({ "alg": "ES256", "jwk": stranger.jwk(), "kid": key.id }), &good),
        ),
        ("extensions", key.sign_as(&json!({ "alg": "ES256", "kid": key.id, "crit": ["exp"] }), &good)),
        ("a key that the provider has not", stranger.sign_as(&json!({ "alg": "ES256", "kid": "none" }), &good)),
        ("no signature", format!("{message}.")),
        ("a signature of a bit less", format!("{message}.{}", encode(flipped))),
        (
            "other claims under the signature",
            format!("{header}.{}.{signature}", encode(with(&good, "sub", json!("root")).to_string())),
        ),
        ("two parts", message.to_string()),
        ("four parts", format!("{signed}.{signature}")),
        ("no base64", format!("{message}.!!!")),
        ("no JSON", format!("{}.{}.{signature}", encode("{"), encode("{"))),
        ("very long", key.sign(&with(&good, "padding", json!("x".repeat(8 * 1024))))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_valid_tokens_of_the_provider_are_accepted() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let key_server = server_of(&issuer).await;
    let now = time(NOON);
    let good = issuer.claims(now, "openid meterd:read", json!(["acme", "globex"]));
    for claims in [
        good.clone(),
        // A minute of clock skew is allowed.
        with(&good, "exp", json!(now.timestamp() - 59)),
        with(&good, "nbf", json!(now.timestamp() + 60)),
        with(&good, "aud", json!(["others", AUDIENCE])),
        with(&good, "scope", json!(["meterd:read"])),
        with(&good, "exp", json!(1e18)),
    ] {
        read(&key_server.server, &key.sign(&claims)).await.unwrap_or_else(|status| panic!("{claims}: {status}"));
    }
    read(&key_server.server, &key.sign_as(&json!({ "alg": "ES256" }), &good)).await.expect("the only key needs no id");
    let bad = bad_tokens(&issuer, &key, now);
    for (why, token) in &bad {
        let Err(status) = read(&key_server.server, token).await else { panic!("{why} was accepted") };
        let reason = if *why == "expired" { "CREDENTIALS_EXPIRED" } else { "CREDENTIALS_INVALID" };
        let status = assert_error::<()>(Err(status), Code::Unauthenticated, reason);
        let parts: Vec<&str> = token.split('.').filter(|part| part.len() > 8).collect();
        assert!(!parts.iter().any(|part| status.message().contains(part)), "{why}: {status}");
    }
    println!("{} tokens that are not good, none taken", bad.len());
    read(&key_server.server, &key_server.admin.token).await.expect("API keys are still valid");
    let none = read(&key_server.server, &key.sign(&without(&good, "meterd_clients"))).await;
    assert_error(none, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let none = read(&key_server.server, &key.sign(&without(&good, "scope"))).await;
    assert_error(none, Code::PermissionDenied, "SCOPE_MISSING");
    let services = Token { key_id: String::new(), token: key.sign(&without(&good, "scope")) };
    let mut catalog = meterd::proto::catalog_service_client::CatalogServiceClient::with_interceptor(
        key_server.server.channel(),
        services,
    );
    let none = catalog.list_services(ListServicesRequest {}).await;
    assert_error(none, Code::PermissionDenied, "SCOPE_MISSING");
    let foreign = read(&key_server.server, &key.sign(&with(&good, "meterd_clients", json!("globex")))).await;
    assert_error(foreign, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let empty = Token { key_id: String::new(), token: key.sign(&with(&good, "meterd_clients", json!([]))) };
    for filter in [vec![], vec!["acme".to_string()]] {
        let request = ListAlertsRequest { client_ids: filter, ..Default::default() };
        let rejected = alerts_as(&key_server.server, &empty).list_alerts(request).await;
        assert_error(rejected, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    }
    key_server.server.stop().await;
}

/// A 2,048-bit key and a token signed with it, valid until 2100. The private key is not stored.
const RSA_MODULUS: &str = concat!(
    "3moHdq5rSFVgSpj3jlc7dDHw9TcGeodm8CywT-KRZib5oZKenYJEA4XvDsZYZ2ywc0VpRaSCom3oQ4IrihxkXVt-",
    "GW8aqqU9Islg_XMMXCTmLuYC-oLOR__eebuJmGIGIbFeJ7Fh6SsUyMl3sWLm-yEXBNAnIW8X8yBI89K3S8FmfmskoV3e8Gjs--",
    "joKvY2bnvnUd80rAfQSezEpDvGBrXMKvUtQSI-",
    "_I85guujwfrEOePglkqw7uDRRxHXW_mJID2OiFpK-Z7NbvUGijsnXyYNLktHmknYJTOwQ3IBngx8eeSPQ82Gb4Gcx7fAi63jmn4L--",
    "JiOg0icHAdUDb5xw",
);
const RSA_TOKEN: &str = concat!(
    "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUuY29tIiwiYXVkIjoibWV",
    "0ZXJkIiwic3ViIjoiamFuZSIsImV4cCI6NDEwMjQ0NDgwMCwic2NvcGUiOiJtZXRlcmQ6cmVhZCIsIm1ldGVyZF9jbGllbnRzIjpbImFjbWU",
    "iXX0.CF-VxuwRFzFi2RY7pYYz8XScHFHRWYnkHSfSFdPSOBw5TjvK7-",
    "_AN7CJxZm7FEFcxcixs6i3UA0QCqSVHe2zw_YEP8BNabosK7v_e3rO7aQlTbyu-",
    "6UEBetakrptHtgYlYHiWoF2MzJXy9qx9Tl16lNHmD1kk_GoyCya6zWF90FKOGU-",
    "bgia23V0XJ2ikwyTfa2OJXGtksS2Z5dK5hhmtsCdKuEDcc6kK5hc97G4LAXdjxhoIvy4AvMU_m0lAbS1iV8bzyqtrnU-",
    "edTU7lM21nz7Plm8USY7KjTBxqlaKiXmTZnhLhC1qHjGlUFx-I85MnIIpB8nTBEbXAb9Ph2-cA",
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsa_keys_verify_only_tokens_of_their_own_algorithm() {
    let issuer = Issuer::start(&[]).await;
    let rsa = json!({ "kty": "RSA", "n": RSA_MODULUS, "e": "AQAB", "kid": "rsa" });
    let good = |more: Value| {
        let mut key = rsa.clone();
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    for (more, taken) in [
        (json!({}), true),
        (json!({ "alg": "RS256", "use": "sig", "key_ops": ["verify"] }), true),
        (json!({ "alg": "PS256" }), false),
        (json!({ "alg": "RS512" }), false),
        (json!({ "alg": "HS256" }), false),
        (json!({ "use": "enc" }), false),
        (json!({ "key_ops": ["encrypt"] }), false),
        (json!({ "kid": "other" }), false),
        (json!({ "e": "Aw" }), false),
    ] {
        // Keys of unknown types are ignored.
        issuer
            .set_keys(vec![json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": "new", "pub": "x" }), good(more.clone())]);
        let jwks = format!("--jwt-jwks-url={}/keys", issuer.url);
        let flags = ["--jwt-issuer=https://id.example.com", "--jwt-audience=meterd", &jwks];
        let key_server = KeyServer::start_with(&flags, Clock::fixed(time(NOON))).await;
        let answer = read(&key_server.server, RSA_TOKEN).await;
        assert_eq!(answer.is_ok(), taken, "{more}: {answer:?}");
        key_server.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_fetched_and_the_number_of_requests_is_limited() {
    let (first, second) = (SigningKey::new("one"), SigningKey::new("two"));
    let issuer = Issuer::start(&[&first]).await;
    let key_server = server_of(&issuer).await;
    let claims = issuer.claims(time(NOON), "meterd:read", json!("acme"));
    read(&key_server.server, &first.sign(&claims)).await.unwrap();
    issuer.set_keys(vec![second.jwk()]);
    let started = Instant::now();
    let requested = issuer.requested();
    let mut rejected = 0;
    while let Err(status) = read(&key_server.server, &second.sign(&claims)).await {
        assert_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_INVALID");
        assert!(started.elapsed() < Duration::from_secs(10), "rotated keys were not fetched");
        rejected += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("a new key was known after {} ms and {rejected} calls", started.elapsed().as_millis());
    assert_eq!(issuer.requested(), requested + 1, "the keys must be requested once for all tokens");
    let missing = read(&key_server.server, &first.sign(&claims)).await;
    assert_error(missing, Code::Unauthenticated, "CREDENTIALS_INVALID");
    for number in 0..200 {
        let stranger = SigningKey::new(&format!("k{number}"));
        assert!(read(&key_server.server, &stranger.sign(&claims)).await.is_err());
    }
    let bound = 2 + started.elapsed().as_secs() as usize / 5;
    assert!(
        issuer.requested() - requested <= bound,
        "the keys were requested {} times",
        issuer.requested() - requested
    );
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_provider_is_unavailable_known_keys_are_valid_and_others_get_a_retryable_error() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let claims = issuer.claims(time(NOON), "meterd:read", json!("acme"));
    let knowing = server_of(&issuer).await;
    read(&knowing.server, &key.sign(&claims)).await.unwrap();
    issuer.set_fails(true);
    read(&knowing.server, &key.sign(&claims)).await.unwrap();
    // The server starts without the provider and accepts API keys.
    let starting = server_of(&issuer).await;
    read(&starting.server, &starting.admin.token).await.unwrap();
    let rejected = read(&starting.server, &key.sign(&claims)).await;
    let status = assert_error(rejected, Code::Unavailable, "IDENTITY_PROVIDER_UNAVAILABLE");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    issuer.set_fails(false);
    wait_until(async || read(&starting.server, &key.sign(&claims)).await.is_ok()).await;
    knowing.server.stop().await;
    starting.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_with_another_issuer_or_with_keys_at_http_is_rejected() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let claims = issuer.claims(time(NOON), "meterd:read", json!("acme"));
    for configuration in [
        json!({ "issuer": "https://evil.example.com", "jwks_uri": format!("{}/keys", issuer.url) }),
        json!({ "issuer": issuer.url, "jwks_uri": "http://keys.example.com/keys" }),
        json!({ "issuer": issuer.url, "jwks_uri": format!("{}/elsewhere", issuer.url) }),
        json!({ "issuer": issuer.url, "jwks_uri": format!("{}/keys", issuer.url), "padding": "x".repeat(300_000) }),
    ] {
        issuer.answers.lock().unwrap().configuration = Some(configuration.clone());
        let key_server = server_of(&issuer).await;
        let rejected = read(&key_server.server, &key.sign(&claims)).await;
        assert_error(rejected, Code::Unavailable, "IDENTITY_PROVIDER_UNAVAILABLE");
        key_server.server.stop().await;
    }
    assert_eq!(issuer.requested(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_its_token_expires() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let flags = issuer.flags();
    let key_server = KeyServer::start_with(&[&flags[0], &flags[1]], Clock::system()).await;
    let now = key_server.server.clock.now();
    // Including the minute of clock skew.
    let claims = issuer.claims(now - TimeDelta::seconds(3_657), "meterd:read", json!("acme"));
    let token = Token { key_id: String::new(), token: key.sign(&claims) };
    let request = SubscribeAlertsRequest::default();
    let mut stream = alerts_as(&key_server.server, &token).subscribe_alerts(request).await.unwrap().into_inner();
    let to_end = async {
        loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "the stream ended without an error"),
                Err(status) => return status,
            }
        }
    };
    let status = tokio::time::timeout(Duration::from_secs(10), to_end).await.expect("the stream ends in time");
    assert_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_EXPIRED");
    assert_error(read(&key_server.server, &token.token).await, Code::Unauthenticated, "CREDENTIALS_EXPIRED");
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_subject_has_its_own_rate_limit_and_is_named_in_the_audit_log() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let flags = issuer.flags();
    let key_server =
        KeyServer::start_with(&[&flags[0], &flags[1], "--key-requests-per-second=3"], Clock::fixed(time(NOON))).await;
    let claims = issuer.claims(time(NOON), "meterd:admin", json!("*"));
    let (jane, joe) = (key.sign(&claims), key.sign(&with(&claims, "sub", json!("joe"))));
    let mut calls = 0;
    let rejected = loop {
        match read(&key_server.server, &jane).await {
            Ok(()) => calls += 1,
            Err(status) => break status,
        }
    };
    assert!(calls >= 3, "{calls}");
    assert!(rejected.get_error_details().retry_info().unwrap().retry_delay.is_some());
    assert_error::<()>(Err(rejected), Code::ResourceExhausted, "RATE_LIMITED");
    let client = Client { client_id: "acme".into(), ..Default::default() };
    let request = CreateClientRequest { client: Some(client), request_id: String::new() };
    let joe = Token { key_id: String::new(), token: joe };
    clients_as(&key_server.server, &joe).create_client(request).await.expect("another subject has its own limit");
    let request = ListAuditLogRequest { actor_id: "joe".into(), ..Default::default() };
    let entries = key_server.keys().list_audit_log(request).await.unwrap().into_inner().entries;
    assert_eq!((entries.len(), entries[0].actor_kind()), (1, ActorKind::Jwt));
    key_server.server.stop().await;
}

#[test]
fn incomplete_provider_settings_are_rejected() {
    let start_error = |flags: &[&str]| {
        let settings: AuthSettings = settings_of(flags).auth;
        settings.config().err().map(|error| error.to_string()).unwrap_or_default()
    };
    let issuer = "--jwt-issuer=https://id.example.com";
    assert!(start_error(&["--auth=keys", issuer]).contains("--jwt-audience"));
    assert!(start_error(&[issuer, "--jwt-audience=meterd"]).contains("--auth keys"));
    assert!(start_error(&["--auth=keys", "--jwt-audience=meterd"]).contains("--jwt-issuer"));
    assert_eq!(start_error(&["--auth=keys", issuer, "--jwt-audience=meterd"]), "");
    assert_eq!(
        start_error(&["--auth=keys", "--jwt-issuer=", "--jwt-audience="]),
        "",
        "empty values mean that a setting is not set"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_provider_starts_without_keys_and_a_provider_at_http_is_rejected() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let flags = issuer.flags();
    let flags = ["--auth=keys", &flags[0], &flags[1]];
    let server = TestServer::replica(&fresh_database().await, &flags, Clock::fixed(time(NOON))).await;
    read(&server, &key.sign(&issuer.claims(time(NOON), "meterd:admin", json!("*")))).await.unwrap();
    server.stop().await;
    let options = meterd_store::database::connect::options(&fresh_database().await).unwrap();
    let settings = settings_of(&["--auth=keys", "--jwt-issuer=http://id.example.com", "--jwt-audience=meterd"]);
    let deployment = meterd::app::prepare(&options, &settings).await.unwrap();
    let rejected = meterd::app::build(settings, &options, deployment, Clock::system()).await.err().unwrap();
    assert!(format!("{rejected:#}").contains("must be a URL that begins with https://"), "{rejected:#}");
}
