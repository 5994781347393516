//! Reads sums of months, ranges of days and the whole platform.
//!
//! Each answer is from one snapshot. Its `complete_as_of` is `now()`, the start of the transaction. The snapshot is
//! taken later, so it includes everything that was acknowledged before that time.

pub mod adjustments;
pub mod changes;
pub mod event_days;
pub mod events;
pub mod explain;
pub mod export;
pub mod generations;
pub mod holders;
pub mod keys;
pub mod partitions;
pub mod pending;
pub mod query;
pub mod record;
pub mod reprice;
pub mod rollups;
pub mod summaries;
pub mod summary_totals;
pub mod tiers;
pub mod verify;
pub mod verify_adjustments;
pub mod verify_keys;

use crate::alerts::policies::Policies;
use crate::numeric::Numeric;
use crate::sums::sums_of;
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::TryStreamExt;
use meterd_domain::decimal::Total;
use meterd_domain::forecast::{DayCost, History};
use meterd_domain::period::Month;
use meterd_domain::policy::Policy;
use meterd_domain::rollup::{OperationSums, RangeSums, Sums, by_cost};
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeMap;

/// An answer and the time up to which it is complete.
pub struct AsOf<T> {
    pub complete_as_of: DateTime<Utc>,
    pub rows: T,
}

/// Sums of one service.
pub struct ServiceSums {
    pub service: String,
    pub sums: Sums,
}

/// The usage of a client, and the client's time zone from the same snapshot.
pub struct OfClient<T> {
    /// IANA time zone name.
    pub time_zone: String,
    pub usage: T,
}

/// The usage of months.
pub struct MonthsUsage {
    /// Highest cost first.
    pub services: Vec<(Month, ServiceSums)>,
    /// Sums of measures that are not in [`Sums`].
    pub measures: BTreeMap<(Month, String), Total>,
    /// What a forecast needs. Empty, and the default policy, if it was not asked for.
    pub history: History,
    pub policy: Policy,
}

/// The days that a forecast needs.
#[derive(Clone, Copy, Debug)]
pub struct HistoryDays<'a> {
    pub first: NaiveDate,
    pub last: NaiveDate,
    /// The services that are charged once a month.
    pub recurring_services: &'a [String],
}

/// Returns a client's months from `first` to `last`, both included, by service, and what a forecast of these days needs. `None`
/// if the client does not exist.
///
/// The rows of a service are added up here, because PostgreSQL needs longer to group a few rows than to send them.
pub async fn months(
    conn: &mut PgConnection,
    client_id: &str,
    first: Month,
    last: Month,
    days: Option<HistoryDays<'_>>,
) -> crate::Result<Option<AsOf<OfClient<MonthsUsage>>>> {
    let (first, last) = (first.first_day(), last.first_day());
    let (first_day, last_day) = days.map(|days| (days.first, days.last)).unzip();
    let recurring_services = days.map_or(&[][..], |days| days.recurring_services);
    let mut rows =
        sqlx::query_file!("sql/usage/months.sql", client_id, first, last, first_day, last_day, recurring_services)
            .fetch(conn);
    let (mut client, mut services) = (None, BTreeMap::<(Month, String), Sums>::new());
    let (mut history, mut policies) = (History::default(), vec![]);
    let mut measures = BTreeMap::<(Month, String), Total>::new();
    while let Some(row) = rows.try_next().await? {
        match (row.day, row.month, row.service, row.measure, row.policy) {
            (Some(day), ..) => {
                let (varying, recurring) = (Total::from(row.cost), Total::from(row.units));
                history.days.insert(day, DayCost { varying, recurring, has_usage: row.request_count > 0 });
            }
            (_, Some(month), Some(service), ..) => {
                *services.entry((Month::of(month), service)).or_default() += sums_of!(row);
            }
            (_, Some(month), None, Some(measure), _) => {
                *measures.entry((Month::of(month), measure)).or_default() += Total::from(row.units);
            }
            (_, _, Some(policy_of), _, Some(policy)) => policies.push((policy_of, policy)),
            _ => {
                client = row.now.zip(row.time_zone);
                history.used_before = row.request_count > 0;
            }
        }
    }
    let policy = Policies::of_rows(policies)?.of(client_id).clone();
    let services = services.into_iter().map(|((month, service), sums)| (month, ServiceSums { service, sums }));
    let usage = MonthsUsage { services: by_cost(services.collect(), |(_, row)| &row.sums), measures, history, policy };
    Ok(client.map(|(complete_as_of, time_zone)| AsOf { complete_as_of, rows: OfClient { time_zone, usage } }))
}

