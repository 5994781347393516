//! Tokens of an identity provider: a real one over HTTP, whose keys are fetched, and every token that must not be taken.

use crate::guarded::*;
use crate::harness::*;
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

/// When the tests with a fixed clock are.
const NOON: &str = "2026-11-21T12:00:00Z";
const AUDIENCE: &str = "meterd";

/// A key of the provider's for ES256.
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

    /// A token with this header.
    fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature))
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }), claims)
    }
}

/// What the provider answers, and how often it was asked for its keys.
#[derive(Default)]
struct Answers {
    keys: Value,
    configuration: Option<Value>,
    fails: bool,
    asked: usize,
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

    fn asked(&self) -> usize {
        self.answers.lock().unwrap().asked
    }

    /// Flags of a server that takes its tokens.
    pub fn flags(&self) -> [String; 2] {
        [format!("--jwt-issuer={}", self.url), format!("--jwt-audience={AUDIENCE}")]
    }

    /// Claims that are good for an hour from then on.
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
            answers.asked += 1;
            answers.keys.clone()
        }
        _ => return (StatusCode::NOT_FOUND, String::new()),
    };
    (StatusCode::OK, body.to_string())
}

/// A server that takes the provider's tokens, at noon.
async fn server_of(issuer: &Issuer) -> Guarded {
    let flags = issuer.flags();
    Guarded::start_with(&[&flags[0], &flags[1]], Clock::fixed(time(NOON))).await
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

/// Tokens that nobody may come in with, and why.
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
async fn a_token_of_the_provider_is_taken_within_its_time_and_no_other_is() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let guarded = server_of(&issuer).await;
    let now = time(NOON);
    let good = issuer.claims(now, "openid meterd:read", json!(["acme", "globex"]));
    for claims in [
        good.clone(),
        // A minute is the clocks'.
        with(&good, "exp", json!(now.timestamp() - 59)),
        with(&good, "nbf", json!(now.timestamp() + 60)),
        with(&good, "aud", json!(["others", AUDIENCE])),
        with(&good, "scope", json!(["meterd:read"])),
        with(&good, "exp", json!(1e18)),
    ] {
        read(&guarded.server, &key.sign(&claims)).await.unwrap_or_else(|status| panic!("{claims}: {status}"));
    }
    read(&guarded.server, &key.sign_as(&json!({ "alg": "ES256" }), &good)).await.expect("the only key needs no name");
    let bad = bad_tokens(&issuer, &key, now);
    for (why, token) in &bad {
        let Err(status) = read(&guarded.server, token).await else { panic!("{why} was taken") };
        let reason = if *why == "expired" { "CREDENTIALS_EXPIRED" } else { "CREDENTIALS_INVALID" };
        let status = assert_refused::<()>(Err(status), Code::Unauthenticated, reason);
        let parts: Vec<&str> = token.split('.').filter(|part| part.len() > 8).collect();
        assert!(!parts.iter().any(|part| status.message().contains(part)), "{why}: {status}");
    }
    println!("{} tokens that are not good, none taken", bad.len());
    read(&guarded.server, &guarded.admin.token).await.expect("keys go on");
    let none = read(&guarded.server, &key.sign(&without(&good, "meterd_clients"))).await;
    assert_refused(none, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let none = read(&guarded.server, &key.sign(&without(&good, "scope"))).await;
    assert_refused(none, Code::PermissionDenied, "SCOPE_MISSING");
    let services = Token { key_id: String::new(), token: key.sign(&without(&good, "scope")) };
    let mut catalog = meterd::proto::catalog_service_client::CatalogServiceClient::with_interceptor(
        guarded.server.channel(),
        services,
    );
    let none = catalog.list_services(ListServicesRequest {}).await;
    assert_refused(none, Code::PermissionDenied, "SCOPE_MISSING");
    let foreign = read(&guarded.server, &key.sign(&with(&good, "meterd_clients", json!("globex")))).await;
    assert_refused(foreign, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    let empty = Token { key_id: String::new(), token: key.sign(&with(&good, "meterd_clients", json!([]))) };
    for filter in [vec![], vec!["acme".to_string()]] {
        let request = ListAlertsRequest { client_ids: filter, ..Default::default() };
        let refused = alerts_as(&guarded.server, &empty).list_alerts(request).await;
        assert_refused(refused, Code::PermissionDenied, "CLIENT_NOT_COVERED");
    }
    guarded.server.stop().await;
}

/// A key of 2,048 bits, and a token that it has signed, good until 2100; the private key is nowhere.
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
async fn keys_of_rsa_verify_too_and_only_what_their_own_algorithm_says() {
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
        // Keys of kinds that nobody knows are passed over.
        issuer
            .set_keys(vec![json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": "new", "pub": "x" }), good(more.clone())]);
        let jwks = format!("--jwt-jwks-url={}/keys", issuer.url);
        let flags = ["--jwt-issuer=https://id.example.com", "--jwt-audience=meterd", &jwks];
        let guarded = Guarded::start_with(&flags, Clock::fixed(time(NOON))).await;
        let answer = read(&guarded.server, RSA_TOKEN).await;
        assert_eq!(answer.is_ok(), taken, "{more}: {answer:?}");
        guarded.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_known_is_fetched_and_strangers_do_not_make_the_provider_be_asked_without_end() {
    let (first, second) = (SigningKey::new("one"), SigningKey::new("two"));
    let issuer = Issuer::start(&[&first]).await;
    let guarded = server_of(&issuer).await;
    let claims = issuer.claims(time(NOON), "meterd:read", json!("acme"));
    read(&guarded.server, &first.sign(&claims)).await.unwrap();
    issuer.set_keys(vec![second.jwk()]);
    let started = Instant::now();
    let asked = issuer.asked();
    let mut refused = 0;
    while let Err(status) = read(&guarded.server, &second.sign(&claims)).await {
        assert_refused::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_INVALID");
        assert!(started.elapsed() < Duration::from_secs(10), "rotated keys are known after a while");
        refused += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("a new key was known after {} ms and {refused} calls", started.elapsed().as_millis());
    assert_eq!(issuer.asked(), asked + 1, "asked once for all of them");
    let gone = read(&guarded.server, &first.sign(&claims)).await;
    assert_refused(gone, Code::Unauthenticated, "CREDENTIALS_INVALID");
    for number in 0..200 {
        let stranger = SigningKey::new(&format!("k{number}"));
        assert!(read(&guarded.server, &stranger.sign(&claims)).await.is_err());
    }
    let bound = 2 + started.elapsed().as_secs() as usize / 5;
    assert!(issuer.asked() - asked <= bound, "{} times", issuer.asked() - asked);
    guarded.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_provider_is_away_known_keys_hold_and_what_cannot_be_checked_is_told_to_come_again() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let claims = issuer.claims(time(NOON), "meterd:read", json!("acme"));
    let knowing = server_of(&issuer).await;
    read(&knowing.server, &key.sign(&claims)).await.unwrap();
    issuer.set_fails(true);
    read(&knowing.server, &key.sign(&claims)).await.unwrap();
    // It starts all the same, and takes keys.
    let starting = server_of(&issuer).await;
    read(&starting.server, &starting.admin.token).await.unwrap();
    let refused = read(&starting.server, &key.sign(&claims)).await;
    let status = assert_refused(refused, Code::Unavailable, "IDENTITY_PROVIDER_UNAVAILABLE");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    issuer.set_fails(false);
    eventually(async || read(&starting.server, &key.sign(&claims)).await.is_ok()).await;
    knowing.server.stop().await;
    starting.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_calls_itself_otherwise_or_has_its_keys_at_http_is_not_believed() {
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
        let guarded = server_of(&issuer).await;
        let refused = read(&guarded.server, &key.sign(&claims)).await;
        assert_refused(refused, Code::Unavailable, "IDENTITY_PROVIDER_UNAVAILABLE");
        guarded.server.stop().await;
    }
    assert_eq!(issuer.asked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_token_ends_when_the_token_does() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let flags = issuer.flags();
    let guarded = Guarded::start_with(&[&flags[0], &flags[1]], Clock::system()).await;
    let now = guarded.server.clock.now();
    // With the minute of the clocks.
    let claims = issuer.claims(now - TimeDelta::seconds(3_657), "meterd:read", json!("acme"));
    let token = Token { key_id: String::new(), token: key.sign(&claims) };
    let request = SubscribeAlertsRequest::default();
    let mut stream = alerts_as(&guarded.server, &token).subscribe_alerts(request).await.unwrap().into_inner();
    let to_end = async {
        loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "it ended as if it were whole"),
                Err(status) => return status,
            }
        }
    };
    let status = tokio::time::timeout(Duration::from_secs(10), to_end).await.expect("an end");
    assert_refused::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_EXPIRED");
    assert_refused(read(&guarded.server, &token.token).await, Code::Unauthenticated, "CREDENTIALS_EXPIRED");
    guarded.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_subject_has_its_calls_of_a_second_and_stands_in_the_audit_log() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let flags = issuer.flags();
    let guarded =
        Guarded::start_with(&[&flags[0], &flags[1], "--key-requests-per-second=3"], Clock::fixed(time(NOON))).await;
    let claims = issuer.claims(time(NOON), "meterd:admin", json!("*"));
    let (jane, joe) = (key.sign(&claims), key.sign(&with(&claims, "sub", json!("joe"))));
    let mut calls = 0;
    let refused = loop {
        match read(&guarded.server, &jane).await {
            Ok(()) => calls += 1,
            Err(status) => break status,
        }
    };
    assert!(calls >= 3, "{calls}");
    assert!(refused.get_error_details().retry_info().unwrap().retry_delay.is_some());
    assert_refused::<()>(Err(refused), Code::ResourceExhausted, "RATE_LIMITED");
    let client = Client { client_id: "acme".into(), ..Default::default() };
    let request = CreateClientRequest { client: Some(client), request_id: String::new() };
    let joe = Token { key_id: String::new(), token: joe };
    clients_as(&guarded.server, &joe).create_client(request).await.expect("others have theirs");
    let request = ListAuditLogRequest { actor_id: "joe".into(), ..Default::default() };
    let entries = guarded.keys().list_audit_log(request).await.unwrap().into_inner().entries;
    assert_eq!((entries.len(), entries[0].actor_kind()), (1, ActorKind::Jwt));
    guarded.server.stop().await;
}

#[test]
fn halves_of_a_provider_are_refused() {
    let refusal = |flags: &[&str]| {
        let settings: AuthSettings = settings_of(flags).auth;
        settings.config().err().map(|error| error.to_string()).unwrap_or_default()
    };
    let issuer = "--jwt-issuer=https://id.example.com";
    assert!(refusal(&["--auth=keys", issuer]).contains("--jwt-audience"));
    assert!(refusal(&[issuer, "--jwt-audience=meterd"]).contains("--auth keys"));
    assert!(refusal(&["--auth=keys", "--jwt-audience=meterd"]).contains("--jwt-issuer"));
    assert_eq!(refusal(&["--auth=keys", issuer, "--jwt-audience=meterd"]), "");
    assert_eq!(refusal(&["--auth=keys", "--jwt-issuer=", "--jwt-audience="]), "", "as containers pass what is not set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_provider_no_key_is_needed_to_start_and_a_provider_at_http_is_refused() {
    let key = SigningKey::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let flags = issuer.flags();
    let flags = ["--auth=keys", &flags[0], &flags[1]];
    let server = TestServer::replica(&fresh_database().await, &flags, Clock::fixed(time(NOON))).await;
    read(&server, &key.sign(&issuer.claims(time(NOON), "meterd:admin", json!("*")))).await.unwrap();
    server.stop().await;
    let options = meterd_store::connect::options(&fresh_database().await).unwrap();
    let settings = settings_of(&["--auth=keys", "--jwt-issuer=http://id.example.com", "--jwt-audience=meterd"]);
    let deployment = meterd::app::prepare(&options, &settings).await.unwrap();
    let refused = meterd::app::build(settings, &options, deployment, Clock::system()).await.err().unwrap();
    assert!(format!("{refused:#}").contains("not https"), "{refused:#}");
}
