//! Distributes the tables of clients over the workers of a Citus cluster.
//!
//! The rows of these tables are on the worker of their client, so the usage of a client is on one worker. Each worker
//! also has a copy of `services`. All other tables stay on the coordinator: prices, alerts and their feed,
//! notifications, jobs, API keys. Every replica connects to the coordinator, where the advisory locks are.

use crate::locks;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

/// The tables that are distributed by their column `client_id`.
pub const DISTRIBUTED_TABLES: [&str; 16] = [
    "usage_months",
    "usage_month_services",
    "usage_days",
    "usage_day_measures",
    "usage_tiers",
    "pending_usage_days",
    "usage_events",
    "usage_adjustments",
    "usage_limits",
    "limit_counters",
    "idempotency_keys",
    "monthly_summaries",
    "clients",
    "client_plans",
    "credit_grants",
    "credit_uses",
];
/// The tables of which each worker has a copy.
pub const REFERENCE_TABLES: [&str; 1] = ["services"];
/// The triggers that [`distribute`] drops, because Citus does not support triggers on distributed tables. They only
/// serve replicas of earlier releases.
pub const TRIGGERS: [(&str, &str); 5] = [
    ("clients", "time_zone_changed"),
    ("clients", "clients_removed"),
    ("monthly_summaries", "summaries_inserted"),
    ("monthly_summaries", "summaries_updated"),
    ("monthly_summaries", "summaries_deleted"),
];
/// Lock timeout of sessions on the workers. Citus does not send them the timeout of the session on the coordinator.
const WORKER_LOCK_TIMEOUT: &str = "1s";

/// Returns whether the tables are distributed.
pub async fn is_distributed(pool: &PgPool) -> crate::Result<bool> {
    let distributed = sqlx::query_scalar!(r#"SELECT is_distributed($1) AS "is_distributed!""#, DISTRIBUTED_TABLES[0]);
    distributed.fetch_one(pool).await.map_err(Into::into)
}

/// Returns the version of Citus in this database. `None` if it has no Citus.
pub async fn citus_version(conn: &mut PgConnection) -> crate::Result<Option<String>> {
    let version = sqlx::query_scalar!("SELECT extversion FROM pg_extension WHERE extname = 'citus'");
    version.fetch_optional(conn).await.map_err(Into::into)
}

/// Returns the number of workers.
pub async fn worker_count(conn: &mut PgConnection) -> crate::Result<i64> {
    // Not checked at compile time, because the function belongs to Citus.
    let count = sqlx::query_scalar("SELECT count(*) FROM citus_get_active_worker_nodes()");
    count.fetch_one(conn).await.map_err(Into::into)
}

/// Returns the number of sessions of servers in this database.
pub async fn server_sessions(conn: &mut PgConnection) -> crate::Result<i64> {
    let sessions = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM pg_stat_activity
           WHERE datname = current_database() AND application_name LIKE 'meterd %'"#
    );
    sessions.fetch_one(conn).await.map_err(Into::into)
}

/// Distributes the tables that are not distributed yet, with their rows, in one transaction, and returns their names.
/// Then sets the lock timeout of the workers. All servers must be stopped.
pub async fn distribute(conn: &mut PgConnection) -> crate::Result<Vec<&'static str>> {
    let mut tx = conn.begin().await?;
    tx.execute("SET LOCAL statement_timeout = 0").await?;
    locks::change_versions(&mut tx).await?;
    let mut distributed = vec![];
    for table in DISTRIBUTED_TABLES.into_iter().chain(REFERENCE_TABLES) {
        let is_distributed = sqlx::query_scalar!(r#"SELECT is_distributed($1) AS "is_distributed!""#, table);
        if is_distributed.fetch_one(&mut *tx).await? {
            continue;
        }
        for (_, trigger) in TRIGGERS.into_iter().filter(|(of, _)| *of == table) {
            tx.execute(AssertSqlSafe(format!("DROP TRIGGER IF EXISTS {trigger} ON {table}"))).await?;
        }
        let colocated = if table == DISTRIBUTED_TABLES[0] { "none" } else { DISTRIBUTED_TABLES[0] };
        let create = match REFERENCE_TABLES.contains(&table) {
            true => format!("SELECT create_reference_table('{table}')"),
            false => {
                format!("SELECT create_distributed_table('{table}', 'client_id', colocate_with => '{colocated}')")
            }
        };
        tx.execute(AssertSqlSafe(create)).await?;
        distributed.push(table);
    }
    tx.commit().await?;
    set_worker_lock_timeout(conn).await?;
    Ok(distributed)
}

async fn set_worker_lock_timeout(conn: &mut PgConnection) -> crate::Result<()> {
    // Without DDL propagation, because a worker may not run such a statement for the other nodes.
    let set = format!(
        "SELECT success, nodename || ':' || nodeport || ': ' || result FROM run_command_on_workers(format(
             'SET citus.enable_ddl_propagation = off; ALTER DATABASE %I SET lock_timeout = ''{WORKER_LOCK_TIMEOUT}''',
             current_database()))"
    );
    let results: Vec<(bool, String)> = sqlx::query_as(AssertSqlSafe(set)).fetch_all(conn).await?;
    match results.into_iter().find(|(success, _)| !success) {
        Some((_, result)) => Err(crate::StoreError::inconsistent(format!("cannot set lock_timeout on {result}"))),
        None => Ok(()),
    }
}
