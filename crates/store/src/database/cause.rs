//! Explains database errors to operators: the cause, stated once, and the fix.

use crate::StoreError;
use crate::database::fitness::{READ_ONLY_FIX, UnfitDatabase};
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use std::fmt::Write as _;
use std::io::ErrorKind;

/// Returns the cause of an error, without line numbers of PostgreSQL's source.
pub fn cause(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Tls(error) | sqlx::Error::Configuration(error) => error.to_string(),
        sqlx::Error::PoolTimedOut => "no connection became free or could be made in time".to_owned(),
        error => error.to_string(),
    }
}

/// Formats an error and its causes like `{error:#}`, but states each cause once: many errors already include the text
/// of their cause.
pub fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let of_database = database_error(cause);
        let message = of_database.map_or_else(|| cause.to_string(), self::cause);
        if !text.contains(&message) {
            let separator = if text.is_empty() { "" } else { ": " };
            let _ = write!(text, "{separator}{message}");
        }
        if of_database.is_some() {
            break;
        }
    }
    text
}

/// Returns the database error in an error of the store, of a migration or of the fitness check.
fn database_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a sqlx::Error> {
    if let Some(UnfitDatabase::Database(error)) = error.downcast_ref() {
        return Some(error);
    }
    if let Some(StoreError::Driver(error)) = error.downcast_ref() {
        return Some(error);
    }
    if let Some(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error.downcast_ref() {
        return Some(error);
    }
    error.downcast_ref()
}

/// Explains the error of a command that uses this database. If the database is the cause, the result says which
/// database it is, what is wrong with it, and how to fix it. Other errors are returned unchanged.
pub fn explained(error: anyhow::Error, options: &PgConnectOptions) -> anyhow::Error {
    if let Some(MigrateError::VersionMissing(version)) = error.downcast_ref() {
        return anyhow::anyhow!(
            "{}: its schema is of a newer meterd (migration {version} is not known): use that version or a newer one",
            place(options)
        );
    }
    if let Some(unfit) = error.downcast_ref::<UnfitDatabase>()
        && !matches!(unfit, UnfitDatabase::Database(_))
    {
        return anyhow::anyhow!("{}: {unfit}", place(options));
    }
    let Some(found) = error.chain().find_map(database_error) else { return error };
    let (cause, place) = (cause(found), place(options));
    match fix(found, options) {
        Some(fix) => anyhow::anyhow!("{place}: {cause}: {fix}"),
        None => anyhow::anyhow!("{place}: {cause}"),
    }
}

/// Returns the name and the server of the database, without the password.
pub fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("database {database} on {}", server(options))
}

fn server(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// Returns the fix of an error, if it is known.
fn fix(error: &sqlx::Error, options: &PgConnectOptions) -> Option<String> {
    match error {
        sqlx::Error::Database(error) => fix_by_code(error.code()?.as_ref(), error.message(), options),
        sqlx::Error::Tls(_) => Some(fix_tls(None, options)),
        sqlx::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Some(fix_tls(Some(tls), options)),
            None => Some(fix_io(error, options)),
        },
        sqlx::Error::PoolTimedOut => {
            Some(format!("see whether PostgreSQL runs on {} and has connections to spare", server(options)))
        }
        sqlx::Error::Protocol(_) => {
            Some(format!("name a PostgreSQL server in DATABASE_URL; is {} one?", server(options)))
        }
        _ => None,
    }
}

fn fix_by_code(code: &str, message: &str, options: &PgConnectOptions) -> Option<String> {
    let (user, database) = (options.get_username(), options.get_database().unwrap_or(options.get_username()));
    Some(match code {
        "28P01" => {
            "correct the user and the password in DATABASE_URL; if none is there, PGPASSWORD or ~/.pgpass has it, a \
                    file that only its owner may read"
                .to_owned()
        }
        "28000" if message.contains("pg_hba.conf") => {
            let encryption = match options.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow => {
                    "; if that asks for encryption, set sslmode=require in DATABASE_URL"
                }
                _ => "",
            };
            format!("let user {user} connect from here in the server's pg_hba.conf{encryption}")
        }
        "28000" => format!("correct the user in DATABASE_URL, or let it log in (CREATE ROLE {user} LOGIN ...)"),
        "3D000" => format!("create it (CREATE DATABASE \"{database}\"), or name another one in DATABASE_URL"),
        "53300" => "raise the limit (max_connections, or CONNECTION LIMIT of the role or the database), or lower \
                    --connections-max and --writers"
            .to_owned(),
        "42501" => format!(
            "let user {user} create and own tables there: ALTER DATABASE \"{database}\" OWNER TO {user}, or GRANT CREATE, \
             USAGE ON SCHEMA public TO {user} in it"
        ),
        "25006" => READ_ONLY_FIX.to_owned(),
        "55P03" => {
            "another session has locked what is needed, such as an export or a backup (pg_stat_activity shows it): run this again \
             when it has ended"
                .to_owned()
        }
        "57P03" | "57P01" | "57P02" => "start meterd again when the server accepts connections".to_owned(),
        "08P01" if message.contains("startup parameter") => {
            "a connection pooler in between refuses session settings: name PostgreSQL itself in DATABASE_URL".to_owned()
        }
        _ => return None,
    })
}

