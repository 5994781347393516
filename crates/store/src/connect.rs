//! Connections: their bounds, the guard of pooled ones, and what a server must be before it is trusted.

use super::cause::READ_ONLY_FIX;
use crate::StoreError;
use chrono::{DateTime, Utc};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, Row};
use std::time::{Duration, Instant};

/// Numbered SQL in `migrations/`, compiled in.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// Oldest PostgreSQL that is taken, as `server_version_num`.
const SERVER_VERSION_MIN: i32 = 150_000;
/// A transaction that waits longer than this for a lock gives up and is retried.
const LOCK_TIMEOUT_MS: &str = "5000";
/// A statement that runs longer than this is ended. Exports, rebuilds and migrations lift it for themselves.
const STATEMENT_TIMEOUT_MS: &str = "30000";
/// Who holds a transaction open and does nothing is cut off, so that no stalled holder stops the others.
const IDLE_IN_TRANSACTION_TIMEOUT_MS: &str = "10000";
/// The same for scheduled jobs, whose lease ends soon after: a statement ends, and a connection whose user has gone silent
/// is cut, before another replica takes over.
pub const JOB_STATEMENT_TIMEOUT_MS: u64 = 8_000;
pub const JOB_IDLE_TIMEOUT_MS: u64 = 4_000;
/// Connections that jobs work on, and those that their leases are renewed on.
const JOB_CONNECTIONS_MAX: u32 = 4;
const LEASE_CONNECTIONS_MAX: u32 = 2;
/// Closed by us well before the server would.
const JOB_IDLE_CLOSE: Duration = Duration::from_secs(1);
/// A pooled connection that was used so recently is taken to be there still: no round trip before each use finds out.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long a call waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a database is refused. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum UnfitDatabase {
    /// Too old.
    #[error("PostgreSQL {0} is too old: meterd needs 15 or newer")]
    TooOld(String),
    /// Acknowledged would not mean durable.
    #[error(
        "the database has {0} = off, so an acknowledged event could be lost; turn it on, or start with \
         --allow-non-durable-database if that is what you want"
    )]
    NotDurable(String),
    /// A standby.
    #[error("it is a standby, which takes no writes: name the primary server in DATABASE_URL")]
    Standby,
    /// Read-only by a setting.
    #[error("it takes no writes: {READ_ONLY_FIX}")]
    ReadOnly,
    /// Tables, and later partitions, could not be made.
    #[error(
        "user {user} may not create tables in {schema}: GRANT CREATE, USAGE ON SCHEMA public TO {user}, or make it the owner of \
         the database"
    )]
    MayNotCreate { user: String, schema: String },
    /// Partitions could not be made.
    #[error(
        "the table usage_events belongs to {owner}, and user {user} is no member of that role, so it could not make the \
         partitions of coming months: GRANT {owner} TO {user}, or name {owner} in DATABASE_URL"
    )]
    ForeignTables { user: String, owner: String },
    /// It cannot be asked.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Connection options with every timeout set; an error says what is wrong with the URL.
pub fn options(url: &str) -> sqlx::Result<PgConnectOptions> {
    let options = super::url::parse(url).map_err(|wrong| sqlx::Error::Configuration(wrong.into()))?;
    Ok(options.application_name("meterd").options([
        ("lock_timeout", LOCK_TIMEOUT_MS),
        ("statement_timeout", STATEMENT_TIMEOUT_MS),
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT_MS),
        ("timezone", "UTC"),
    ]))
}

/// How long the first connection may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// The first connection of a server or command.
pub async fn open(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    let late =
        || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {} s", OPEN_TIMEOUT.as_secs()));
    let opened = tokio::time::timeout(OPEN_TIMEOUT, PgConnection::connect_with(options)).await;
    opened.unwrap_or_else(|_| Err(sqlx::Error::Io(late())))
}

/// A pool that connects when it is used.
pub fn pool(options: PgConnectOptions, connections_max: u32) -> PgPool {
    guarded(PgPoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_TIMEOUT))
        .connect_lazy_with(options)
}

/// The pool of reads that are one statement each: nothing is ever begun on it, so there is nothing to roll back after each use,
/// and who reads again at once has the same connection, with its plans and caches.
pub fn read_pool(options: PgConnectOptions, connections_max: u32) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_TIMEOUT);
    // Asked whether it is there only where it was not used for a while: see `read`.
    let trusting = pool.test_before_acquire(false).before_acquire(|conn, of| {
        Box::pin(async move {
            if of.idle_for > TRUSTED_IDLE {
                conn.ping().await?;
            }
            Ok(true)
        })
    });
    trusting.connect_lazy_with(options.application_name("meterd reads"))
}

/// The pool that scheduled jobs work on.
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

/// The pool that leases are taken and renewed on: free while the others are busy.
pub fn lease_pool(options: PgConnectOptions) -> PgPool {
    pool(options.application_name("meterd leases"), LEASE_CONNECTIONS_MAX)
}

/// Rolls back whatever a connection still has open when it comes back to the pool.
///
/// With sqlx 0.9.0, a `begin()` whose future is dropped may leave a transaction open on the server that the pool knows
/// nothing of. The next user's statements would then run inside it and vanish with the connection, acknowledged or not.
pub fn guarded(options: PgPoolOptions) -> PgPoolOptions {
    options.after_release(|conn, _| {
        Box::pin(async move {
            // One round trip. A lone ROLLBACK would be a warning in the server's log each time there is nothing to roll
            // back; BEGIN warns only where there is. In a failed transaction it is an error, and the connection is closed.
            let state = sqlx::raw_sql("BEGIN; ROLLBACK; SHOW transaction_read_only").fetch_all(conn).await?;
            // A session that began while the database took no writes would refuse them after that, too.
            let is_read_only = state.first().is_some_and(|row| row.try_get(0).is_ok_and(|state: String| state == "on"));
            Ok(!is_read_only)
        })
    })
}

