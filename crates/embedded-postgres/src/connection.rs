//! Talks to the server: builds its URL, checks that it serves our cluster, and creates the database.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

use super::cluster::NAME;
use super::error::EmbeddedError;

/// Maximum time for one query to the server.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the URL of a database in a form that sqlx, libpq and people can use.
pub(super) fn url(socket_dir: &Path, database: &str) -> String {
    let mut host = String::new();
    for byte in socket_dir.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => host.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => host.push(char::from(*byte)),
            byte => host.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("postgres://{NAME}@localhost:5432/{database}?host={host}&sslmode=disable")
}

/// Returns the version of the server behind a socket, or its error as a text. A server of another cluster is an error,
/// whatever the pid file says.
pub(super) async fn ask(socket_dir: &Path, cluster: &Path) -> Result<String, String> {
    let question = async {
        let mut connection = connect(socket_dir).await?;
        let answer: (String, String) =
            sqlx::query_as("select current_setting('data_directory'), current_setting('server_version')")
                .fetch_one(&mut connection)
                .await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(answer)
    };
    match timeout(ASK_TIMEOUT, question).await {
        Err(_) => Err(format!("no answer within {} s", ASK_TIMEOUT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok((directory, _))) if !is_same(Path::new(&directory), cluster) => Err(format!("it serves {directory}")),
        Ok(Ok((_, version))) => Ok(version.split_whitespace().next().unwrap_or_default().to_owned()),
    }
}

/// Returns whether `directory`, which may contain links, is the directory `canonical`.
fn is_same(directory: &Path, canonical: &Path) -> bool {
    directory == canonical || directory.canonicalize().is_ok_and(|real| real == canonical)
}

/// Settings of a running server that can be changed only by a restart.
pub(super) struct Traits {
    /// Whether commits are synced to the disk.
    pub(super) durable: bool,
    /// Libraries that the postmaster has loaded, separated by commas.
    pub(super) preloaded: String,
}

/// Reads these settings from a running server.
pub(super) async fn traits(socket_dir: &Path) -> Result<Traits, EmbeddedError> {
    let mut connection = connect(socket_dir).await?;
    let (durable, preloaded) =
        sqlx::query_as("select current_setting('fsync')::boolean, current_setting('shared_preload_libraries')")
            .fetch_one(&mut connection)
            .await?;
    connection.close().await?;
    Ok(Traits { durable, preloaded })
}

/// Runs a line of PL/pgSQL on a new connection. Fails if a new backend cannot load the library of that language.
pub(super) async fn run_plpgsql(socket_dir: &Path) -> Result<(), sqlx::Error> {
    let question = async {
        let mut connection = connect(socket_dir).await?;
        sqlx::raw_sql("do language plpgsql 'begin end'").execute(&mut connection).await?;
        connection.close().await
    };
    timeout(ASK_TIMEOUT, question).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Creates meterd's database if it does not exist.
pub(super) async fn ensure_database(socket_dir: &Path) -> Result<(), EmbeddedError> {
    let mut connection = connect(socket_dir).await?;
    let there: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(NAME)
        .fetch_one(&mut connection)
        .await?;
    if !there {
        // 42P04, 23505: a backend of a killed meterd has created the database at the same time.
        let created = sqlx::raw_sql("create database meterd").execute(&mut connection).await;
        let code = created.as_ref().err().and_then(|error| error.as_database_error()?.code());
        if !matches!(code.as_deref(), Some("42P04" | "23505")) {
            created?;
        }
    }
    Ok(connection.close().await?)
}

/// Connects to the database `postgres`, which every cluster has.
async fn connect(socket_dir: &Path) -> Result<PgConnection, sqlx::Error> {
    PgConnectOptions::from_str(&url(socket_dir, "postgres"))?.connect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_names_the_socket_directory_for_any_path() {
        let dir = Path::new("/srv/my data/é&?#%/run");
        let options = PgConnectOptions::from_str(&url(dir, NAME)).unwrap();
        assert_eq!(options.get_socket().map(|socket| socket.as_path()), Some(dir));
        assert_eq!(options.get_username(), "meterd");
        assert_eq!(options.get_database(), Some("meterd"));
    }
}
