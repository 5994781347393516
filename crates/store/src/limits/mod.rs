//! Limits of clients.

pub mod counters;
pub mod verify;

use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use meterd_domain::event::Labels;
use meterd_domain::limit::{Limit, LimitFilter, LimitMeasure, LimitPeriod};
use sqlx::PgConnection;
use sqlx::types::Json;

/// A row of `usage_limits`.
pub(super) struct LimitRow {
    client_id: String,
    limit_id: String,
    display_name: String,
    services: Vec<String>,
    operations: Vec<String>,
    models: Vec<String>,
    subjects: Vec<String>,
    labels: Json<Labels>,
    measure: i16,
    period: i16,
    amount: BigDecimal,
    hard: bool,
    alert_percents: Vec<i32>,
    revision: i32,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
}

impl TryFrom<LimitRow> for Limit {
    type Error = crate::StoreError;

    fn try_from(row: LimitRow) -> crate::Result<Self> {
        Ok(Self {
            client_id: row.client_id,
            limit_id: row.limit_id,
            display_name: row.display_name,
            filter: LimitFilter {
                services: row.services,
                operations: row.operations,
                models: row.models,
                subjects: row.subjects,
                labels: row.labels.0,
            },
            measure: LimitMeasure::try_from(row.measure).map_err(crate::StoreError::inconsistent)?,
            period: LimitPeriod::try_from(row.period).map_err(crate::StoreError::inconsistent)?,
            amount: numeric::decimal(&row.amount)?,
            is_hard: row.hard,
            alert_percents: percents(&row.alert_percents)?,
            revision: row.revision,
            create_time: row.create_time,
            update_time: row.update_time,
        })
    }
}

/// Converts stored percents.
fn percents<P: FromIterator<u16>>(stored: &[i32]) -> crate::Result<P> {
    stored.iter().map(|percent| u16::try_from(*percent).map_err(crate::StoreError::inconsistent)).collect()
}

fn limits(rows: Vec<LimitRow>) -> crate::Result<Vec<Limit>> {
    rows.into_iter().map(Limit::try_from).collect()
}

/// Returns the limits of clients, ordered by client and id. Under the versions lock they do not change until the commit.
pub async fn load(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<Vec<Limit>> {
    let rows = sqlx::query_as!(
        LimitRow,
        r#"SELECT client_id, limit_id, display_name, services, operations, models, subjects, labels AS "labels: Json<Labels>",
                  measure, period, amount, hard, alert_percents, revision, create_time, update_time
           FROM usage_limits WHERE client_id = ANY($1) AND delete_time IS NULL ORDER BY client_id, limit_id"#,
        client_ids
    );
    limits(rows.fetch_all(conn).await?)
}

/// Returns a limit. `None` if it does not exist or was deleted.
pub async fn find(conn: &mut PgConnection, client_id: &str, limit_id: &str) -> crate::Result<Option<Limit>> {
    let row = sqlx::query_as!(
        LimitRow,
        r#"SELECT client_id, limit_id, display_name, services, operations, models, subjects, labels AS "labels: Json<Labels>",
                  measure, period, amount, hard, alert_percents, revision, create_time, update_time
           FROM usage_limits WHERE client_id = $1 AND limit_id = $2 AND delete_time IS NULL"#,
        client_id,
        limit_id
    );
    row.fetch_optional(conn).await?.map(Limit::try_from).transpose()
}

/// Returns up to `max` limits after a client and a limit, ordered by client and id. `client_id` is empty for all clients.
pub async fn list(
    conn: &mut PgConnection,
    client_id: &str,
    after: (&str, &str),
    max: i64,
) -> crate::Result<Vec<Limit>> {
    let rows = sqlx::query_as!(
        LimitRow,
        r#"SELECT client_id, limit_id, display_name, services, operations, models, subjects, labels AS "labels: Json<Labels>",
                  measure, period, amount, hard, alert_percents, revision, create_time, update_time
           FROM usage_limits
           WHERE ($1 = '' OR client_id = $1) AND (client_id, limit_id) > ($2, $3) AND delete_time IS NULL
           ORDER BY client_id, limit_id LIMIT $4"#,
        client_id,
        after.0,
        after.1,
        max
    );
    limits(rows.fetch_all(conn).await?)
}

/// Returns up to `max` clients that have limits, after a client, in order. `client_ids` is empty for all clients.
pub async fn clients(
    conn: &mut PgConnection,
    client_ids: &[String],
    after: &str,
    max: i64,
) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT DISTINCT client_id FROM usage_limits
         WHERE (cardinality($1::text[]) = 0 OR client_id = ANY($1)) AND client_id > $2 AND delete_time IS NULL
         ORDER BY client_id LIMIT $3",
        client_ids,
        after,
        max
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the number of limits of a client.
pub async fn count(conn: &mut PgConnection, client_id: &str) -> crate::Result<i64> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM usage_limits WHERE client_id = $1 AND delete_time IS NULL"#,
        client_id
    );
    count.fetch_one(conn).await.map_err(Into::into)
}

