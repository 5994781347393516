//! Sums grouped by any dimensions: from the rollups, or from the events if the query uses hours, subjects or labels.

use crate::database::connect;
use crate::numeric::Numeric;
use crate::sums::sums_of;
use crate::usage::AsOf;
use crate::usage::events::labels_filter;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::Labels;
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use std::collections::{BTreeMap, HashMap};

/// Queries the sums of measures with one of two statements. That on the events has further parameters.
macro_rules! measures {
    ($file:literal, $conn:expr, $query:expr, $first:expr, $last:expr $(, $more:expr)*) => {{
        let (query, first, last) = ($query, $first, $last);
        let by = query.group_by;
        sqlx::query_file_as!(
            MeasureSum,
            $file,
            &query.client_ids,
            &query.services,
            &query.operations,
            &query.models,
            &query.subjects,
            query.start,
            query.end,
            by.day,
            by.month,
            by.client,
            by.service,
            by.operation,
            by.model,
            by.subject,
            first.day,
            first.month,
            first.client_id,
            first.service,
            first.operation,
            first.model,
            first.subject,
            last.day,
            last.month,
            last.client_id,
            last.service,
            last.operation,
            last.model,
            last.subject,
            Month::of(query.start).widest_range().0,
            Month::of(query.end).widest_range().1
            $(, $more)*
        )
        .fetch_all($conn)
        .await
        .map_err(crate::StoreError::from)
    }};
}

/// What to query. An empty filter matches everything.
#[derive(Debug, Default)]
pub struct UsageQuery {
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    /// Only events that have all of these labels.
    pub labels: Labels,
    pub start: NaiveDate,
    pub end: NaiveDate,
    pub group_by: GroupBy,
    /// Names of labels to group by.
    pub group_by_labels: Vec<String>,
    pub count_subjects: bool,
    pub unpriced_only: bool,
    pub include_measures: bool,
}

/// The dimensions to group by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBy {
    pub day: bool,
    pub month: bool,
    pub hour: bool,
    pub client: bool,
    pub service: bool,
    pub operation: bool,
    pub model: bool,
    pub subject: bool,
}

/// The values of a row's dimensions. A dimension that is not grouped by is 0001-01-01, 1970-01-01 or the empty string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueryKey {
    pub day: NaiveDate,
    pub month: NaiveDate,
    /// Start of an hour of UTC.
    pub hour: DateTime<Utc>,
    pub client_id: String,
    pub service: String,
    pub operation: String,
    pub model: String,
    pub subject: String,
    /// The values of the labels to group by, in the order of their names in the query, and then empty ones.
    pub labels: Vec<String>,
}

/// One row of the answer.
#[derive(Default)]
pub struct QueryRow {
    pub key: QueryKey,
    pub sums: Sums,
    /// Number of distinct subjects; 0 if the row is from the rollups.
    pub subject_count: i64,
    /// Sums of measures that are not in `sums`, if the query wants them.
    pub measures: BTreeMap<String, Total>,
}

impl UsageQuery {
    /// Returns whether the answer is a single total row, which exists even without usage.
    pub fn wants_total(&self) -> bool {
        self.group_by == GroupBy::default() && self.group_by_labels.is_empty() && !self.unpriced_only
    }

    /// Returns whether the query needs the events, because the rollups have no hours, subjects and labels.
    pub fn needs_events(&self) -> bool {
        let has_labels = !self.labels.is_empty() || !self.group_by_labels.is_empty();
        self.group_by.hour || self.group_by.subject || self.count_subjects || !self.subjects.is_empty() || has_labels
    }
}

/// Returns up to `limit` rows after `after`, ordered by key, all from one snapshot.
pub async fn query(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> crate::Result<AsOf<Vec<QueryRow>>> {
    if !query.include_measures {
        return rows_as_of(conn, query, after, limit).await;
    }
    let mut tx = conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    connect::plan_for_values(&mut tx).await?;
    let mut read = rows_as_of(&mut tx, query, after, limit).await?;
    add_measures(&mut tx, query, &mut read.rows).await?;
    tx.commit().await?;
    Ok(read)
}

/// Adds the sums of measures to rows, which are in order.
async fn add_measures(conn: &mut PgConnection, query: &UsageQuery, rows: &mut [QueryRow]) -> crate::Result<()> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
    let sums = match query.needs_events() {
        true => measures!(
            "sql/usage/query_event_measures.sql",
            conn,
            query,
            &first.key,
            &last.key,
            query.group_by.hour,
            &query.group_by_labels,
            labels_filter(&query.labels) as Option<Json<&Labels>>,
            first.key.hour,
            &first.key.labels,
            last.key.hour,
            &last.key.labels
        ),
        false => measures!("sql/usage/query_measures.sql", conn, query, &first.key, &last.key),
    };
    let numbers: HashMap<QueryKey, usize> =
        rows.iter().enumerate().map(|(number, row)| (row.key.clone(), number)).collect();
    for MeasureSum { day, month, hour, client_id, service, operation, model, subject, labels, measure, quantity } in
        sums?
    {
        let key = QueryKey { day, month, hour, client_id, service, operation, model, subject, labels };
        if let Some(number) = numbers.get(&key) {
            rows[*number].measures.insert(measure, quantity);
        }
    }
    Ok(())
}

