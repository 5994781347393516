//! Commands in messages. They contain all flags that they need, so that users can copy and paste them.

use super::{AuthMode, DatabaseSettings, Settings};
use crate::net::TlsNames;
use meterd_embedded_postgres::default_data_dir;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The settings file of this process.
static CONFIG_FILE: OnceLock<PathBuf> = OnceLock::new();
/// Set if the database URL was set by its flag.
static URL_FLAG: OnceLock<()> = OnceLock::new();
/// Flags of the settings that a variable or the file sets, each with the name of this source.
static SOURCES: OnceLock<Vec<(String, String)>> = OnceLock::new();

/// Sets the sources that errors name instead of flags.
pub fn set_sources(sources: Vec<(String, String)>) {
    drop(SOURCES.set(sources));
}

/// Replaces the flag at the start of an error by the source of the setting.
pub fn name_source(text: &str) -> String {
    let sources = SOURCES.get().map(Vec::as_slice).unwrap_or_default();
    replace_flag(text, sources)
}

/// The source of the database URL. `None` if it is the variable.
fn url_source() -> Option<String> {
    if URL_FLAG.get().is_some() {
        return Some("--database-url".into());
    }
    let source = SOURCES.get()?.iter().find(|(flag, _)| flag == "--database-url").map(|(_, source)| source.clone());
    source.filter(|source| source != "DATABASE_URL")
}

/// Replaces `DATABASE_URL` in an error by the source of the database URL.
pub fn name_url_source(error: anyhow::Error) -> anyhow::Error {
    match (url_source(), format!("{error:#}")) {
        (Some(source), text) if text.contains("DATABASE_URL") => anyhow::anyhow!(text.replace("DATABASE_URL", &source)),
        _ => error,
    }
}

fn replace_flag(text: &str, sources: &[(String, String)]) -> String {
    let subject = text.split([' ', ':', ',']).next().unwrap_or_default();
    match sources.iter().find(|(flag, _)| flag == subject) {
        Some((_, source)) => text.replacen(subject, source, 1),
        None => text.to_owned(),
    }
}

/// Sets the settings file that commands in messages contain.
pub fn set_config_file(file: &Path) {
    drop(CONFIG_FILE.set(file.to_owned()));
}

/// Lets commands in messages contain the database URL, because it was set by a flag.
pub fn set_url_flag() {
    let _ = URL_FLAG.set(());
}

/// The name of this program as the user called it. With `cargo run`, meterd is not on the PATH.
pub fn program() -> String {
    let called = std::env::args().next().filter(|name| Path::new(name).ends_with("meterd"));
    called.map_or_else(|| "meterd".into(), |name| quoted(&name))
}

/// The command that creates the first API key, directly in the database.
pub fn first_key(name: &str, database: &DatabaseSettings) -> String {
    // A command creates a database in a missing directory only with --new-database.
    let is_new = database.database_url.is_none()
        && database.data_dir != default_data_dir()
        && database.data_dir.try_exists().is_ok_and(|exists| !exists);
    let new = if is_new { " --new-database" } else { "" };
    format!("{} keys create {name} --scope admin --all-clients --direct{new}{}", program(), database_flags(database))
}

/// The flags with which a command opens the same database.
pub fn database_flags(database: &DatabaseSettings) -> String {
    let path = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        quoted(&absolute.to_string_lossy())
    };
    if let Some(url) = &database.database_url {
        if URL_FLAG.get().is_some() {
            return format!(" --database-url {}", quoted(&without_password(url.reveal())));
        }
        // The URL may contain a password, so show only where it is set.
        let is_in_environment = std::env::var("DATABASE_URL").is_ok_and(|value| value == url.reveal());
        return match CONFIG_FILE.get().filter(|_| !is_in_environment) {
            Some(file) => format!(" --config {}", path(file)),
            None => " --database-url \"$DATABASE_URL\"".into(),
        };
    }
    let mut flags = String::new();
    if database.data_dir != default_data_dir() {
        flags += &format!(" --data-dir {}", path(&database.data_dir));
    }
    if let Some(dir) = &database.postgres_bin_dir {
        flags += &format!(" --postgres-bin-dir {}", path(dir));
    }
    flags
}

