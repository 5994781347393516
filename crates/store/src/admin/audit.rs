//! The audit log of admin calls. Rows are only added, never changed.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

/// The data of an entry that are known before the call runs.
pub struct NewEntry<'a> {
    pub actor_kind: i16,
    pub actor_id: &'a str,
    pub actor_name: &'a str,
    pub method: &'a str,
    /// Request as JSON.
    pub request: &'a str,
    pub request_id: &'a str,
    pub address: &'a str,
}

/// An entry and the outcome of its call.
pub struct Entry {
    pub entry_id: i64,
    pub time: DateTime<Utc>,
    pub actor_kind: i16,
    pub actor_id: String,
    pub actor_name: String,
    pub method: String,
    pub request: String,
    pub request_id: String,
    pub address: String,
    /// Status code of the call. `None` if the outcome is unknown.
    pub code: Option<i32>,
    pub reason: Option<String>,
    pub finish_time: Option<DateTime<Utc>>,
}

/// Which entries to list. An empty filter matches everything.
pub struct Filter<'a> {
    pub actor_id: &'a str,
    pub method: &'a str,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
}

/// Adds an entry in its own transaction. Returns its id.
pub async fn begin(pool: &PgPool, entry: &NewEntry<'_>) -> crate::Result<i64> {
    sqlx::query_scalar!(
        "INSERT INTO audit_log (actor_kind, actor_id, actor_name, method, request, request_id, address)
         VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING entry_id",
        entry.actor_kind,
        entry.actor_id,
        entry.actor_name,
        entry.method,
        entry.request,
        entry.request_id,
        entry.address
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// Adds the outcome of an entry's call.
pub async fn finish(pool: &PgPool, entry_id: i64, code: i32, reason: &str) -> crate::Result<()> {
    sqlx::query!("INSERT INTO audit_outcomes (entry_id, code, reason) VALUES ($1, $2, $3)", entry_id, code, reason)
        .execute(pool)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns up to `limit` entries with ids before `before`, newest first.
pub async fn list(pool: &PgPool, filter: &Filter<'_>, before: Option<i64>, limit: i64) -> crate::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        r#"SELECT entry_id, audit_log.time, actor_kind, actor_id, actor_name, method, request, request_id, address,
                  outcome.code AS "code?", outcome.reason AS "reason?", outcome.time AS "finish_time?"
           FROM audit_log LEFT JOIN audit_outcomes AS outcome USING (entry_id)
           WHERE ($1 = '' OR actor_id = $1) AND ($2 = '' OR method = $2)
             AND ($3::timestamptz IS NULL OR audit_log.time >= $3) AND ($4::timestamptz IS NULL OR audit_log.time < $4)
             AND ($5::bigint IS NULL OR entry_id < $5)
           ORDER BY entry_id DESC LIMIT $6"#,
        filter.actor_id,
        filter.method,
        filter.start_time,
        filter.end_time,
        before,
        limit
    )
    .fetch_all(pool)
    .await
    .map_err(Into::into)
}