/// A connection that was lost says so at once; one that is lost later may have been lost by the read.
const LOST_BEFORE_MAX: Duration = Duration::from_millis(500);

/// Reads on the pool of [`read_pool`]; again, where the connection turns out to have been lost: each of them may be.
pub async fn read<T, F>(pool: &PgPool, read: impl Fn() -> F) -> crate::Result<T>
where
    F: Future<Output = crate::Result<T>>,
{
    let mut left = pool.options().get_max_connections();
    loop {
        let begun = Instant::now();
        match read().await {
            Err(error) if left > 0 && is_connection_lost(&error) && begun.elapsed() < LOST_BEFORE_MAX => left -= 1,
            done => return done,
        }
    }
}

/// Whether the server, or what is in between, has cut a connection. 57P01 to 57P03: its shutdown, or that of the session.
fn is_connection_lost(error: &StoreError) -> bool {
    let StoreError::Driver(error) = error else { return false };
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// Refuses a server that is too old, takes no writes, would acknowledge before it is durable, or where the user has not the
/// rights that meterd needs.
pub async fn check_fitness(conn: &mut PgConnection, allow_non_durable: bool) -> Result<(), UnfitDatabase> {
    let server = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "version_number!",
                  current_setting('server_version') AS "version!",
                  current_setting('fsync') AS "fsync!",
                  current_setting('full_page_writes') AS "full_page_writes!",
                  current_setting('synchronous_commit') AS "synchronous_commit!",
                  pg_is_in_recovery() AS "standby!", current_setting('transaction_read_only')::bool AS "read_only!",
                  current_user::text AS "user!", current_schema()::text AS schema,
                  COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false) AS "may_create!",
                  (SELECT pg_get_userbyid(relowner)::text FROM pg_class
                   WHERE oid = to_regclass('usage_events') AND NOT pg_has_role(relowner, 'USAGE')) AS foreign_owner"#
    )
    .fetch_one(conn)
    .await?;
    if server.version_number < SERVER_VERSION_MIN {
        return Err(UnfitDatabase::TooOld(server.version));
    }
    if server.standby {
        return Err(UnfitDatabase::Standby);
    }
    if server.read_only {
        return Err(UnfitDatabase::ReadOnly);
    }
    if !server.may_create {
        let schema = server.schema.map_or("any schema of its search_path".into(), |name| format!("schema {name}"));
        return Err(UnfitDatabase::MayNotCreate { user: server.user, schema });
    }
    if let Some(owner) = server.foreign_owner {
        return Err(UnfitDatabase::ForeignTables { user: server.user, owner });
    }
    let durable = [
        ("fsync", server.fsync),
        ("full_page_writes", server.full_page_writes),
        ("synchronous_commit", server.synchronous_commit),
    ];
    match durable.into_iter().find(|(_, value)| value == "off") {
        Some((name, _)) if !allow_non_durable => Err(UnfitDatabase::NotDurable(name.into())),
        _ => Ok(()),
    }
}

/// Brings the schema up to date. Replicas that start together take turns: sqlx holds an advisory lock.
pub async fn migrate(options: &PgConnectOptions) -> Result<(), MigrateError> {
    let patient = options.clone().options([("lock_timeout", "0"), ("statement_timeout", "0")]);
    let mut conn = PgConnection::connect_with(&patient).await?;
    MIGRATIONS.run(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Whether a database that answers takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    Taken,
    /// Refused by the setting default_transaction_read_only.
    ReadOnly,
    /// Refused by a standby.
    Standby,
}

/// Asks a database whether it takes writes in sessions that begin now. It keeps its connection only for a while: a session
/// remembers the settings with which it began.
pub struct Probe {
    options: PgConnectOptions,
    conn: Option<(PgConnection, Instant)>,
}

impl Probe {
    /// How old a connection may be.
    const CONNECTION_AGE_MAX: Duration = Duration::from_secs(5);

    /// Of the database that these name.
    pub fn new(options: &PgConnectOptions) -> Self {
        Self { options: options.clone().application_name("meterd health"), conn: None }
    }

    /// Asks once.
    pub async fn ask(&mut self) -> crate::Result<Writes> {
        let kept = self.conn.take().filter(|(_, since)| since.elapsed() < Self::CONNECTION_AGE_MAX);
        let (mut conn, since) = match kept {
            Some(kept) => kept,
            None => (PgConnection::connect_with(&self.options).await?, Instant::now()),
        };
        let asked = sqlx::query!(
            r#"SELECT pg_is_in_recovery() AS "standby!", current_setting('transaction_read_only')::bool AS "read_only!""#
        );
        let answer = asked.fetch_one(&mut conn).await?;
        let writes = match (answer.standby, answer.read_only) {
            (true, _) => Writes::Standby,
            (false, true) => Writes::ReadOnly,
            (false, false) => Writes::Taken,
        };
        // One that is read-only would stay so after the setting has changed.
        if writes == Writes::Taken {
            self.conn = Some((conn, since));
        }
        Ok(writes)
    }
}

/// The database's time.
pub async fn now(pool: &PgPool) -> crate::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(pool).await.map_err(Into::into)
}

/// Lifts the statement timeout until the end of the transaction.
pub async fn allow_long_statements(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("SET LOCAL statement_timeout = 0").await.map(drop).map_err(Into::into)
}

/// Has statements planned for the values that they come with, until the end of the transaction.
pub async fn plan_for_values(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("SET LOCAL plan_cache_mode = force_custom_plan").await.map(drop).map_err(Into::into)
}
