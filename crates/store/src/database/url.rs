//! Strict parsing of database URLs. sqlx ignores unknown parameters, so a misspelled `sslmode` would silently change
//! how meterd connects.

use meterd_domain::names::nearest;
use sqlx::postgres::PgConnectOptions;
use std::net::IpAddr;
use url::Url;

/// An example of a URL, for error messages.
const EXAMPLE: &str = "postgres://user:password@host:5432/database";
/// Parameters that have an effect.
const KNOWN: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];
/// Parameters of libpq that have no effect here with these values, or with any value if none is listed. They are
/// removed.
const WITHOUT_EFFECT: [(&str, &[&str]); 14] = [
    ("connect_timeout", &[]),
    ("client_encoding", &["utf8", "UTF8", "UTF-8", "auto"]),
    ("fallback_application_name", &[]),
    ("keepalives", &[]),
    ("keepalives_idle", &[]),
    ("keepalives_interval", &[]),
    ("keepalives_count", &[]),
    ("tcp_user_timeout", &[]),
    ("sslcompression", &["0"]),
    ("gssencmode", &["disable", "prefer"]),
    ("channel_binding", &["disable", "prefer"]),
    ("load_balance_hosts", &["disable"]),
    // meterd itself rejects a server that accepts no writes.
    ("target_session_attrs", &["any", "read-write", "primary", "prefer-standby"]),
    ("sslnegotiation", &["postgres"]),
];
/// Other parameters of libpq, which meterd does not support.
const UNSUPPORTED: [&str; 15] = [
    "require_auth",
    "requirepeer",
    "requiressl",
    "passfile",
    "service",
    "servicefile",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
    "sslsni",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
];
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Parses a URL. The error says what is wrong, without the password.
pub fn parse(text: &str) -> Result<PgConnectOptions, String> {
    if text.trim().is_empty() {
        return Err(format!(
            "must not be empty: unset it for a PostgreSQL of meterd's own, or write a URL such as {EXAMPLE}"
        ));
    }
    let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let rest = rest.ok_or_else(|| format!("must be a URL such as {EXAMPLE}"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    if hosts.contains(',') {
        return Err("must name one host: meterd takes one database server".into());
    }
    let encoding =
        "in a user or password, write special characters percent-encoded, such as %40 for @, %23 for # and %2F for /";
    if rest.contains('#') {
        return Err(format!("must not contain #: {encoding}"));
    }
    // libpq accepts a user without a host, and the host as a parameter.
    let with_host = authority.ends_with('@').then(|| text.replacen(authority, &format!("{authority}localhost"), 1));
    if with_host.is_some() && !rest.contains("host=") {
        return Err(
            "names no host: write it after the @, or add the directory of a socket as ?host=/run/postgresql".into()
        );
    }
    let mut url = Url::parse(with_host.as_deref().unwrap_or(text)).map_err(|error| match rest.contains('@') {
        true => format!("{error}; {encoding}"),
        false => error.to_string(),
    })?;
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    for (at, (key, value)) in pairs.iter().enumerate() {
        check_parameter(key, value)?;
        let repeats = !key.starts_with("options") && pairs[..at].iter().any(|(before, _)| before == key);
        if repeats {
            return Err(format!("parameter {key}: is given twice; remove one of the two"));
        }
    }
    let kept: Vec<_> = pairs.iter().filter(|(key, _)| is_known(key)).collect();
    if kept.len() < pairs.len() {
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
    }
    let options: PgConnectOptions = url.as_str().parse().map_err(|error: sqlx::Error| super::cause::cause(&error))?;
    match options.get_database() {
        None | Some("") => Err(format!("names no database: add it after the host, as in {EXAMPLE}")),
        Some(_) => Ok(options),
    }
}

fn is_known(key: &str) -> bool {
    KNOWN.contains(&key) || (key.starts_with("options[") && key.ends_with(']'))
}

fn check_parameter(key: &str, value: &str) -> Result<(), String> {
    let wrong = |rule: &str| Err(format!("parameter {key}: {rule}"));
    match key {
        "sslmode" | "ssl-mode" if !SSL_MODES.contains(&value.to_ascii_lowercase().as_str()) => {
            wrong(&format!("must be one of {}, got {value:?}", SSL_MODES.join(", ")))
        }
        "port" if value.parse::<u16>().is_err() => wrong(&format!("must be a port number, got {value:?}")),
        "hostaddr" if value.parse::<IpAddr>().is_err() => wrong(&format!("must be an IP address, got {value:?}")),
        "statement-cache-capacity" if value.parse::<usize>().is_err() => {
            wrong(&format!("must be a whole number, got {value:?}"))
        }
        _ if is_known(key) => Ok(()),
        _ => check_foreign(key, value),
    }
}

/// Checks a parameter that has no effect.
fn check_foreign(key: &str, value: &str) -> Result<(), String> {
    if let Some((_, harmless)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == key) {
        let is_harmless = harmless.is_empty() || harmless.contains(&value);
        let rule = || format!("parameter {key}: must be one of {}, or be left out", harmless.join(", "));
        return is_harmless.then_some(()).ok_or_else(rule);
    }
    if UNSUPPORTED.contains(&key) {
        return Err(format!("parameter {key}: is not supported; remove it"));
    }
    let known = KNOWN.into_iter().filter(|name| !name.starts_with("ssl-"));
    let meant = nearest(key, known).first().map(|name| format!("; did you mean {name}?"));
    Err(format!("parameter {key}: there is no such parameter{}", meant.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsupported_parameter_is_rejected_with_a_suggestion() {
        for (query, says) in [
            ("sslmod=require", "parameter sslmod: there is no such parameter; did you mean sslmode?"),
            ("SSLMode=require", "parameter SSLMode: there is no such parameter; did you mean sslmode?"),
            ("ssl_mode=require", "did you mean sslmode?"),
            ("sslrootcerts=/x", "did you mean sslrootcert?"),
            ("pasword=hunter2", "did you mean password?"),
            ("aplication_name=x", "did you mean application_name?"),
            ("zzz=hunter2", "parameter zzz: there is no such parameter"),
            (
                "sslmode=required",
                "must be one of disable, allow, prefer, require, verify-ca, verify-full, got \"required\"",
            ),
            ("port=x", "must be a port number"),
            ("hostaddr=localhost", "must be an IP address"),
            ("channel_binding=require", "channel_binding: must be one of disable, prefer, or be left out"),
            ("target_session_attrs=read-only", "target_session_attrs: must be one of any, read-write"),
            ("sslcrl=/x", "sslcrl: is not supported"),
            ("sslmode=require&sslmode=disable", "sslmode: is given twice"),
        ] {
            let error = parse(&format!("postgres://u:hunter2@localhost/db?{query}")).unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter2"), "{query}: {error}");
        }
    }

    #[test]
    fn parameters_without_effect_are_removed_and_the_others_kept() {
        let url =
            "postgresql://u%40x:p%23@db.example/usage?connect_timeout=5&sslmode=require&keepalives=1&options[a.b]=c";
        let options = parse(url).unwrap();
        assert_eq!((options.get_username(), options.get_database()), ("u@x", Some("usage")));
        assert!(matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::Require));
        assert_eq!(options.get_options(), Some("-c a.b=c"));
    }

    #[test]
    fn a_socket_directory_is_accepted_in_each_form() {
        for url in [
            "postgres:///db?host=/run/postgresql&user=u",
            "postgres://u@%2Frun%2Fpostgresql/db",
            "postgres://u@/db?host=/run/postgresql",
        ] {
            let options = parse(url).unwrap();
            assert_eq!(options.get_username(), "u");
            assert_eq!(options.get_socket().map(|path| path.as_path()), Some("/run/postgresql".as_ref()), "{url}");
            assert_eq!(options.get_database(), Some("db"));
        }
    }

    #[test]
    fn an_incomplete_url_is_rejected() {
        for (url, says) in [
            ("postgres://localhost", "names no database"),
            ("postgres://u:hunter2@/db", "names no host"),
            ("postgres://u@localhost:5432/", "names no database"),
            ("postgres://localhost?sslmode=disable", "names no database"),
            ("postgres://a:1,b:2/db", "must name one host"),
            ("postgres://u:hunter2#1@localhost/db", "must not contain #"),
            ("postgres://u:hunter/2@localhost/db", "percent-encoded"),
            ("", "must not be empty: unset it"),
            ("mysql://u:hunter2@localhost/db", "must be a URL such as postgres://"),
            ("u:hunter2@localhost/db", "must be a URL such as postgres://"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter"), "{url}: {error}");
        }
        assert_eq!(parse("postgres://localhost:99999/meterd").unwrap_err(), "invalid port number");
    }
}