/// The sum of a measure in one row of the answer.
struct MeasureSum {
    day: NaiveDate,
    month: NaiveDate,
    hour: DateTime<Utc>,
    client_id: String,
    service: String,
    operation: String,
    model: String,
    subject: String,
    labels: Vec<String>,
    measure: String,
    quantity: Total,
}

/// Returns up to `limit` rows after `after`, without measures. One statement reads them, so they are from one snapshot.
async fn rows_as_of(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> crate::Result<AsOf<Vec<QueryRow>>> {
    let rows = rows(&mut *conn, query, after, limit).await?;
    if let Some(first) = rows.first() {
        return Ok(AsOf { complete_as_of: first.now, rows: rows.into_iter().map(QueryRow::from).collect() });
    }
    // Without a row the time of the snapshot is unknown. Reads the time first and then queries again, so that the
    // answer is complete as of that time.
    let complete_as_of = connect::now(&mut *conn).await?;
    let rows = self::rows(&mut *conn, query, after, limit).await?.into_iter().map(QueryRow::from).collect();
    Ok(AsOf { complete_as_of, rows })
}

async fn rows(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> crate::Result<Vec<GroupedRow>> {
    if query.needs_events() {
        query_events(conn, query, after, limit).await
    } else {
        query_days(conn, query, after, limit).await
    }
}

/// A grouped row of `usage_days` or `usage_events`.
struct GroupedRow {
    /// Start of the transaction, which is before the snapshot.
    now: DateTime<Utc>,
    day: NaiveDate,
    month: NaiveDate,
    hour: DateTime<Utc>,
    client_id: String,
    service: String,
    operation: String,
    model: String,
    subject: String,
    labels: Vec<String>,
    request_count: i64,
    units: Numeric,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: Numeric,
    unpriced_event_count: i64,
    subject_count: i64,
}

impl From<GroupedRow> for QueryRow {
    fn from(row: GroupedRow) -> Self {
        let sums = sums_of!(row);
        Self {
            key: QueryKey {
                day: row.day,
                month: row.month,
                hour: row.hour,
                client_id: row.client_id,
                service: row.service,
                operation: row.operation,
                model: row.model,
                subject: row.subject,
                labels: row.labels,
            },
            sums,
            subject_count: row.subject_count,
            measures: BTreeMap::new(),
        }
    }
}

/// Queries the rollups with one of two statements that differ in one condition.
macro_rules! days {
    ($file:literal, $conn:expr, $query:expr, $after:expr, $limit:expr) => {
        sqlx::query_file_as!(
            GroupedRow,
            $file,
            &$query.client_ids,
            &$query.services,
            &$query.operations,
            &$query.models,
            $query.start,
            $query.end,
            $query.group_by.day,
            $query.group_by.month,
            $query.group_by.client,
            $query.group_by.service,
            $query.group_by.operation,
            $query.group_by.model,
            $query.unpriced_only,
            $after.is_some(),
            $after.map(|key| key.day),
            $after.map(|key| key.month),
            $after.map(|key| key.client_id.as_str()),
            $after.map(|key| key.service.as_str()),
            $after.map(|key| key.operation.as_str()),
            $after.map(|key| key.model.as_str()),
            $limit
        )
        .fetch_all($conn)
        .await
        .map_err(Into::into)
    };
}

async fn query_days(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> crate::Result<Vec<GroupedRow>> {
    if query.client_ids.is_empty() {
        days!("sql/usage/query_days.sql", conn, query, after, limit)
    } else {
        days!("sql/usage/query_client_days.sql", conn, query, after, limit)
    }
}

async fn query_events(
    conn: &mut PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> crate::Result<Vec<GroupedRow>> {
    let by = query.group_by;
    let (from, to) = (Month::of(query.start).widest_range().0, Month::of(query.end).widest_range().1);
    sqlx::query_file_as!(
        GroupedRow,
        "sql/usage/query_events.sql",
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
        to,
        labels_filter(&query.labels) as Option<Json<&Labels>>,
        by.hour,
        &query.group_by_labels,
        after.map(|key| key.hour),
        after.map(|key| &key.labels[..])
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}