/// Returns the sums of a client's days from `start` to `end`, both included, with up to `operations_max` operations. `None`
/// if the client does not exist.
///
/// PostgreSQL groups the rows by day and by operation. Sums of services are added up here.
pub async fn range(
    conn: &mut PgConnection,
    client_id: &str,
    start: NaiveDate,
    end: NaiveDate,
    operations_max: usize,
) -> crate::Result<Option<AsOf<OfClient<RangeSums>>>> {
    let mut rows = sqlx::query_file!("sql/usage/range.sql", client_id, start, end).fetch(conn);
    let (mut client, mut usage) = (None, RangeSums::new(operations_max));
    while let Some(row) = rows.try_next().await? {
        let sums = sums_of!(row);
        match (row.day, row.service, row.operation, row.measure) {
            (Some(day), ..) => usage.add_day(day, sums),
            (None, Some(service), Some(operation), _) => {
                usage.add_operation(OperationSums { service, operation, sums });
            }
            (None, None, None, Some(measure)) => drop(usage.measures.insert(measure, sums.units)),
            _ => client = row.now.zip(row.time_zone),
        }
    }
    Ok(client.map(|(complete_as_of, time_zone)| AsOf { complete_as_of, rows: OfClient { time_zone, usage } }))
}

/// Returns up to `limit` months with usage, newest first: those of one client, or of all clients if `client_id` is
/// `None`.
pub async fn latest_months(pool: &PgPool, client_id: Option<&str>, limit: i64) -> crate::Result<Vec<Month>> {
    let months = sqlx::query_scalar!(
        "SELECT DISTINCT month FROM usage_months WHERE ($1::text IS NULL OR client_id = $1) AND (request_count > 0 OR cost <> 0)
         ORDER BY month DESC LIMIT $2",
        client_id,
        limit
    );
    Ok(months.fetch_all(pool).await?.into_iter().map(Month::of).collect())
}

/// Totals of all clients in a month.
pub struct Platform {
    pub client_count: i64,
    pub active_client_count: i64,
    pub services: Vec<ServiceSums>,
}

/// Returns the totals of the platform in a month.
pub async fn platform(pool: &PgPool, month: Month) -> crate::Result<AsOf<Platform>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let counts = sqlx::query!(
        r#"SELECT now() AS "now!", (SELECT count(*) FROM clients) AS "client_count!",
               (SELECT count(*) FROM usage_months WHERE month = $1 AND request_count > 0) AS "active_client_count!""#,
        month.first_day()
    )
    .fetch_one(&mut *tx)
    .await?;
    let rows = sqlx::query!(
        r#"SELECT service AS "service!", sum(request_count)::bigint AS "request_count!", sum(units) AS "units!: Numeric",
               sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
               sum(cached_input_tokens)::bigint AS "cached_input_tokens!", sum(cost) AS "cost!: Numeric",
               sum(unpriced_event_count)::bigint AS "unpriced_event_count!"
           FROM all_usage_month_services WHERE month = $1 AND (request_count > 0 OR cost <> 0)
           GROUP BY service ORDER BY sum(cost) DESC, service"#,
        month.first_day()
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let services = rows
        .into_iter()
        .map(|row| {
            let sums = sums_of!(row);
            ServiceSums { service: row.service, sums }
        })
        .collect();
    Ok(AsOf {
        complete_as_of: counts.now,
        rows: Platform { client_count: counts.client_count, active_client_count: counts.active_client_count, services },
    })
}
