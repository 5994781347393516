//! Certificates and keys, from files.

use super::NetSettings;
use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// What both ports speak in TLS, preferred first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files of TLS.
#[derive(Clone, Debug)]
pub(super) struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// What is in them.
#[derive(PartialEq, Eq)]
pub(super) struct TlsBytes {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// TLS as it is now, for each port.
pub struct Tls {
    pub(super) files: TlsFiles,
    /// What was last read.
    pub(super) bytes: TlsBytes,
    pub(super) grpc: watch::Sender<Arc<ServerConfig>>,
    pub(super) http: watch::Sender<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files that the settings name; none, if they name none. An error says which file is wrong.
    pub fn load(settings: &NetSettings) -> anyhow::Result<Option<Self>> {
        let Some(files) = TlsFiles::of(settings)? else { return Ok(None) };
        let bytes = files.read()?;
        let (grpc, http) = files.configs(&bytes)?;
        Ok(Some(Self { files, bytes, grpc: watch::Sender::new(grpc), http: watch::Sender::new(http) }))
    }

    /// For new connections of the gRPC port.
    pub fn grpc(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.grpc.subscribe()
    }

    /// For new connections of the second port, whose callers show no certificate: probes and scrapers have none.
    pub fn http(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.http.subscribe()
    }
}

impl TlsFiles {
    fn of(settings: &NetSettings) -> anyhow::Result<Option<Self>> {
        let client_ca = settings.tls_client_ca.clone();
        match (settings.tls_cert.clone(), settings.tls_key.clone()) {
            (Some(cert), Some(key)) => Ok(Some(Self { cert, key, client_ca })),
            (Some(_), None) => anyhow::bail!("--tls-cert needs the certificate's private key: add --tls-key"),
            (None, Some(_)) => anyhow::bail!("--tls-key needs the certificate that it belongs to: add --tls-cert"),
            (None, None) => {
                ensure!(client_ca.is_none(), "--tls-client-ca needs TLS: add --tls-cert and --tls-key");
                Ok(None)
            }
        }
    }

    pub fn read(&self) -> anyhow::Result<TlsBytes> {
        let read = |flag: &str, path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("{flag} {} cannot be read", path.display()))
        };
        Ok(TlsBytes {
            cert: read("--tls-cert", &self.cert)?,
            key: read("--tls-key", &self.key)?,
            client_ca: self.client_ca.as_ref().map(|path| read("--tls-client-ca", path)).transpose()?,
        })
    }

    /// What the bytes make of the gRPC port and of the second one.
    pub fn configs(&self, bytes: &TlsBytes) -> anyhow::Result<(Arc<ServerConfig>, Arc<ServerConfig>)> {
        let (cert, key) = (self.cert.display(), self.key.display());
        let chain = certificates(&bytes.cert).with_context(|| format!("--tls-cert {cert}"))?;
        // Not the error itself: it is about a secret.
        let private = PrivateKeyDer::from_pem_slice(&bytes.key)
            .map_err(|_| anyhow::anyhow!("--tls-key {key}: there is no private key in PEM form in it"))?;
        let config = |verifier: Option<Arc<dyn ClientCertVerifier>>| {
            let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
            let builder = match verifier {
                Some(verifier) => builder.with_client_cert_verifier(verifier),
                None => builder.with_no_client_auth(),
            };
            let mut config = builder
                .with_single_cert(chain.clone(), private.clone_key())
                .with_context(|| format!("--tls-cert {cert} and --tls-key {key} do not go together"))?;
            config.alpn_protocols = ALPN.map(Vec::from).into();
            anyhow::Ok(Arc::new(config))
        };
        let verifier = match (&self.client_ca, &bytes.client_ca) {
            (Some(path), Some(bytes)) => {
                Some(verifier(bytes).with_context(|| format!("--tls-client-ca {}", path.display()))?)
            }
            _ => None,
        };
        Ok((config(verifier)?, config(None)?))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().context("is not PEM")?;
    ensure!(!chain.is_empty(), "there is no certificate in PEM form in it");
    Ok(chain)
}

fn verifier(pem: &[u8]) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).context("has a certificate that cannot be used")?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}
