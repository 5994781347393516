//! How connections are taken and served.

use std::path::PathBuf;
use std::time::Duration;

/// How connections are taken and served. Both ports use the same values.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Maximum number of open connections per port.
    pub connections_max: usize,
    /// Age at which a connection stops to take calls.
    pub connection_age: Duration,
    /// Time that the running calls of such a connection have to finish.
    pub connection_age_grace: Duration,
    /// Time for a graceful shutdown.
    pub stop_timeout: Duration,
    /// A response ends if its caller does not read enough of it in this time.
    pub unread_timeout: Duration,
    /// `None` serves without TLS.
    pub tls: Option<TlsFiles>,
}

/// Files with certificates and keys, in PEM format.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain of the server.
    pub cert: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Authorities of client certificates. `None` if callers need no certificate.
    pub client_ca: Option<PathBuf>,
}
