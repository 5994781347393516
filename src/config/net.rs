//! Settings of connections, calls, and TLS.

use crate::net::TlsFiles;
use anyhow::ensure;
use clap::Args;
use std::path::PathBuf;

/// Settings of connections, calls, and TLS.
#[derive(Args, Clone, Debug)]
pub struct NetSettings {
    /// Connections that each port takes at once. One more closes an idle one, first those that never made a call, or is closed itself
    #[arg(long, env = "METERD_INBOUND_CONNECTIONS_MAX", default_value_t = 8_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub inbound_connections_max: u32,
    /// After so long a connection takes no more calls, and its caller makes a new one
    #[arg(long, env = "METERD_CONNECTION_AGE_SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(1..=864_000))]
    pub connection_age_seconds: u32,
    /// How long calls of such a connection may still go on, before they end with CONNECTION_AGED
    #[arg(long, env = "METERD_CONNECTION_AGE_GRACE_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub connection_age_grace_seconds: u32,
    /// Calls at once, except streams, from the arrival of their message until their answer is read. One key and one connection
    /// have at most a quarter each, and less while others have many
    #[arg(long, env = "METERD_CALLS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub calls_max: u32,
    /// Streams at once: subscriptions, usage streams and exports. One key and one connection have at most a quarter each, and
    /// less while others have many. Streams without credentials, such as health watches, have 1,000 places of their own, and one
    /// for each connection
    #[arg(long, env = "METERD_STREAMS_MAX", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    pub streams_max: u32,
    /// Bytes that requests may take while they are received and worked on, of all connections: four for each byte that is sent,
    /// but for the first 16 KiB of each. One key has at most half of them, and less while others have many
    #[arg(long, env = "METERD_REQUEST_BYTES_MAX", default_value_t = 256 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(67_108_864..=1_099_511_627_776))]
    pub request_bytes_max: u64,
    /// Bytes of answers that callers have not read, except the first 4 KiB of each. One key has at most a quarter of them, and one
    /// connection an eighth; less while others have many
    #[arg(long, env = "METERD_ANSWER_BYTES_MAX", default_value_t = 256 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(134_217_728..=1_099_511_627_776))]
    pub answer_bytes_max: u64,
    /// A caller that reads less than 16 KiB of a waiting answer in this time gets DEADLINE_EXCEEDED
    #[arg(long, env = "METERD_UNREAD_TIMEOUT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub unread_timeout_seconds: u32,

    /// Certificate chain for both ports, PEM. Read again when it changes
    #[arg(long, env = "METERD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM. Read again when it changes
    #[arg(long, env = "METERD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificates, PEM, one of which must have signed what callers of the gRPC port show. Read again when it changes
    #[arg(long, env = "METERD_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
}

impl NetSettings {
    /// Returns the TLS files, or `None` if the ports are served without TLS.
    ///
    /// # Errors
    /// Returns an error if one setting of TLS lacks another.
    pub(super) fn tls_files(&self) -> anyhow::Result<Option<TlsFiles>> {
        let client_ca = self.tls_client_ca.clone();
        match (self.tls_cert.clone(), self.tls_key.clone()) {
            (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key, client_ca })),
            (Some(_), None) => anyhow::bail!("--tls-cert needs the private key of the certificate: add --tls-key"),
            (None, Some(_)) => anyhow::bail!("--tls-key needs the certificate of the key: add --tls-cert"),
            (None, None) => {
                ensure!(client_ca.is_none(), "--tls-client-ca needs TLS: add --tls-cert and --tls-key");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::open_files_needed;
    use clap::FromArgMatches;

    #[test]
    fn the_default_number_of_connections_needs_fewer_than_twenty_thousand_open_files() {
        let matches = NetSettings::augment_args(clap::Command::new("test")).get_matches_from(["test"]);
        let settings = NetSettings::from_arg_matches(&matches).unwrap();
        assert_eq!(open_files_needed(settings.inbound_connections_max), 16_256);
    }
}
