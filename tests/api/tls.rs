//! TLS and mutual TLS on both ports, new certificates while the server runs, and wrong files.

use crate::harness::*;
use meterd::net::Tls;
use meterd::proto::TrackUsageRequest;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd_engine::clock::Clock;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Signed {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self) -> Signed {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        Signed { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// The certificate files of a server.
struct Files(TempDir);

impl Files {
    fn new(signed: &Signed) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write(signed);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, signed: &Signed) {
        std::fs::write(self.path("cert.pem"), &signed.cert).unwrap();
        std::fs::write(self.path("key.pem"), &signed.key).unwrap();
    }

    fn flags(&self) -> Vec<String> {
        [("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")]
            .map(|(flag, name)| format!("{flag}={}", self.path(name).display()))
            .into()
    }
}

async fn start(flags: &[String]) -> TestServer {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    TestServer::start_with(&flags, Clock::system()).await
}

/// Returns whether an event can be recorded over a new connection that trusts this authority and sends this
/// certificate.
async fn records(server: &TestServer, authority: &Authority, shown: Option<&Signed>) -> Result<(), String> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
    if let Some(signed) = shown {
        tls = tls.identity(Identity::from_pem(&signed.cert, &signed.key));
    }
    let address = server.address.replace("http://", "https://");
    let channel = Channel::from_shared(address).unwrap().tls_config(tls).unwrap().connect_lazy();
    let request = TrackUsageRequest { event: Some(event("acme", "sms", "1")) };
    let answer = UsageServiceClient::new(channel).track_usage(request).await;
    answer.map(drop).map_err(|status| format!("{status:?}"))
}

/// Sends a GET request with HTTP/1.1 over TLS. Returns the response and the negotiated protocol.
async fn get(address: &str, authority: &Authority, path: &str) -> (String, Option<Vec<u8>>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".into()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let agreed = stream.get_ref().1.alpn_protocol().map(Vec::from);
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer, agreed)
}

async fn meterd(server: &TestServer, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(arguments).env("METERD_SERVER", server.address.replace("http://", "https://"));
    command.stdin(Stdio::null()).output().await.unwrap()
}

