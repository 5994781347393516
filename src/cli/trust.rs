//! Which servers are trusted over TLS, and why one is not.

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

/// gRPC is HTTP/2 and nothing else.
pub const ALPN: &[u8] = b"h2";

/// TLS as the flags say.
pub fn config(args: &TlsArgs) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = match &args.tls_ca {
        Some(path) => Trust::in_file(path, &provider)?,
        None => Trust::of_system(&provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let mut config = match (&args.tls_client_cert, &args.tls_client_key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("--tls-client-cert", cert)?;
            // Not the error itself: it is about a secret.
            let private = PrivateKeyDer::from_pem_slice(&read("--tls-client-key", key)?).map_err(|_| {
                anyhow::anyhow!("--tls-client-key {}: there is no private key in PEM form in it", key.display())
            })?;
            builder.with_client_auth_cert(chain, private).with_context(|| {
                let (cert, key) = (cert.display(), key.display());
                format!("--tls-client-cert {cert} and --tls-client-key {key} do not go together")
            })?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => bail!("--tls-client-cert and --tls-client-key go together: give both, or neither"),
    };
    config.alpn_protocols = vec![ALPN.into()];
    Ok(Arc::new(config))
}

fn read(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{flag} {} cannot be read", path.display()))
}

fn certificates(flag: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let pem = read(flag, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.with_context(|| format!("{flag} {shown} is not PEM"))?;
    ensure!(!found.is_empty(), "{flag} {shown}: there is no certificate in PEM form in it");
    Ok(found)
}

/// Trusts what the certificates have signed, and the certificates themselves: one that `openssl req -x509` makes calls
/// itself an authority, and no chain may end with an authority. To be the very certificate that is trusted is more than to be
/// signed by it.
#[derive(Debug)]
struct Trust {
    chains: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn in_file(path: &Path, provider: &Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let trusted = certificates("--tls-ca", path)?;
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            let added = roots.add(certificate.clone());
            added.with_context(|| format!("--tls-ca {} has a certificate that cannot be used", path.display()))?;
        }
        Self::new(roots, trusted, provider)
    }

    fn of_system(provider: &Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let trusted = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        ensure!(!roots.is_empty(), "this system has no certificates of authorities: give --tls-ca FILE");
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

impl ServerCertVerifier for Trust {
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
            // Its dates were checked before this was found.
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

/// Whether a certificate was refused only because it is one of an authority. The check of chains has no name for this in its
/// interface, but this text.
fn is_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity")
}

/// Why the server's certificate is refused, and what to do.
pub fn certificate_text(error: &CertificateError, host: &str, ca: Option<&Path>) -> String {
    match error {
        CertificateError::UnknownIssuer => match ca {
            Some(ca) => {
                format!("its certificate is none of those in --tls-ca {} and signed by none of them", ca.display())
            }
            None => {
                "its certificate is signed by no authority that this system trusts: give --tls-ca FILE (METERD_TLS_CA) \
                     with the certificate of its authority, or with its own if it is self-signed"
                    .to_owned()
            }
        },
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "its certificate is for no host: it has no subjectAltName; make it with \
             -addext subjectAltName=DNS:{host} (or IP:…)"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!(
                "its certificate is not for {host:?}, but for {}: use such a name in --server",
                presented.join(", ")
            )
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired at {}", unix_time(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}: is a clock wrong?", unix_time(*not_before))
        }
        error if is_authority(error) => match ca {
            Some(ca) => format!(
                "its certificate is none of those in --tls-ca {}, and as that of an authority (CA:TRUE) it must be there itself",
                ca.display()
            ),
            None => "its certificate is that of an authority (CA:TRUE), as self-signed ones are: give --tls-ca FILE \
                     (METERD_TLS_CA) with this very certificate"
                .to_owned(),
        },
        error => format!("its certificate cannot be trusted: {error}"),
    }
}

fn unix_time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or_default();
    chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default().to_rfc3339()
}

/// What a server means by a fatal alert.
pub fn alert_text(alert: AlertDescription, shows_certificate: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired | Alert::HandshakeFailure if !shows_certificate => {
            format!("it asks for a client certificate ({alert:?}): give --tls-client-cert and --tls-client-key")
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
