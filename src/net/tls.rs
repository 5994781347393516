//! TLS configuration, loaded from files.

use super::config::{NetConfig, TlsFiles};
use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Protocols of both ports, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Contents of the files.
#[derive(PartialEq, Eq)]
pub(super) struct TlsBytes {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// The current TLS configuration of each port.
pub struct Tls {
    pub(super) files: TlsFiles,
    /// Contents of the files at the last successful load.
    pub(super) bytes: TlsBytes,
    pub(super) grpc: watch::Sender<Arc<ServerConfig>>,
    pub(super) http: watch::Sender<Arc<ServerConfig>>,
}

impl Tls {
    /// Loads the files of the configuration. Returns `None` if the ports are served without TLS.
    ///
    /// # Errors
    /// Returns an error that names the wrong file.
    pub fn load(config: &NetConfig) -> anyhow::Result<Option<Self>> {
        let Some(files) = config.tls.clone() else { return Ok(None) };
        let bytes = files.read()?;
        let (grpc, http) = files.configs(&bytes)?;
        Ok(Some(Self { files, bytes, grpc: watch::Sender::new(grpc), http: watch::Sender::new(http) }))
    }

    /// Returns the configuration for new connections of the gRPC port.
    pub fn grpc(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.grpc.subscribe()
    }

    /// Returns the configuration for new connections of the HTTP port. It asks for no client certificate, because probes and
    /// metric scrapers have none.
    pub fn http(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.http.subscribe()
    }
}

impl TlsFiles {
    /// Reads the files.
    pub(super) fn read(&self) -> anyhow::Result<TlsBytes> {
        let read = |flag: &str, path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("{flag} {} cannot be read", path.display()))
        };
        Ok(TlsBytes {
            cert: read("--tls-cert", &self.cert)?,
            key: read("--tls-key", &self.key)?,
            client_ca: self.client_ca.as_ref().map(|path| read("--tls-client-ca", path)).transpose()?,
        })
    }

    /// Returns the configurations of the gRPC port and of the HTTP port.
    pub(super) fn configs(&self, bytes: &TlsBytes) -> anyhow::Result<(Arc<ServerConfig>, Arc<ServerConfig>)> {
        let (cert, key) = (self.cert.display(), self.key.display());
        let chain = certificates(&bytes.cert).with_context(|| format!("--tls-cert {cert}"))?;
        // The error of the parser is left out, because it could contain parts of the key.
        let private = PrivateKeyDer::from_pem_slice(&bytes.key)
            .map_err(|_| anyhow::anyhow!("--tls-key {key}: the file must contain a private key in PEM format"))?;
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
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().context("the file must be in PEM format")?;
    ensure!(!chain.is_empty(), "the file must contain a certificate in PEM format");
    Ok(chain)
}

fn verifier(pem: &[u8]) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).context("a certificate in the file cannot be used")?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}
