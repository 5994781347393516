//! Sums by any dimensions: from the rollups, or from the events where subjects matter.

use crate::domain::period::Month;
use crate::domain::rollup::Sums;
use crate::store::sums::sums_of;
use crate::store::usage::AsOf;
use bigdecimal::BigDecimal;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

/// What to query. Empty filters let everything through.
#[derive(Debug, Default)]
pub struct UsageQuery {
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    pub start: NaiveDate,
    pub end: NaiveDate,
    pub group_by: GroupBy,
    pub count_subjects: bool,
    pub unpriced_only: bool,
}

/// The dimensions that make a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBy {
    pub day: bool,
    pub month: bool,
    pub client: bool,
    pub service: bool,
    pub operation: bool,
    pub model: bool,
    pub subject: bool,
}

/// The dimensions of a row: those not grouped by hold the first day there is, or the empty string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryKey {
    pub day: NaiveDate,
    pub month: NaiveDate,
    pub client_id: String,
    pub service: String,
    pub operation: String,
    pub model: String,
    pub subject: String,
}

/// A row of a query.
#[derive(Default)]
pub struct QueryRow {
    pub key: QueryKey,
    pub sums: Sums,
    /// Distinct subjects, where the query counts them.
    pub subject_count: i64,
}

impl UsageQuery {
    /// Whether the answer is one row, there also where there is nothing to add up.
    pub fn wants_total(&self) -> bool {
        self.group_by == GroupBy::default() && !self.unpriced_only
    }

    /// Subjects are not in the rollups.
    fn needs_events(&self) -> bool {
        self.group_by.subject || self.count_subjects || !self.subjects.is_empty()
    }
}

/// Up to `limit` rows after `after`, ordered by key: from the rollups, or from the events where subjects matter.
pub async fn query(
    pool: &PgPool,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> sqlx::Result<AsOf<Vec<QueryRow>>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let complete_as_of = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *tx).await?;
    let rows = if query.needs_events() {
        query_events(&mut tx, query, after, limit).await?
    } else {
        query_days(&mut tx, query, after, limit).await?
    };
    tx.commit().await?;
    Ok(AsOf { complete_as_of, rows })
}

/// Row of either source.
struct GroupedRow {
    day: NaiveDate,
    month: NaiveDate,
    client_id: String,
    service: String,
    operation: String,
    model: String,
    subject: String,
    request_count: i64,
    units: BigDecimal,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: BigDecimal,
    unpriced_event_count: i64,
    subject_count: i64,
}

impl TryFrom<GroupedRow> for QueryRow {
    type Error = sqlx::Error;

    fn try_from(row: GroupedRow) -> sqlx::Result<Self> {
        let sums = sums_of!(row)?;
        Ok(Self {
            key: QueryKey {
                day: row.day,
                month: row.month,
                client_id: row.client_id,
                service: row.service,
                operation: row.operation,
                model: row.model,
                subject: row.subject,
            },
            sums,
            subject_count: row.subject_count,
        })
    }
}

async fn query_days(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> sqlx::Result<Vec<QueryRow>> {
    let by = query.group_by;
    let rows = sqlx::query_file_as!(
        GroupedRow,
        "src/store/query_days.sql",
        &query.client_ids,
        &query.services,
        &query.operations,
        &query.models,
        query.start,
        query.end,
        by.day,
        by.month,
        by.client,
        by.service,
        by.operation,
        by.model,
        query.unpriced_only,
        after.is_some(),
        after.map(|key| key.day),
        after.map(|key| key.month),
        after.map(|key| key.client_id.as_str()),
        after.map(|key| key.service.as_str()),
        after.map(|key| key.operation.as_str()),
        after.map(|key| key.model.as_str()),
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(QueryRow::try_from).collect()
}

async fn query_events(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> sqlx::Result<Vec<QueryRow>> {
    let by = query.group_by;
    let (from, to) = (Month::of(query.start).widest_range().0, Month::of(query.end).widest_range().1);
    let rows = sqlx::query_file_as!(
        GroupedRow,
        "src/store/query_events.sql",
        &query.client_ids,
        &query.services,
        &query.operations,
        &query.models,
        query.start,
        query.end,
        by.day,
        by.month,
        by.client,
        by.service,
        by.operation,
        by.model,
        query.unpriced_only,
        after.is_some(),
        after.map(|key| key.day),
        after.map(|key| key.month),
        after.map(|key| key.client_id.as_str()),
        after.map(|key| key.service.as_str()),
        after.map(|key| key.operation.as_str()),
        after.map(|key| key.model.as_str()),
        limit,
        by.subject,
        after.map(|key| key.subject.as_str()),
        &query.subjects,
        from,
        to
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(QueryRow::try_from).collect()
}