#[tokio::test]
async fn both_ports_accept_only_tls() {
    let authority = Authority::new();
    let server = start(&Files::new(&authority.sign()).flags()).await;
    records(&server, &authority, None).await.unwrap();
    let (answer, agreed) = get(&server.http_address, &authority, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
    // Without TLS, or with another authority.
    server.track(event("acme", "sms", "1")).await.unwrap_err();
    records(&server, &Authority::new(), None).await.unwrap_err();
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_caller_needs_a_certificate_of_the_authority_and_a_probe_does_not() {
    let (ours, clients) = (Authority::new(), Authority::new());
    let files = Files::new(&ours.sign());
    std::fs::write(files.path("clients.pem"), &clients.pem).unwrap();
    let mut flags = files.flags();
    flags.push(format!("--tls-client-ca={}", files.path("clients.pem").display()));
    let server = start(&flags).await;
    records(&server, &ours, Some(&clients.sign())).await.unwrap();
    records(&server, &ours, None).await.unwrap_err();
    records(&server, &ours, Some(&ours.sign())).await.unwrap_err();
    let (answer, _) = get(&server.http_address, &ours, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_used_soon_and_an_invalid_one_is_not() {
    let (before, after) = (Authority::new(), Authority::new());
    let files = Files::new(&before.sign());
    let server = start(&files.flags()).await;
    records(&server, &before, None).await.unwrap();
    let failures = async || {
        let (page, _) = get(&server.http_address, &before, "/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix("meterd_tls_reload_failures_total "));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    // A certificate whose key is not written yet, half a file, and no file. The old certificate stays in use.
    let new = after.sign();
    for bad in [new.cert.as_str(), &new.cert[..40], ""] {
        let reported = failures().await;
        std::fs::write(files.path("cert.pem"), bad).unwrap();
        wait_until(async || failures().await > reported).await;
        records(&server, &before, None).await.unwrap();
    }
    files.write(&new);
    wait_until(async || records(&server, &after, None).await.is_ok()).await;
    records(&server, &before, None).await.unwrap_err();
    server.stop().await;
}

#[tokio::test]
async fn a_new_authority_for_callers_is_used_soon() {
    let (ours, before, after) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::new(&ours.sign());
    let ca = files.path("clients.pem");
    std::fs::write(&ca, &before.pem).unwrap();
    let mut flags = files.flags();
    flags.push(format!("--tls-client-ca={}", ca.display()));
    let server = start(&flags).await;
    let (old, new) = (before.sign(), after.sign());
    records(&server, &ours, Some(&new)).await.unwrap_err();
    std::fs::write(&ca, &after.pem).unwrap();
    wait_until(async || records(&server, &ours, Some(&new)).await.is_ok()).await;
    records(&server, &ours, Some(&old)).await.unwrap_err();
    server.stop().await;
}

#[tokio::test]
async fn commands_reach_a_server_that_requires_a_certificate_or_say_what_is_wrong() {
    let authority = Authority::new();
    let files = Files::new(&authority.sign());
    let write = |name: &str, text: &str| {
        std::fs::write(files.path(name), text).unwrap();
        files.path(name).display().to_string()
    };
    let (ca, own) = (write("ca.pem", &authority.pem), authority.sign());
    let (cert, key) = (write("own.pem", &own.cert), write("own-key.pem", &own.key));
    let mut flags = files.flags();
    flags.push(format!("--tls-client-ca={ca}"));
    let server = start(&flags).await;
    let track = ["track", "acme", "sms"];
    let tls = ["--tls-ca", &ca, "--tls-client-cert", &cert, "--tls-client-key", &key];
    let done = meterd(&server, &[&track[..], &tls].concat()).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let wrong = [
        (&tls[..0], "certificate"),
        (&tls[..4], "--tls-client-cert and --tls-client-key: only one of them is set"),
        (&["--tls-ca", "/nowhere.pem"][..], "--tls-ca: cannot read /nowhere.pem"),
        (&["--tls-ca", &ca, "--server", "http://127.0.0.1:1"][..], "use https://"),
    ];
    for (flags, expected_text) in wrong {
        let done = meterd(&server, &[&track[..], flags].concat()).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains(expected_text), "{flags:?}: {error}");
    }
    server.assert_exact(1).await;
    server.stop().await;
}

#[test]
fn wrong_files_and_incomplete_settings_are_rejected_by_name_without_contents() {
    let (authority, other) = (Authority::new(), Authority::new());
    let signed = authority.sign();
    let files = Files::new(&signed);
    let put = |name: &str, text: &str| {
        std::fs::write(files.path(name), text).unwrap();
        files.path(name)
    };
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let none = put("none.pem", "nothing of the kind");
    // A key with a missing line.
    let mut lines: Vec<_> = signed.key.lines().collect();
    lines.remove(1);
    let torn = put("torn.pem", &lines.join("\n"));
    let foreign = put("foreign.pem", &other.sign().key);
    let missing = files.path("missing.pem");
    let load = |cert: Option<&Path>, key: Option<&Path>, ca: Option<&Path>| {
        let mut settings = settings_of(&[]);
        settings.net.tls_cert = cert.map(Into::into);
        settings.net.tls_key = key.map(Into::into);
        settings.net.tls_client_ca = ca.map(Into::into);
        settings.net().and_then(|net| Tls::load(&net)).map(|tls| tls.is_some())
    };
    assert!(!load(None, None, None).unwrap());
    assert!(load(Some(&cert), Some(&key), Some(&cert)).unwrap());
    let cases = [
        (Some(&*cert), None, None, "add --tls-key".to_string()),
        (None, Some(&*key), None, "add --tls-cert".into()),
        (None, None, Some(&*cert), "--tls-client-ca needs TLS".into()),
        (Some(&*missing), Some(&*key), None, format!("--tls-cert {} cannot be read", missing.display())),
        (Some(&*cert), Some(&*missing), None, format!("--tls-key {} cannot be read", missing.display())),
        (Some(&*none), Some(&*key), None, format!("--tls-cert {}", none.display())),
        (Some(&*cert), Some(&*none), None, format!("--tls-key {}", none.display())),
        (Some(&*cert), Some(&*torn), None, torn.display().to_string()),
        (Some(&*cert), Some(&*foreign), None, "do not go together".into()),
        (Some(&*cert), Some(&*key), Some(&*none), format!("--tls-client-ca {}", none.display())),
    ];
    for (cert, key, ca, expected_text) in cases {
        let error = format!("{:#}", load(cert, key, ca).unwrap_err());
        assert!(error.contains(&expected_text), "{error:?} should say {expected_text:?}");
        for line in signed.key.lines().filter(|line| !line.starts_with('-')) {
            assert!(!error.contains(line), "{error}");
        }
    }
}

/// Creates a certificate as `openssl req -x509` does: self-signed and marked as an authority.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Signed {
    let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Signed { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

#[tokio::test]
async fn commands_trust_a_self_signed_certificate_only_if_it_is_configured() {
    let files = Files::new(&self_signed(|_| {}));
    let server = start(&files.flags()).await;
    let ca = files.path("cert.pem").display().to_string();
    let done = meterd(&server, &["track", "acme", "sms", "--tls-ca", &ca]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // A certificate with the same names, and an authority that did not sign the certificate.
    let other = files.path("other.pem");
    std::fs::write(&other, self_signed(|_| {}).cert).unwrap();
    let other = other.display().to_string();
    for (flags, expected_text) in [
        (&["--tls-ca", &other][..], "must contain this certificate itself"),
        (&[], "add --tls-ca FILE (METERD_TLS_CA)"),
    ] {
        let done = meterd(&server, &[&["track", "acme", "sms"], flags].concat()).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains("is not trusted") && error.contains(expected_text), "{error}");
        assert!(!error.contains("start the server with"), "{error}");
    }
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_configured_certificate_that_is_expired_or_for_another_host_is_rejected_with_the_reason() {
    let expired = self_signed(|params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let early = self_signed(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    let names = CertificateParams::new(vec!["meterd.example.com".into()]).unwrap().subject_alt_names;
    let foreign = self_signed(|params| params.subject_alt_names = names);
    let nameless = self_signed(|params| params.subject_alt_names.clear());
    for (signed, expected_text) in [
        (expired, "its certificate expired at 2021-01-01"),
        (early, "its certificate is not valid before 2999-01-01"),
        (foreign, "is not for \"127.0.0.1\", but for"),
        (nameless, "has no host name (subjectAltName)"),
    ] {
        let files = Files::new(&signed);
        let server = start(&files.flags()).await;
        let ca = files.path("cert.pem").display().to_string();
        let done = meterd(&server, &["track", "acme", "sms", "--tls-ca", &ca]).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains(expected_text), "{expected_text}: {error}");
        server.assert_exact(0).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_missing_certificate_and_a_rejected_certificate_have_different_errors() {
    let (ours, clients) = (Authority::new(), Authority::new());
    let files = Files::new(&ours.sign());
    let write = |name: &str, text: &str| {
        std::fs::write(files.path(name), text).unwrap();
        files.path(name).display().to_string()
    };
    let (ca, allowed, own) = (write("ca.pem", &ours.pem), write("clients.pem", &clients.pem), ours.sign());
    let (cert, key) = (write("own.pem", &own.cert), write("own-key.pem", &own.key));
    let mut flags = files.flags();
    flags.push(format!("--tls-client-ca={allowed}"));
    let server = start(&flags).await;
    let shown = ["--tls-client-cert", &cert, "--tls-client-key", &key];
    for (more, expected_text) in [
        (&[][..], "it requires a client certificate"),
        (&shown, "it does not accept the certificate of --tls-client-cert"),
    ] {
        let done = meterd(&server, &[&["track", "acme", "sms", "--tls-ca", &ca], more].concat()).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains(expected_text), "{expected_text}: {error}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_response_of_a_server_without_grpc_is_shown() {
    let server = TestServer::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let greeter = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.ok();
        }
    });
    for (server_url, expected_text) in [
        (format!("http://{address}"), "is not a gRPC server: its answer begins with \"SSH-2.0-"),
        (format!("https://{address}"), "the TLS handshake with the server at"),
    ] {
        let done = meterd(&server, &["usage", "acme", "--server", &server_url]).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains(expected_text), "{server_url}: {error}");
    }
    greeter.abort();
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_scheme_or_port_is_reported_with_the_right_address() {
    let secured = start(&Files::new(&Authority::new().sign()).flags()).await;
    let plain = TestServer::start().await;
    let place = |server: &TestServer| server.address.trim_start_matches("http://").to_owned();
    let (tls, clear) = (place(&secured), place(&plain));
    for (server, expected_text) in [
        (format!("http://{tls}"), format!("uses TLS: use --server https://{tls}")),
        (tls.clone(), format!("uses TLS: use --server https://{tls}")),
        (format!("https://{clear}"), format!("does not use TLS: use --server http://{clear}")),
        (format!("http://{}", plain.http_address), "is not a gRPC server".into()),
        (format!("https://{}", plain.http_address), "does not use TLS".into()),
        (format!("http://{}", secured.http_address), "uses TLS".into()),
        (format!("grpc://{clear}"), "must begin with http:// or https://".into()),
        (format!("http://{clear}/metrics"), "must not have a path".into()),
        ("127.0.0.1:1".into(), "no server answers at http://127.0.0.1:1: Connection refused".into()),
        ("no-such-host.invalid".into(), "cannot resolve".into()),
    ] {
        let began = std::time::Instant::now();
        let done = meterd(&plain, &["track", "acme", "sms", "--server", &server]).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains(&expected_text), "{server}: {error}");
        assert_eq!(error.matches("error:").count(), 1, "{error}");
        // Immediately: an error that time does not fix is not retried.
        assert!(began.elapsed().as_secs() < 10, "{server}: {:?}", began.elapsed());
    }
    let port = clear.rsplit(':').next().unwrap();
    for server in [format!("localhost:{port}"), format!("http://{clear}/"), format!(" {clear}")] {
        let done = meterd(&plain, &["track", "acme", "sms", "--server", &server]).await;
        assert!(done.status.success(), "{server}: {}", String::from_utf8_lossy(&done.stderr));
    }
    plain.assert_exact(3).await;
    secured.stop().await;
    plain.stop().await;
}