fn fix_io(error: &std::io::Error, options: &PgConnectOptions) -> String {
    let server = server(options);
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            format!("nothing listens on {server}: start PostgreSQL there, or correct host and port in DATABASE_URL")
        }
        ErrorKind::NotFound | ErrorKind::PermissionDenied => {
            format!("PostgreSQL's socket in {server} cannot be opened: correct host and port in DATABASE_URL")
        }
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
            format!("{server} closed the connection: see whether PostgreSQL listens there, and its log")
        }
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            format!(
                "{server} cannot be reached: correct host and port in DATABASE_URL, and see what the network lets through"
            )
        }
        _ if error.to_string().contains("lookup address") => {
            format!("the host name {} is not known: correct the host in DATABASE_URL", options.get_host())
        }
        _ => format!("see whether PostgreSQL runs on {server}"),
    }
}

/// Returns the fix of a failed TLS handshake. Certificates are parsed in every mode, but verified only in the modes
/// verify-ca and verify-full.
fn fix_tls(error: Option<&rustls::Error>, options: &PgConnectOptions) -> String {
    let mode = match options.get_ssl_mode() {
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
        PgSslMode::Require => "require",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Disable | PgSslMode::Allow => "disable",
    };
    let verified = mode.starts_with("verify");
    let unreadable = error.is_some_and(|error| {
        matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::Other(_)))
            || error.to_string().contains("UnsupportedCertVersion")
    });
    let mut fix = format!("TLS failed with sslmode={mode} in DATABASE_URL");
    fix += match (verified, unreadable) {
        (_, true) => {
            ". The certificate is not verified, but it has to be readable, and this one is of version 1 or malformed: give the \
             server one of version 3"
        }
        (true, false) => {
            ": name the file of the authority that signed the certificate with sslrootcert, or set sslmode=require, \
             which does not verify it"
        }
        (false, false) => ": correct the TLS settings of the server",
    };
    if mode != "disable" {
        fix += ". On a network that you trust, sslmode=disable does without TLS";
    }
    fix
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_stated_once() {
        let io = || std::io::Error::new(ErrorKind::ConnectionRefused, "Connection refused (os error 111)");
        let error: anyhow::Error = Err::<(), _>(sqlx::Error::Io(io())).context("the jobs cannot be read").unwrap_err();
        assert_eq!(text(&error), "the jobs cannot be read: Connection refused (os error 111)");
        let options = "postgres://meterd:hunter2@db.example:5433/usage".parse().unwrap();
        let explained = explained(sqlx::Error::Io(io()).into(), &options).to_string();
        assert_eq!(
            explained,
            "database usage on db.example:5433: Connection refused (os error 111): nothing listens on db.example:5433: start \
             PostgreSQL there, or correct host and port in DATABASE_URL"
        );
        assert!(!explained.contains("hunter2"));
    }

    #[test]
    fn a_cause_that_an_error_already_includes_is_stated_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open /x: {source}")]
        struct Open {
            source: std::io::Error,
        }
        let denied = || std::io::Error::from(ErrorKind::PermissionDenied);
        let error = Err::<(), _>(Open { source: denied() }).context("no data").unwrap_err();
        assert_eq!(text(&error), format!("no data: cannot open /x: {}", denied()));
        assert_eq!(text(&anyhow::anyhow!("alone")), "alone");
    }

    #[test]
    fn an_error_that_the_database_did_not_cause_is_unchanged() {
        let options = "postgres://localhost/usage".parse().unwrap();
        let error = anyhow::anyhow!("--listen 127.0.0.1:1 cannot be listened on").context("no start");
        assert_eq!(format!("{:#}", explained(error, &options)), "no start: --listen 127.0.0.1:1 cannot be listened on");
    }
}
