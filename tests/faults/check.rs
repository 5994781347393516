//! Checks of the database after every scenario.

use crate::journal::{Journal, number_of};
use crate::run::grouped;
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use meterd::cli::verify::verify_all;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::EventId;
use meterd_store::database::connect::allow_long_statements;
use sqlx::{PgPool, Postgres, Row, Transaction};
use std::time::Duration;

/// Maximum time between two statements of a transaction.
const IDLE_MAX: &str = "1 second";

/// The counts that were checked.
pub struct Checked {
    pub acknowledged: usize,
    pub recorded: usize,
    lost: usize,
    twice: usize,
    alerts: i64,
    /// Generations of idempotency keys that were closed.
    pub closed_generations: i64,
}

/// Compares the journal, the events, all sums, the alerts and the feed with each other.
pub async fn check(pool: &PgPool, journal: &Journal) -> Checked {
    assert_no_open_transaction(pool).await;
    let (acknowledged, disagreeing) = journal.read();
    assert_eq!(disagreeing, 0, "acknowledgements of one key name different events");
    let mut seen = vec![false; acknowledged.len()];
    let (mut recorded, mut twice, mut other, mut lost) = (0, 0, 0, 0);
    let mut tx = patient(pool).await;
    let mut rows =
        sqlx::query("SELECT idempotency_key, event_time, event_seq, charge::text AS charge FROM usage_events")
            .fetch(&mut *tx);
    while let Some(row) = rows.try_next().await.unwrap() {
        let number = number_of(row.get("idempotency_key")) as usize;
        recorded += 1;
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        twice += usize::from(std::mem::replace(&mut seen[number], true));
        let id = EventId { time: row.get::<DateTime<Utc>, _>("event_time"), seq: row.get("event_seq") };
        let charge = Decimal::parse(row.get("charge")).unwrap();
        other += usize::from(acknowledged.get(number).copied().flatten().is_some_and(|answer| !answer.is(id, charge)));
    }
    drop(rows);
    drop(tx);
    for answer in acknowledged.iter().flatten() {
        lost += usize::from(!seen[answer.number as usize]);
    }
    assert_eq!(
        (lost, twice, other),
        (0, 0, 0),
        "events were lost, counted twice, or differ from the acknowledged ones"
    );
    assert_sums_match_events(pool).await;
    let verified = verify_all(pool, None, None).await.unwrap();
    assert_eq!((verified.events as usize, verified.differences), (recorded, 0));
    let alerts = assert_alerts_match_months(pool).await;
    let closed = sqlx::query_scalar("SELECT count(*) FROM key_generations");
    let closed_generations = closed.fetch_one(pool).await.unwrap();
    let acknowledged = acknowledged.iter().flatten().count();
    Checked { acknowledged, recorded, lost, twice, alerts, closed_generations }
}

/// Checks that no transaction is open without working.
pub async fn assert_no_open_transaction(pool: &PgPool) {
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'
                AND state_change < clock_timestamp() - $1::interval";
    let idle: i64 = sqlx::query_scalar(idle).bind(IDLE_MAX).fetch_one(pool).await.unwrap();
    assert_eq!(idle, 0, "connections idle in transaction");
}

/// Begins a transaction without a statement timeout, because a long run records millions of events.
async fn patient(pool: &PgPool) -> Transaction<'static, Postgres> {
    let mut tx = pool.begin().await.unwrap();
    allow_long_statements(&mut tx).await.unwrap();
    tx
}

/// Checks that the counts and amounts of events, keys, days, services and months are equal.
async fn assert_sums_match_events(pool: &PgPool) {
    let mut tx = patient(pool).await;
    let counts: Vec<i64> = sqlx::query_scalar(
        "SELECT count(*) FROM usage_events UNION ALL SELECT count(*) FROM idempotency_keys
         UNION ALL SELECT COALESCE(sum(request_count), 0)::bigint FROM all_usage_days
         UNION ALL SELECT COALESCE(sum(request_count), 0)::bigint FROM all_usage_month_services
         UNION ALL SELECT COALESCE(sum(request_count), 0)::bigint FROM usage_months",
    )
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    assert_eq!(counts, vec![counts[0]; 5], "events, keys, days, months of services, months");
    let amounts: Vec<BigDecimal> = sqlx::query_scalar(
        "SELECT COALESCE(sum(charge), 0) FROM usage_events UNION ALL SELECT COALESCE(sum(cost), 0) FROM all_usage_days
         UNION ALL SELECT COALESCE(sum(cost), 0) FROM all_usage_month_services
         UNION ALL SELECT COALESCE(sum(cost), 0) FROM usage_months",
    )
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    assert_eq!(amounts, vec![amounts[0].clone(); 4], "events, days, months of services, months");
}

/// Checks that every month has exactly the alert of its highest reached threshold, that each alert is in the feed once,
/// and that the feed has no gaps. Returns the number of alerts.
async fn assert_alerts_match_months(pool: &PgPool) -> i64 {
    let row = sqlx::query(
        // Read first, because Citus does not join distributed tables with local ones.
        "WITH all_months AS MATERIALIZED (
             SELECT client_id, month, cost FROM usage_months
         ), lines AS (
             SELECT p.client_id, (p.policy->>'monthly_warning')::numeric AS warning,
                    (p.policy->>'monthly_critical')::numeric AS critical FROM alert_policies p
         ), months AS (
             SELECT m.cost, COALESCE(own.warning, base.warning) AS warning_line,
                    COALESCE(own.critical, base.critical) AS critical_line,
                    EXISTS (SELECT FROM alerts a WHERE (a.client_id, a.period, type, severity) = (m.client_id, m.month, 1, 2)) AS critical,
                    EXISTS (SELECT FROM alerts a WHERE (a.client_id, a.period, type, severity) = (m.client_id, m.month, 1, 1)) AS warning
             FROM all_months m JOIN lines base ON base.client_id = ''
             LEFT JOIN lines own ON own.client_id = m.client_id
         )
         SELECT (SELECT count(*) FROM months WHERE critical <> (cost >= critical_line) OR (warning AND cost < warning_line)
                     OR (cost >= warning_line AND NOT warning AND NOT critical)) AS wrong,
                (SELECT count(*) FROM alerts) AS alerts,
                (SELECT count(DISTINCT alert->>'alert_id') FROM alert_feed) AS in_feed,
                (SELECT count(*) FROM alert_feed) AS entries, (SELECT COALESCE(max(sequence), 0) FROM alert_feed) AS last,
                (SELECT sequence FROM alert_feed_counter) AS counter",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let count = |name: &str| row.get::<i64, _>(name);
    assert_eq!(count("wrong"), 0, "months have alerts that do not match their cost");
    let counts = [count("in_feed"), count("entries"), count("last"), count("counter")];
    assert_eq!(counts, [count("alerts"); 4], "the feed does not contain each alert once without gaps");
    count("alerts")
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { acknowledged, recorded, lost, twice, alerts, closed_generations } = self;
        let [acknowledged, recorded] = [*acknowledged, *recorded].map(grouped);
        write!(
            f,
            "{acknowledged} acknowledged, {recorded} recorded, {lost} lost, {twice} counted twice, {alerts} alerts, \
             {closed_generations} generations of keys closed"
        )
    }
}
