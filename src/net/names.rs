//! By what name a certificate is reached, for hints.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use webpki::EndEntityCert;

/// What a certificate chain says of its server.
pub struct TlsNames {
    chain: Vec<CertificateDer<'static>>,
    /// Whether the file itself has what verifies the certificate, so that callers can take it for `--tls-ca`.
    pub signs_itself: bool,
}

impl TlsNames {
    /// Of a file in PEM form. Of one that cannot be read there is nothing to say.
    pub fn read(file: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(file).map(|chain| chain.flatten().collect());
        let chain: Vec<CertificateDer<'static>> = chain.unwrap_or_default();
        let leaf = chain.first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
        let signs_itself = chain.len() > 1 || leaf.is_some_and(|leaf| leaf.issuer() == leaf.subject());
        Self { chain, signs_itself }
    }

    /// The name to connect by to a server on this address: one that the certificate has, if there is one that leads here.
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
