//! TLS configuration of commands, and texts for TLS errors.

use super::connect::TlsArgs;
use anyhow::{Context, bail, ensure};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;

/// The ALPN protocol of gRPC: HTTP/2.
pub const ALPN: &[u8] = b"h2";

/// Returns the TLS configuration for the flags.
pub fn config(args: &TlsArgs) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match &args.tls_ca {
        Some(path) => Verifier::from_file(path, &provider)?,
        None => Verifier::from_system(&provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&args.tls_client_cert, &args.tls_client_key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("--tls-client-cert", cert)?;
            // Do not show the error itself, because it can contain parts of the key.
            let private = PrivateKeyDer::from_pem_slice(&read("--tls-client-key", key)?).map_err(|_| {
                anyhow::anyhow!("--tls-client-key {}: the file contains no private key in PEM format", key.display())
            })?;
            builder.with_client_auth_cert(chain, private).with_context(|| {
                let (cert, key) = (cert.display(), key.display());
                format!("--tls-client-cert {cert} and --tls-client-key {key} do not match")
            })?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => bail!("--tls-client-cert and --tls-client-key: only one of them is set; set both or none"),
    };
    config.alpn_protocols = vec![ALPN.into()];
    Ok(Arc::new(config))
}

fn read(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{flag}: cannot read {}", path.display()))
}

fn certificates(flag: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let pem = read(flag, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.with_context(|| format!("{flag} {shown}: the file is not in PEM format"))?;
    ensure!(!found.is_empty(), "{flag} {shown}: the file contains no certificate in PEM format");
    Ok(found)
}

/// Accepts certificates that a trusted certificate signed, and the trusted certificates themselves. A self-signed certificate
/// of `openssl req -x509` is marked as an authority, and rustls rejects authorities as server certificates.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn from_file(path: &Path, provider: &Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let trusted = certificates("--tls-ca", path)?;
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            let added = roots.add(certificate.clone());
            added.with_context(|| format!("--tls-ca {}: the file contains an unusable certificate", path.display()))?;
        }
        Self::new(roots, trusted, provider)
    }

    fn from_system(provider: &Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let trusted = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        ensure!(!roots.is_empty(), "this system has no trusted certificates: add --tls-ca FILE");
        Self::new(roots, trusted, provider)
    }

    fn new(
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Self> {
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        Ok(Self { chains, trusted })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // rustls has already checked the validity period.
            Err(Error::InvalidCertificate(error)) if is_authority(&error) && self.trusted.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Whether a certificate was rejected only because it is an authority. rustls reports this only in the text of the error.
fn is_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity")
}

/// Explains why the server's certificate is rejected, with the fix.
pub fn certificate_text(error: &CertificateError, host: &str, ca: Option<&Path>) -> String {
    match error {
        CertificateError::UnknownIssuer => match ca {
            Some(ca) => {
                format!("its certificate is neither in --tls-ca {} nor signed by a certificate in it", ca.display())
            }
            None => {
                "its certificate is not signed by an authority that this system trusts: add --tls-ca FILE (METERD_TLS_CA) \
                     with the certificate of its authority, or with its own certificate if it is self-signed"
                    .to_owned()
            }
        },
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "its certificate has no host name (subjectAltName): create it with -addext subjectAltName=DNS:{host} (or IP:…)"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!(
                "its certificate is not for {host:?}, but for {}: use one of these names in --server",
                presented.join(", ")
            )
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired at {}", unix_time(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}: check the clocks", unix_time(*not_before))
        }
        error if is_authority(error) => match ca {
            Some(ca) => format!(
                "its certificate is an authority (CA:TRUE), so --tls-ca {} must contain this certificate itself",
                ca.display()
            ),
            None => "its certificate is an authority (CA:TRUE), like most self-signed ones: add --tls-ca FILE \
                     (METERD_TLS_CA) with this certificate"
                .to_owned(),
        },
        error => format!("its certificate is not valid: {error}"),
    }
}

fn unix_time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or_default();
    chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default().to_rfc3339()
}

/// Explains a fatal alert of the server.
pub fn alert_text(alert: AlertDescription, has_client_cert: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired | Alert::HandshakeFailure if !has_client_cert => {
            format!("it requires a client certificate ({alert:?}): add --tls-client-cert and --tls-client-key")
        }
        Alert::CertificateRequired
        | Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::CertificateExpired
        | Alert::DecryptError => {
            format!("it does not accept the certificate of --tls-client-cert ({alert:?})")
        }
        alert => format!("it ended the TLS handshake ({alert:?})"),
    }
}
