//! Commands that are shown to people: with all flags that they need here, so that they can be pasted.

use super::{AuthMode, DatabaseSettings, Settings};
use crate::net::TlsNames;
use meterd_embedded_postgres::default_data_dir;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The settings file of this process.
static CONFIG: OnceLock<PathBuf> = OnceLock::new();
/// Set if the URL of the database came by its flag.
static URL_FLAG: OnceLock<()> = OnceLock::new();

/// Flags whose settings were given elsewhere, and where.
static PLACES: OnceLock<Vec<(String, String)>> = OnceLock::new();

/// Has errors name settings by the places where they were given, in the place of their flags.
pub fn with_places(places: Vec<(String, String)>) {
    drop(PLACES.set(places));
}

/// An error about the setting whose flag it begins with: with the place where that was given.
pub fn by_place(text: &str) -> String {
    let places = PLACES.get().map(Vec::as_slice).unwrap_or_default();
    placed(text, places)
}

/// Where the URL of the database was given, unless by its variable.
fn url_place() -> Option<String> {
    if URL_FLAG.get().is_some() {
        return Some("--database-url".into());
    }
    let place = PLACES.get()?.iter().find(|(flag, _)| flag == "--database-url").map(|(_, place)| place.clone());
    place.filter(|place| place != "DATABASE_URL")
}

/// What is to be done about DATABASE_URL, by the place where that was given.
pub fn by_url_place(error: anyhow::Error) -> anyhow::Error {
    match (url_place(), format!("{error:#}")) {
        (Some(place), text) if text.contains("DATABASE_URL") => anyhow::anyhow!(text.replace("DATABASE_URL", &place)),
        _ => error,
    }
}

fn placed(text: &str, places: &[(String, String)]) -> String {
    let subject = text.split([' ', ':', ',']).next().unwrap_or_default();
    match places.iter().find(|(flag, _)| flag == subject) {
        Some((_, place)) => text.replacen(subject, place, 1),
        None => text.to_owned(),
    }
}

/// Has commands name this settings file.
pub fn with_config(file: &Path) {
    drop(CONFIG.set(file.to_owned()));
}

/// Has commands show the URL of the database, which came by a flag.
pub fn with_url_flag() {
    let _ = URL_FLAG.set(());
}

/// This program as it was called, since `cargo run` puts no meterd on the PATH.
pub fn program() -> String {
    let called = std::env::args().next().filter(|name| Path::new(name).ends_with("meterd"));
    called.map_or_else(|| "meterd".into(), |name| quoted(&name))
}

/// Makes the first key of all, on the database itself.
pub fn first_key(name: &str, database: &DatabaseSettings) -> String {
    // In a directory that was named and is not there, a command makes a database only on request.
    let is_new = database.database_url.is_none()
        && database.data_dir != default_data_dir()
        && database.data_dir.try_exists().is_ok_and(|exists| !exists);
    let new = if is_new { " --new-database" } else { "" };
    format!("{} keys create {name} --scope admin --all-clients --direct{new}{}", program(), database_flags(database))
}

/// The flags by which a command opens the same database.
pub fn database_flags(database: &DatabaseSettings) -> String {
    let path = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        quoted(&absolute.to_string_lossy())
    };
    if let Some(url) = &database.database_url {
        if URL_FLAG.get().is_some() {
            return format!(" --database-url {}", quoted(&without_password(url.reveal())));
        }
        // Not what it is: it may have a password in it.
        let is_in_environment = std::env::var("DATABASE_URL").is_ok_and(|value| value == url.reveal());
        return match CONFIG.get().filter(|_| !is_in_environment) {
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

/// The URL of a database, with a word in the place of its password.
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

/// How callers on this machine reach a server that listens.
pub struct Reach {
    /// Flags of meterd's commands, with a space before.
    pub flags: String,
    /// Flags of grpcurl, with a space before.
    pub grpcurl: String,
    /// Where grpcurl connects to.
    pub address: String,
    /// The second port, such as `https://localhost:50052`.
    pub http: String,
}

impl Reach {
    /// Of these ports under these settings.
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

/// An address to connect to, if a server listens on this one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A word of a shell's command line.
pub fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted("/srv/meterd-1"), "/srv/meterd-1");
        assert_eq!(quoted("/srv/my data"), "'/srv/my data'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn an_error_names_the_place_where_its_setting_was_given() {
        let places = [("--listen".to_owned(), "METERD_LISTEN".to_owned())];
        assert_eq!(
            placed("--listen 0.0.0.0:1 is open: add --listen", &places),
            "METERD_LISTEN 0.0.0.0:1 is open: add --listen"
        );
        assert_eq!(placed("--listen: is wrong", &places), "METERD_LISTEN: is wrong");
        assert_eq!(placed("--listen-more is wrong", &places), "--listen-more is wrong");
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
