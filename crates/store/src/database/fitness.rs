//! Checks that a database server must pass before meterd uses it, and while it runs.

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use std::time::{Duration, Instant};

/// Oldest PostgreSQL that is accepted, as `server_version_num`.
const SERVER_VERSION_MIN: i32 = 150_000;
/// The fix for a server that accepts no writes.
pub(super) const READ_ONLY_FIX: &str = "turn default_transaction_read_only off for the database and the user, or name the \
                                        primary server in DATABASE_URL";

/// Why a database is rejected. The message says how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum UnfitDatabase {
    /// The server is too old.
    #[error("PostgreSQL {0} is too old: meterd needs 15 or newer")]
    TooOld(String),
    /// A setting that makes commits durable is off.
    #[error(
        "the database has {0} = off, so an acknowledged event could be lost; turn it on, or start with \
         --allow-non-durable-database if that is what you want"
    )]
    NotDurable(String),
    /// The server is a standby.
    #[error("it is a standby, which takes no writes: name the primary server in DATABASE_URL")]
    Standby,
    /// A setting makes sessions read-only.
    #[error("it takes no writes: {READ_ONLY_FIX}")]
    ReadOnly,
    /// The user may not create tables.
    #[error(
        "user {user} may not create tables in {schema}: GRANT CREATE, USAGE ON SCHEMA public TO {user}, or make it the owner of \
         the database"
    )]
    MayNotCreate { user: String, schema: String },
    /// The tables belong to another role, so the user could not create partitions.
    #[error(
        "the table usage_events belongs to {owner}, and user {user} is no member of that role, so it could not make the \
         partitions of coming months: GRANT {owner} TO {user}, or name {owner} in DATABASE_URL"
    )]
    ForeignTables { user: String, owner: String },
    /// The check itself failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Checks that the server is new enough, accepts writes, commits durably (unless `allow_non_durable` is set), and
/// grants the user the privileges that meterd needs.
pub async fn check(conn: &mut PgConnection, allow_non_durable: bool) -> Result<(), UnfitDatabase> {
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

/// Whether a reachable database accepts writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Writes are accepted.
    Accepted,
    /// Rejected because of the setting `default_transaction_read_only`.
    ReadOnly,
    /// Rejected because the server is a standby.
    Standby,
}

/// Checks whether a database accepts writes in new sessions. Reuses its connection only for a short time, because a
/// session keeps the settings with which it started.
pub struct Probe {
    options: PgConnectOptions,
    conn: Option<(PgConnection, Instant)>,
}

impl Probe {
    /// Longest reuse of a connection.
    const CONNECTION_AGE_MAX: Duration = Duration::from_secs(5);

    /// Returns a probe of the database of these options.
    pub fn new(options: &PgConnectOptions) -> Self {
        Self { options: options.clone().application_name("meterd health"), conn: None }
    }

    /// Checks once.
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
            (false, false) => Writes::Accepted,
        };
        // A read-only session would stay read-only after a change of the setting.
        if writes == Writes::Accepted {
            self.conn = Some((conn, since));
        }
        Ok(writes)
    }
}
