//! Names of the server in its certificate, for hints about how to connect.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use webpki::EndEntityCert;

/// The names of the server in its certificate chain.
pub struct TlsNames {
    chain: Vec<CertificateDer<'static>>,
    /// Whether callers can use the file for `--tls-ca`, because it contains the certificate of its issuer.
    pub signs_itself: bool,
}

impl TlsNames {
    /// Reads a file in PEM format. If the file cannot be read, the result has no names.
    pub fn read(file: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(file).map(|chain| chain.flatten().collect());
        let chain: Vec<CertificateDer<'static>> = chain.unwrap_or_default();
        let leaf = chain.first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
        let signs_itself = chain.len() > 1 || leaf.is_some_and(|leaf| leaf.issuer() == leaf.subject());
        Self { chain, signs_itself }
    }

    /// Returns the host to connect to for a server at this address. Prefers a name that the certificate is valid for.
    pub fn name_for(&self, ip: IpAddr) -> String {
        let bracketed = SocketAddr::new(ip, 0).to_string().trim_end_matches(":0").to_owned();
        let Some(leaf) = self.chain.first().and_then(|leaf| EndEntityCert::try_from(leaf).ok()) else {
            return bracketed;
        };
        let is_valid = |name: &ServerName<'_>| leaf.verify_is_valid_for_subject_name(name).is_ok();
        if is_valid(&ServerName::from(ip)) {
            return bracketed;
        }
        let localhost = ServerName::try_from("localhost").ok().filter(|_| ip.is_loopback());
        if localhost.is_some_and(|name| is_valid(&name)) {
            return "localhost".into();
        }
        let mut names = leaf.valid_dns_names().filter(|name| !name.contains('*'));
        names.next().map_or(bracketed, String::from)
    }
}
