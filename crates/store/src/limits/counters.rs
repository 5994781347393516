//! What is used of limits, by period.

use super::{LimitRow, percents};
use crate::alerts;
use crate::numeric::{self, Numeric};
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::alert::AlertType;
use meterd_domain::decimal::Total;
use meterd_domain::event::Labels;
use meterd_domain::limit::Limit;
use sqlx::PgConnection;
use sqlx::types::Json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Client, limit and first day of a period.
pub type CounterKey = (Arc<str>, Arc<str>, NaiveDate);

/// What a transaction adds to a counter, of a revision of its limit.
pub type Additions = std::collections::BTreeMap<CounterKey, (i32, Total)>;

/// The counter of a limit in a period.
#[derive(Clone, Debug)]
pub struct Counter {
    pub client_id: String,
    pub limit_id: String,
    pub period_start: NaiveDate,
    pub revision: i32,
    /// `None` if it is not stored for the present revision of the limit.
    pub stored: Option<Total>,
    /// As computed from the usage. `None` if it was not computed.
    pub computed: Option<Total>,
    pub reserved: Total,
    /// The percents whose alerts are open.
    pub open_percents: BTreeSet<u16>,
}

impl Counter {
    /// Returns what is used.
    pub fn used(&self) -> Total {
        self.computed.or(self.stored).unwrap_or_default()
    }
}

struct CounterRow {
    client_id: String,
    limit_id: String,
    period_start: NaiveDate,
    revision: i32,
    stored: Option<Numeric>,
    computed: Option<Numeric>,
    reserved: Numeric,
    open_percents: Vec<i32>,
}

impl TryFrom<CounterRow> for Counter {
    type Error = crate::StoreError;

    fn try_from(row: CounterRow) -> crate::Result<Self> {
        Ok(Self {
            client_id: row.client_id,
            limit_id: row.limit_id,
            period_start: row.period_start,
            revision: row.revision,
            stored: row.stored.map(Total::from),
            computed: row.computed.map(Total::from),
            reserved: row.reserved.into(),
            open_percents: percents(&row.open_percents)?,
        })
    }
}

fn counters(rows: Vec<CounterRow>) -> crate::Result<Vec<Counter>> {
    rows.into_iter().map(Counter::try_from).collect()
}

/// Counters to read: clients, ids of limits (empty: all limits of the client), and a day of the period.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub client_ids: Vec<String>,
    pub limit_ids: Vec<String>,
    pub days: Vec<NaiveDate>,
}

impl Wanted {
    /// Adds a counter.
    pub fn push(&mut self, client_id: &str, limit_id: &str, day: NaiveDate) {
        self.client_ids.push(client_id.into());
        self.limit_ids.push(limit_id.into());
        self.days.push(day);
    }
}

/// A row of the statement: the columns of [`LimitRow`] and [`CounterRow`].
struct UsageRow {
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
    period_start: NaiveDate,
    stored: Option<Numeric>,
    computed: Option<Numeric>,
    reserved: Numeric,
    open_percents: Vec<i32>,
}

impl UsageRow {
    fn split(self) -> crate::Result<(Limit, Counter)> {
        let counter = CounterRow {
            client_id: self.client_id.clone(),
            limit_id: self.limit_id.clone(),
            period_start: self.period_start,
            revision: self.revision,
            stored: self.stored,
            computed: self.computed,
            reserved: self.reserved,
            open_percents: self.open_percents,
        };
        let limit = LimitRow {
            client_id: self.client_id,
            limit_id: self.limit_id,
            display_name: self.display_name,
            services: self.services,
            operations: self.operations,
            models: self.models,
            subjects: self.subjects,
            labels: self.labels,
            measure: self.measure,
            period: self.period,
            amount: self.amount,
            hard: self.hard,
            alert_percents: self.alert_percents,
            revision: self.revision,
            create_time: self.create_time,
            update_time: self.update_time,
        };
        Ok((limit.try_into()?, counter.try_into()?))
    }
}

/// Returns limits that are not deleted, with their counters, in order. Computes the usage of those that are not stored. With `recompute`,
/// computes the usage of all. One statement does this, so the result is from one snapshot.
pub async fn read(conn: &mut PgConnection, wanted: &Wanted, recompute: bool) -> crate::Result<Vec<(Limit, Counter)>> {
    let Wanted { client_ids, limit_ids, days } = wanted;
    let rows = sqlx::query_file_as!(UsageRow, "sql/limits/usage.sql", client_ids, limit_ids, days, recompute);
    rows.fetch_all(conn).await?.into_iter().map(UsageRow::split).collect()
}

/// Adds to the counters that are stored, and returns these. The transaction holds the locks of the months.
pub async fn add(conn: &mut PgConnection, additions: &Additions) -> crate::Result<Vec<Counter>> {
    let (mut clients, mut limits, mut starts, mut revisions, mut used) = (vec![], vec![], vec![], vec![], vec![]);
    for ((client_id, limit_id, start), (revision, added)) in additions {
        clients.push(client_id.to_string());
        limits.push(limit_id.to_string());
        starts.push(*start);
        revisions.push(*revision);
        used.push(numeric::of(*added));
    }
    let rows = sqlx::query_as!(
        CounterRow,
        r#"UPDATE limit_counters t SET used = t.used + new.used
           FROM unnest($1::text[], $2::text[], $3::date[], $4::integer[], $5::numeric[])
               AS new (client_id, limit_id, period_start, revision, used)
           WHERE t.client_id = new.client_id AND t.limit_id = new.limit_id AND t.period_start = new.period_start
             AND t.revision = new.revision
           RETURNING t.client_id, t.limit_id, t.period_start, t.revision, t.used AS "stored: Numeric",
               NULL::numeric AS "computed: Numeric", t.reserved AS "reserved: Numeric", t.open_percents"#,
        &clients,
        &limits,
        &starts,
        &revisions,
        &used
    );
    counters(rows.fetch_all(conn).await?)
}

