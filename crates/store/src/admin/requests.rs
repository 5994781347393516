//! Stored answers of create calls, for repeats with the same request id.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

/// The first answer of a create call.
pub struct FirstAnswer {
    /// Hash of the RPC's name and the request.
    pub request_hash: Vec<u8>,
    /// Encoded response.
    pub response: Vec<u8>,
}

/// Locks a caller's request id until the end of the transaction and returns its first answer. `None` if the id is new.
/// Of two concurrent calls, the second one sees the answer of the first. Answers stored before request ids belonged to
/// callers match only the same request.
pub async fn find(
    conn: &mut PgConnection,
    principal: &str,
    request_id: &str,
    request_hash: &[u8],
) -> crate::Result<Option<FirstAnswer>> {
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(hashtextextended('create_requests:' || $1 || ':' || $2, 0))",
        principal,
        request_id
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query_as!(
        FirstAnswer,
        "SELECT request_hash, response FROM create_requests
         WHERE request_id = $2 AND (principal = $1 OR principal = '' AND request_hash = $3)
         ORDER BY principal DESC LIMIT 1",
        principal,
        request_id,
        request_hash
    )
    .fetch_optional(conn)
    .await
    .map_err(Into::into)
}

/// Stores a first answer with the later of `now` and the database's time, so that retention does not delete it too
/// early if a clock is behind.
pub async fn insert(
    conn: &mut PgConnection,
    principal: &str,
    request_id: &str,
    answer: &FirstAnswer,
    now: DateTime<Utc>,
) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO create_requests (principal, request_id, request_hash, response, create_time)
         VALUES ($1, $2, $3, $4, GREATEST(now(), $5))",
        principal,
        request_id,
        answer.request_hash,
        answer.response,
        now
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Deletes up to `limit` answers from before `before`. Returns their number.
pub async fn prune(pool: &PgPool, before: DateTime<Utc>, limit: i64) -> crate::Result<i64> {
    let pruned = sqlx::query!(
        "DELETE FROM create_requests WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM create_requests WHERE create_time < $1 LIMIT $2))",
        before,
        limit
    );
    Ok(pruned.execute(pool).await?.rows_affected() as i64)
}
