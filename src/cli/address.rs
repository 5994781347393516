//! Parses the address of a server.

use anyhow::{bail, ensure};
use std::net::Ipv6Addr;

/// Default port of the server.
pub const PORT_DEFAULT: u16 = 50_051;

/// The address of a server, and whether to use TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub tls: bool,
    /// A host name or an IP address, without brackets.
    pub host: String,
    pub port: u16,
    /// Whether the port was left out.
    pub port_is_default: bool,
}

impl Address {
    /// Parses `https://host:port`. The default scheme is `http://`, the default port 50051.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let wrong = |why: &str| {
            anyhow::anyhow!(
                "--server (METERD_SERVER) {text:?} {why}; examples: http://127.0.0.1:50051, https://meterd.example.com"
            )
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => bail!(wrong("must begin with http:// or https://")),
        };
        let authority = rest.trim_end_matches('/');
        ensure!(!authority.is_empty(), wrong("has no valid host"));
        ensure!(!authority.contains(['/', '?', '#']), wrong("must not have a path"));
        ensure!(!authority.contains('@'), wrong("must not have a user or password: use --api-key for the API key"));
        let (host, port) = split_port(authority).ok_or_else(|| wrong("has an invalid port"))?;
        let is_host = |char: char| char.is_ascii_alphanumeric() || "-._:%".contains(char);
        ensure!(!host.is_empty() && host.chars().all(is_host), wrong("has no valid host"));
        ensure!(!host.contains(':') || host.parse::<Ipv6Addr>().is_ok(), wrong("has an invalid IPv6 address"));
        let port_is_default = port.is_none();
        Ok(Self { tls, host: host.to_owned(), port: port.unwrap_or(PORT_DEFAULT), port_is_default })
    }

    /// The same address with or without TLS.
    pub fn with_tls(&self, tls: bool) -> Self {
        Self { tls, ..self.clone() }
    }

    /// The same host with another port.
    pub fn with_port(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// Host and port; an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// Splits host and port. `None` if the port is invalid.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Some((authority, None));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok().filter(|port| *port > 0)?))),
        None => Some((authority, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_and_port_are_optional() {
        for (text, expected) in [
            ("127.0.0.1:50051", "http://127.0.0.1:50051"),
            ("localhost", "http://localhost:50051"),
            ("http://a:1", "http://a:1"),
            ("http://a:1/", "http://a:1"),
            ("HTTPS://meterd.example.com", "https://meterd.example.com:50051"),
            ("https://meterd.example.com:443/", "https://meterd.example.com:443"),
            ("::1", "http://[::1]:50051"),
            ("[::1]", "http://[::1]:50051"),
            ("http://[::1]:7", "http://[::1]:7"),
            (" localhost:50051 ", "http://localhost:50051"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn the_error_of_an_invalid_address_has_the_reason() {
        for (text, why) in [
            ("", "has no valid host"),
            ("http://", "has no valid host"),
            ("grpc://a:1", "must begin with http:// or https://"),
            ("dns:///a:1", "must begin with http:// or https://"),
            ("http://a:1/metrics", "must not have a path"),
            ("a:port", "has an invalid port"),
            ("a:0", "has an invalid port"),
            ("a:70000", "has an invalid port"),
            ("http://key@a:1", "must not have a user or password"),
            ("http://a b", "has no valid host"),
            ("http://[::1", "has an invalid port"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