/// Replaces the password in a database URL.
fn without_password(url: &str) -> String {
    const PASSWORD: &str = "PASSWORD";
    let Ok(mut url) = url.parse::<reqwest::Url>() else { return "URL".into() };
    if url.password().is_some() {
        let _ = url.set_password(Some(PASSWORD));
    }
    let is_password = |key: &str| key == "password";
    if url.query_pairs().any(|(key, _)| is_password(&key)) {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let shown = pairs.iter().map(|(key, value)| (key, if is_password(key) { PASSWORD } else { value }));
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.into()
}

/// How callers on this machine connect to the server.
pub struct ConnectionHints {
    /// Flags for commands of meterd, with a leading space.
    pub flags: String,
    /// Flags for grpcurl, with a leading space.
    pub grpcurl: String,
    /// Address for grpcurl.
    pub address: String,
    /// The second port, such as `https://localhost:50052`.
    pub http: String,
}

impl ConnectionHints {
    /// Returns the hints for a server that listens on these addresses.
    pub fn of(settings: &Settings, grpc: SocketAddr, http: SocketAddr) -> Self {
        let net = &settings.net;
        let key = match settings.auth.auth {
            AuthMode::Keys => " -H \"authorization: Bearer $METERD_API_KEY\"",
            AuthMode::Off => "",
        };
        let Some(cert) = &net.tls_cert else {
            let address = reachable(grpc).to_string();
            let flags = match address.as_str() {
                "127.0.0.1:50051" => String::new(),
                _ => format!(" --server {address}"),
            };
            return Self { flags, grpcurl: format!(" -plaintext{key}"), address, http: format!("http://{http}") };
        };
        let names = TlsNames::read(cert);
        let named = |address: SocketAddr| {
            let host = names.name_for(reachable(address).ip());
            format!("{host}:{}", address.port())
        };
        let (address, cert) = (named(grpc), quoted(&cert.to_string_lossy()));
        let (mut flags, mut grpcurl) = (format!(" --server https://{address}"), String::new());
        if names.signs_itself {
            flags += &format!(" --tls-ca {cert}");
            grpcurl += &format!(" -cacert {cert}");
        }
        if net.tls_client_ca.is_some() {
            flags += " --tls-client-cert \"$CLIENT_CERT\" --tls-client-key \"$CLIENT_KEY\"";
            grpcurl += " -cert \"$CLIENT_CERT\" -key \"$CLIENT_KEY\"";
        }
        Self { flags, grpcurl: grpcurl + key, address, http: format!("https://{}", named(http)) }
    }
}

/// The address to connect to a server that listens on this address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Quotes a word for the shell if necessary.
pub fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_if_the_shell_would_split_it() {
        assert_eq!(quoted("/srv/meterd-1"), "/srv/meterd-1");
        assert_eq!(quoted("/srv/my data"), "'/srv/my data'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn an_error_names_the_source_of_its_setting() {
        let sources = [("--listen".to_owned(), "METERD_LISTEN".to_owned())];
        assert_eq!(
            replace_flag("--listen 0.0.0.0:1 is open: add --listen", &sources),
            "METERD_LISTEN 0.0.0.0:1 is open: add --listen"
        );
        assert_eq!(replace_flag("--listen: is wrong", &sources), "METERD_LISTEN: is wrong");
        assert_eq!(replace_flag("--listen-more is wrong", &sources), "--listen-more is wrong");
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://u:hunter2@db.example/usage", "postgres://u:PASSWORD@db.example/usage"),
            ("postgres:///usage?host=/run&password=hunter2", "postgres:///usage?host=%2Frun&password=PASSWORD"),
            (
                "postgres://u@db.example:5433/usage?sslmode=require",
                "postgres://u@db.example:5433/usage?sslmode=require",
            ),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn a_server_on_all_addresses_is_reached_on_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
    }
}
