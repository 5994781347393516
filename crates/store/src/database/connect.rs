//! Connections to PostgreSQL: their options, the pools and the migrations.

use crate::StoreError;
use chrono::{DateTime, Utc};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, PgExecutor, Row};
use std::time::Duration;

/// The migrations in `migrations/`, compiled in.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// Longest wait for a lock, in milliseconds. A transaction that exceeds it fails and is retried.
const LOCK_TIMEOUT_MS: &str = "5000";
/// Longest run of a statement, in milliseconds. Exports, rebuilds and migrations disable the limit for themselves.
const STATEMENT_TIMEOUT_MS: &str = "30000";
/// Longest idle time within a transaction, in milliseconds. The server ends a session that exceeds it, so that a
/// stalled program does not block the others.
const IDLE_IN_TRANSACTION_TIMEOUT_MS: &str = "10000";
/// Longest run of a statement of a scheduled job, in milliseconds. It is shorter than the job's lease, so that a
/// stalled job ends before another replica takes over.
pub const JOB_STATEMENT_TIMEOUT_MS: u64 = 8_000;
/// Longest idle time of a session of scheduled jobs, in milliseconds, for the same reason.
pub const JOB_IDLE_TIMEOUT_MS: u64 = 4_000;
/// Largest number of connections for scheduled jobs.
const JOB_CONNECTIONS_MAX: u32 = 4;
/// Largest number of connections for taking and renewing leases.
const LEASE_CONNECTIONS_MAX: u32 = 2;
/// Idle time after which the pool closes a job's connection, well before `JOB_IDLE_TIMEOUT_MS`.
const JOB_IDLE_CLOSE: Duration = Duration::from_secs(1);
/// Longest wait of a call for its turn or for a new connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns connection options with all timeouts set. An error if the URL is invalid.
pub fn options(url: &str) -> sqlx::Result<PgConnectOptions> {
    let options = super::url::parse(url).map_err(|wrong| sqlx::Error::Configuration(wrong.into()))?;
    Ok(options.application_name("meterd").options([
        ("lock_timeout", LOCK_TIMEOUT_MS),
        ("statement_timeout", STATEMENT_TIMEOUT_MS),
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT_MS),
        ("timezone", "UTC"),
    ]))
}

/// Longest time to open the first connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Opens the first connection of a server or command. An error if it takes longer than `OPEN_TIMEOUT`.
pub async fn open(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    let late =
        || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {} s", OPEN_TIMEOUT.as_secs()));
    let opened = tokio::time::timeout(OPEN_TIMEOUT, PgConnection::connect_with(options)).await;
    opened.unwrap_or_else(|_| Err(sqlx::Error::Io(late())))
}

/// Returns a pool that connects on first use.
pub fn pool(options: PgConnectOptions, connections_max: u32) -> PgPool {
    guarded(PgPoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_TIMEOUT))
        .connect_lazy_with(options)
}

/// How long a batch waits for a row that another transaction has locked. Short, because all clients of the writer wait with it.
const WRITER_LOCK_TIMEOUT_MS: &str = "1000";

/// Returns the options of the connections of writers.
pub fn writer_options(options: &PgConnectOptions, is_distributed: bool) -> PgConnectOptions {
    let options = options.clone().options([("lock_timeout", WRITER_LOCK_TIMEOUT_MS)]).application_name("meterd writer");
    match is_distributed {
        // Citus can plan some statements only with the values of their parameters.
        true => options,
        // Every batch uses the same few statements, and planning the largest takes longer than a small batch.
        false => options.options([("plan_cache_mode", "force_generic_plan")]),
    }
}

/// Returns whether COPY sends its last rows at once. sqlx 0.9.0 does not set TCP_NODELAY (issue 4335 of sqlx). Over TCP,
/// the end of a COPY therefore waits until the server acknowledges the rows before it, which takes 40 ms on Linux.
pub fn copies_at_once(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// Returns the pool for scheduled jobs.
pub fn job_pool(options: PgConnectOptions) -> PgPool {
    let (statement, idle) = (JOB_STATEMENT_TIMEOUT_MS.to_string(), JOB_IDLE_TIMEOUT_MS.to_string());
    let options = options.application_name("meterd jobs").options([
        ("statement_timeout", statement.as_str()),
        ("idle_in_transaction_session_timeout", idle.as_str()),
        ("idle_session_timeout", idle.as_str()),
    ]);
    let pool = PgPoolOptions::new().max_connections(JOB_CONNECTIONS_MAX).acquire_timeout(ACQUIRE_TIMEOUT);
    guarded(pool.idle_timeout(JOB_IDLE_CLOSE)).connect_lazy_with(options)
}

/// Returns the pool for taking and renewing leases. It is separate, so that leases are renewed while the other pools
/// are busy.
pub fn lease_pool(options: PgConnectOptions) -> PgPool {
    pool(options.application_name("meterd leases"), LEASE_CONNECTIONS_MAX)
}

/// Makes a pool roll back a transaction that is still open when a connection returns to it.
///
/// In sqlx 0.9.0, a `begin()` whose future is dropped may leave a transaction open on the server that the pool does not
/// know of. The statements of the next user would then run inside this transaction and be lost with the connection,
/// although they were acknowledged.
pub fn guarded(options: PgPoolOptions) -> PgPoolOptions {
    options.after_release(|conn, _| {
        Box::pin(async move {
            // One round trip. ROLLBACK alone would log a warning on the server each time no transaction is open. BEGIN
            // logs a warning only if one is open. In a failed transaction BEGIN is an error, and the pool closes the
            // connection.
            let state = sqlx::raw_sql("BEGIN; ROLLBACK; SHOW transaction_read_only").fetch_all(conn).await?;
            // A session that started while the database was read-only stays read-only.
            let is_read_only = state.first().is_some_and(|row| row.try_get(0).is_ok_and(|state: String| state == "on"));
            Ok(!is_read_only)
        })
    })
}

/// Returns whether the server or the network has closed the connection. 57P01 to 57P03 mean that the server or the
/// session was shut down.
pub(super) fn is_connection_lost(error: &StoreError) -> bool {
    let StoreError::Driver(error) = error else { return false };
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// Applies the migrations that are missing. Replicas that start together take turns, because sqlx takes an advisory
/// lock.
pub async fn migrate(options: &PgConnectOptions) -> Result<(), MigrateError> {
    let patient = options.clone().options([("lock_timeout", "0"), ("statement_timeout", "0")]);
    let mut conn = PgConnection::connect_with(&patient).await?;
    MIGRATIONS.run(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Returns the time of the database.
pub async fn now(executor: impl PgExecutor<'_>) -> crate::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(executor).await.map_err(Into::into)
}

/// Disables the statement timeout until the end of the transaction.
pub async fn allow_long_statements(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("SET LOCAL statement_timeout = 0").await.map(drop).map_err(Into::into)
}

/// Ends the effect of [`plan_for_values`].
pub async fn plan_as_configured(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("SET LOCAL plan_cache_mode TO DEFAULT").await.map(drop).map_err(Into::into)
}

/// Plans each statement for the values of its parameters until the end of the transaction.
pub async fn plan_for_values(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("SET LOCAL plan_cache_mode = force_custom_plan").await.map(drop).map_err(Into::into)
}