/// Creates a limit and returns it. `None` if the client has or had a limit with this id. Its revision and times are not read. If the
/// transaction commits, it must hold the exclusive versions lock and count a change of client settings, so that the limit counts every
/// later commit.
pub async fn insert(conn: &mut PgConnection, limit: &Limit) -> crate::Result<Option<Limit>> {
    let LimitFilter { services, operations, models, subjects, labels } = &limit.filter;
    let row = sqlx::query_as!(
        LimitRow,
        r#"INSERT INTO usage_limits (client_id, limit_id, display_name, services, operations, models, subjects, labels,
               measure, period, amount, hard, alert_percents)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING
           RETURNING client_id, limit_id, display_name, services, operations, models, subjects,
               labels AS "labels: Json<Labels>", measure, period, amount, hard, alert_percents, revision, create_time,
               update_time"#,
        limit.client_id,
        limit.limit_id,
        limit.display_name,
        services,
        operations,
        models,
        subjects,
        Json(labels) as _,
        i16::from(limit.measure),
        i16::from(limit.period),
        numeric::of(limit.amount),
        limit.is_hard,
        &limit.alert_percents.iter().map(|percent| i32::from(*percent)).collect::<Vec<_>>()
    );
    row.fetch_optional(conn).await?.map(Limit::try_from).transpose()
}

/// Changes a limit, but not its measure and period, and returns it. If the filter is another one, the revision increases. The
/// transaction is as for [`insert`].
pub async fn update(conn: &mut PgConnection, limit: &Limit) -> crate::Result<Option<Limit>> {
    let LimitFilter { services, operations, models, subjects, labels } = &limit.filter;
    let row = sqlx::query_as!(
        LimitRow,
        r#"UPDATE usage_limits SET display_name = $3, services = $4, operations = $5, models = $6, subjects = $7, labels = $8,
               amount = $9, hard = $10, alert_percents = $11, update_time = now(),
               revision = revision + CASE WHEN (services, operations, models, subjects, labels)
                   IS DISTINCT FROM ($4, $5, $6, $7, $8) THEN 1 ELSE 0 END
           WHERE client_id = $1 AND limit_id = $2 AND delete_time IS NULL
           RETURNING client_id, limit_id, display_name, services, operations, models, subjects,
               labels AS "labels: Json<Labels>", measure, period, amount, hard, alert_percents, revision, create_time,
               update_time"#,
        limit.client_id,
        limit.limit_id,
        limit.display_name,
        services,
        operations,
        models,
        subjects,
        Json(labels) as _,
        numeric::of(limit.amount),
        limit.is_hard,
        &limit.alert_percents.iter().map(|percent| i32::from(*percent)).collect::<Vec<_>>()
    );
    row.fetch_optional(conn).await?.map(Limit::try_from).transpose()
}

/// Deletes a limit. Returns whether it existed. The transaction is as for [`insert`].
pub async fn delete(conn: &mut PgConnection, client_id: &str, limit_id: &str) -> crate::Result<bool> {
    let deleted = sqlx::query!(
        "UPDATE usage_limits SET delete_time = now() WHERE client_id = $1 AND limit_id = $2 AND delete_time IS NULL",
        client_id,
        limit_id
    );
    Ok(deleted.execute(conn).await?.rows_affected() > 0)
}