/// Returns whether counters are stored. For an hour after the migration that added them, replicas of the previous release may record
/// usage that they do not count.
pub async fn are_stored(conn: &mut PgConnection) -> crate::Result<bool> {
    let stored = sqlx::query_scalar!(r#"SELECT now() >= previous_release_until AS "stored!" FROM deployment"#);
    stored.fetch_one(conn).await.map_err(Into::into)
}

/// Stores what is used and the open percents of counters, unless they are stored for a later revision. What is reserved stays. The
/// transaction holds the locks of the months.
pub async fn put(conn: &mut PgConnection, counters: &[(&Counter, BTreeSet<u16>)]) -> crate::Result<()> {
    if counters.is_empty() {
        return Ok(());
    }
    let text = |open: &BTreeSet<u16>| open.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let (mut clients, mut limits, mut starts, mut revisions) = (vec![], vec![], vec![], vec![]);
    let (mut used, mut open): (Vec<BigDecimal>, Vec<String>) = (vec![], vec![]);
    for (counter, open_percents) in counters {
        clients.push(counter.client_id.clone());
        limits.push(counter.limit_id.clone());
        starts.push(counter.period_start);
        revisions.push(counter.revision);
        used.push(numeric::of(counter.used()));
        open.push(text(open_percents));
    }
    sqlx::query!(
        "INSERT INTO limit_counters AS t (client_id, limit_id, period_start, revision, used, open_percents)
         SELECT client_id, limit_id, period_start, revision, used, string_to_array(open, ',')::integer[]
         FROM unnest($1::text[], $2::text[], $3::date[], $4::integer[], $5::numeric[], $6::text[])
             AS new (client_id, limit_id, period_start, revision, used, open)
         ON CONFLICT (client_id, limit_id, period_start) DO UPDATE SET
             revision = excluded.revision, used = excluded.used, open_percents = excluded.open_percents
             WHERE t.revision <= excluded.revision",
        &clients,
        &limits,
        &starts,
        &revisions,
        &used,
        &open
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the counters of a client whose periods begin from `first` to before `end`: limit and first day. `limit_id` is empty for all
/// limits.
pub async fn stored_between(
    conn: &mut PgConnection,
    client_id: &str,
    limit_id: &str,
    first: NaiveDate,
    end: NaiveDate,
) -> crate::Result<Vec<(String, NaiveDate)>> {
    let rows = sqlx::query!(
        "SELECT limit_id, period_start FROM limit_counters
         WHERE client_id = $1 AND ($2 = '' OR limit_id = $2) AND period_start >= $3 AND period_start < $4
         ORDER BY limit_id, period_start",
        client_id,
        limit_id,
        first,
        end
    );
    Ok(rows.fetch_all(conn).await?.into_iter().map(|row| (row.limit_id, row.period_start)).collect())
}

/// Returns the first days of the periods of a limit that have open alerts.
pub async fn periods_with_alerts(
    conn: &mut PgConnection,
    client_id: &str,
    limit_id: &str,
) -> crate::Result<Vec<NaiveDate>> {
    sqlx::query_scalar!(
        "SELECT period_start FROM limit_counters
         WHERE client_id = $1 AND limit_id = $2 AND open_percents <> '{}' ORDER BY period_start",
        client_id,
        limit_id
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Deletes the counters of a deleted limit.
pub async fn delete(conn: &mut PgConnection, client_id: &str, limit_id: &str) -> crate::Result<()> {
    sqlx::query!("DELETE FROM limit_counters WHERE client_id = $1 AND limit_id = $2", client_id, limit_id)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the ids of the open alerts of a client about percents of limits: for each, the limit, the first day of the period, and the
/// percent.
pub async fn open_alerts(
    conn: &mut PgConnection,
    client_id: &str,
    wanted: &[(&str, NaiveDate, u16)],
) -> crate::Result<Vec<String>> {
    let (services, periods): (Vec<String>, Vec<NaiveDate>) =
        wanted.iter().map(|(limit_id, start, percent)| (alerts::limit_key(limit_id, *percent), *start)).unzip();
    sqlx::query_scalar!(
        "SELECT a.alert_id FROM alerts a
         JOIN unnest($2::text[], $3::date[]) AS w (service, period) ON a.service = w.service AND a.period = w.period
         WHERE a.client_id = $1 AND a.type = $4 AND a.resolve_time IS NULL",
        client_id,
        &services,
        &periods,
        i16::from(AlertType::Limit)
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the ids of all open alerts about a limit.
pub async fn all_open_alerts(conn: &mut PgConnection, client_id: &str, limit_id: &str) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT alert_id FROM alerts
         WHERE client_id = $1 AND type = $3 AND resolve_time IS NULL AND limit_facts ->> 'limit_id' = $2",
        client_id,
        limit_id,
        i16::from(AlertType::Limit)
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}
