//! Alerts. They are unique per client, type, service, severity and period, and those about limits per limit and percent.

pub mod channels;
pub mod feed;
pub mod notifications;
pub mod outbox;
pub mod policies;
pub mod silence;
pub mod unpriced;

use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::alert::{Alert, AlertSet, AlertType, Finding, Severity};
use meterd_domain::limit::LimitFinding;
use meterd_domain::period::Month;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeMap;

/// A row of `alerts`.
struct AlertRow {
    client_id: String,
    alert_id: String,
    kind: i16,
    severity: i16,
    service: String,
    period: NaiveDate,
    current_value: BigDecimal,
    previous_value: Option<BigDecimal>,
    threshold: BigDecimal,
    percent: Option<BigDecimal>,
    projected: Option<BigDecimal>,
    message: String,
    raise_time: DateTime<Utc>,
    raise_count: i32,
    acknowledge_time: Option<DateTime<Utc>>,
    acknowledged_by: String,
    resolve_time: Option<DateTime<Utc>>,
    limit_facts: Option<Json<LimitFinding>>,
}

impl TryFrom<AlertRow> for Alert {
    type Error = crate::StoreError;

    fn try_from(row: AlertRow) -> crate::Result<Self> {
        let unknown = |error: meterd_domain::alert::UnknownNumber| crate::StoreError::inconsistent(error);
        let total = |value: &Option<BigDecimal>| value.as_ref().map(numeric::total).transpose();
        Ok(Self {
            finding: Finding {
                kind: AlertType::try_from(row.kind).map_err(unknown)?,
                severity: Severity::try_from(row.severity).map_err(unknown)?,
                // Of an alert about a limit, it is the key.
                service: if row.limit_facts.is_some() { String::new() } else { row.service },
                period: row.period,
                current: numeric::total(&row.current_value)?,
                previous: total(&row.previous_value)?,
                threshold: numeric::total(&row.threshold)?,
                percent: total(&row.percent)?,
                projected: total(&row.projected)?,
                limit: row.limit_facts.map(|limit| Box::new(limit.0)),
            },
            client_id: row.client_id,
            alert_id: row.alert_id,
            message: row.message,
            raise_time: row.raise_time,
            raise_count: row.raise_count,
            acknowledge_time: row.acknowledge_time,
            acknowledged_by: row.acknowledged_by,
            resolve_time: row.resolve_time,
        })
    }
}

/// Returns the service of an alert about a limit in the table, which makes the alerts about percents of a limit different alerts.
pub(crate) fn limit_key(limit_id: &str, percent: u16) -> String {
    format!("{limit_id}/{percent}")
}

/// A finding to raise as an alert.
pub struct NewAlert {
    pub client_id: String,
    pub finding: Finding,
    pub message: String,
}

/// Raises alerts. Returns those that were not already open. For an hour after a migration that added types of alerts, no alerts about
/// unpriced events, silent clients and limits are raised.
///
/// The transaction must hold the locks of their months. The raise time is the time of the clock, not the start of the
/// transaction, so the order in which a client's alerts are raised is the order of their times.
pub async fn raise(conn: &mut PgConnection, new: &[NewAlert]) -> crate::Result<Vec<Alert>> {
    fn column<T>(new: &[NewAlert], of: impl Fn(&NewAlert) -> T) -> Vec<T> {
        new.iter().map(of).collect()
    }
    let number = |value: Option<meterd_domain::decimal::Total>| value.map(numeric::of);
    let rows = sqlx::query_file_as!(
        AlertRow,
        "sql/alerts/raise.sql",
        &column(new, |alert| alert.client_id.clone()),
        &column(new, |_| format!("{:032x}", rand::random::<u128>())),
        &column(new, |alert| i16::from(alert.finding.kind)),
        &column(new, |alert| i16::from(alert.finding.severity)),
        &column(new, |alert| match &alert.finding.limit {
            Some(limit) => limit_key(&limit.limit_id, limit.percent),
            None => alert.finding.service.clone(),
        }),
        &column(new, |alert| alert.finding.period),
        &column(new, |alert| numeric::of(alert.finding.current)),
        &column(new, |alert| number(alert.finding.previous)) as &[Option<BigDecimal>],
        &column(new, |alert| numeric::of(alert.finding.threshold)),
        &column(new, |alert| number(alert.finding.percent)) as &[Option<BigDecimal>],
        &column(new, |alert| number(alert.finding.projected)) as &[Option<BigDecimal>],
        &column(new, |alert| alert.message.clone()),
        &column(new, |alert| alert
            .finding
            .limit
            .as_ref()
            .map(|limit| serde_json::to_string(&**limit).expect("texts and numbers are JSON")))
            as &[Option<String>]
    )
    .fetch_all(&mut *conn)
    .await?;
    let alerts = rows.into_iter().map(Alert::try_from).collect::<crate::Result<Vec<_>>>()?;
    update_months(conn, &alerts).await?;
    Ok(alerts)
}

/// Returns a client's open alerts about these months and anomalies of `day` and later days. With `with_silence`, also returns the open
/// alerts about its silence.
pub async fn open(
    conn: &mut PgConnection,
    client_id: &str,
    months: &[Month],
    day: NaiveDate,
    with_silence: bool,
) -> crate::Result<Vec<Alert>> {
    let months: Vec<NaiveDate> = months.iter().map(|month| month.first_day()).collect();
    let of_days = AlertType::ALL.iter().filter(|kind| kind.may_be_of_day());
    let of_days: Vec<i16> = of_days.map(|kind| (*kind).into()).collect();
    let rows = sqlx::query_as!(
        AlertRow,
        r#"SELECT client_id, alert_id, type AS kind, severity, service, period, current_value, previous_value, threshold,
             percent, projected, message, raise_time, raise_count, acknowledge_time, acknowledged_by, resolve_time,
             limit_facts AS "limit_facts: Json<LimitFinding>"
         FROM alerts
         WHERE client_id = $1 AND resolve_time IS NULL
           AND ((type <> ALL($4) AND period = ANY($2)) OR (type = $5 AND period >= $3) OR (type = $6 AND $7))"#,
        client_id,
        &months,
        day,
        &of_days,
        i16::from(AlertType::Anomaly),
        i16::from(AlertType::Silence),
        with_silence
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Alert::try_from).collect()
}

/// Resolves the alerts that are open and returns them. The transaction must hold the locks of their months.
pub async fn resolve(conn: &mut PgConnection, client_id: &str, alert_ids: &[String]) -> crate::Result<Vec<Alert>> {
    let rows = sqlx::query_as!(
        AlertRow,
        r#"UPDATE alerts SET resolve_time = clock_timestamp()
         WHERE client_id = $1 AND alert_id = ANY($2) AND resolve_time IS NULL
         RETURNING client_id, alert_id, type AS kind, severity, service, period, current_value, previous_value, threshold,
             percent, projected, message, raise_time, raise_count, acknowledge_time, acknowledged_by, resolve_time,
             limit_facts AS "limit_facts: Json<LimitFinding>""#,
        client_id,
        alert_ids
    )
    .fetch_all(&mut *conn)
    .await?;
    let alerts = rows.into_iter().map(Alert::try_from).collect::<crate::Result<Vec<_>>>()?;
    update_months(conn, &alerts).await?;
    Ok(alerts)
}

/// Updates the sets of raised and open alerts in the month rows, and resets their alert bounds, which depend on them.
async fn update_months(conn: &mut PgConnection, alerts: &[Alert]) -> crate::Result<()> {
    let mut bits: BTreeMap<(&str, NaiveDate), (i32, i32, i32)> = BTreeMap::new();
    for alert in alerts.iter().filter(|alert| alert.finding.kind.is_of_month_cost()) {
        let AlertSet(bit) = AlertSet::of(alert.finding.kind, alert.finding.severity);
        let (raised, opened, closed) = bits.entry((&alert.client_id, alert.finding.period)).or_default();
        *raised |= bit;
        *if alert.resolve_time.is_none() { opened } else { closed } |= bit;
    }
    if bits.is_empty() {
        return Ok(());
    }
    let clients: Vec<String> = bits.keys().map(|(client_id, _)| client_id.to_string()).collect();
    let months: Vec<NaiveDate> = bits.keys().map(|(_, month)| *month).collect();
    let raised: Vec<i32> = bits.values().map(|bits| bits.0).collect();
    let opened: Vec<i32> = bits.values().map(|bits| bits.1).collect();
    let closed: Vec<i32> = bits.values().map(|bits| bits.2).collect();
    sqlx::query!(
        "UPDATE usage_months t SET raised_alerts = t.raised_alerts | new.raised,
             open_alerts = (t.open_alerts | new.opened) & ~new.closed, alert_bound = 0
         FROM unnest($1::text[], $2::date[], $3::int[], $4::int[], $5::int[]) AS new (client_id, month, raised, opened, closed)
         WHERE t.client_id = new.client_id AND t.month = new.month",
        &clients,
        &months,
        &raised,
        &opened,
        &closed
    )
    .execute(conn)
    .await
    .map(drop).map_err(Into::into)
}

/// Returns one alert. `None` if it does not exist.
pub async fn find(conn: &mut PgConnection, alert_id: &str) -> crate::Result<Option<Alert>> {
    let row = sqlx::query_as!(
        AlertRow,
        r#"SELECT client_id, alert_id, type AS kind, severity, service, period, current_value, previous_value, threshold,
             percent, projected, message, raise_time, raise_count, acknowledge_time, acknowledged_by, resolve_time,
             limit_facts AS "limit_facts: Json<LimitFinding>"
         FROM alerts WHERE alert_id = $1"#,
        alert_id
    )
    .fetch_optional(conn)
    .await?;
    row.map(Alert::try_from).transpose()
}

/// Acknowledges an alert and returns it. `None` if it is already acknowledged or does not exist.
pub async fn acknowledge(conn: &mut PgConnection, alert_id: &str, who: &str) -> crate::Result<Option<Alert>> {
    let row = sqlx::query_as!(
        AlertRow,
        r#"UPDATE alerts SET acknowledge_time = clock_timestamp(), acknowledged_by = $2 WHERE alert_id = $1 AND acknowledge_time IS NULL
         RETURNING client_id, alert_id, type AS kind, severity, service, period, current_value, previous_value, threshold,
             percent, projected, message, raise_time, raise_count, acknowledge_time, acknowledged_by, resolve_time,
             limit_facts AS "limit_facts: Json<LimitFinding>""#,
        alert_id,
        who
    )
    .fetch_optional(conn)
    .await?;
    row.map(Alert::try_from).transpose()
}

/// Which alerts to list. An empty filter matches everything.
#[derive(Default)]
pub struct AlertFilter {
    pub client_ids: Vec<String>,
    pub kinds: Vec<i16>,
    pub min_severity: i16,
    pub unacknowledged_only: bool,
    pub open_only: bool,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
}

/// Returns up to `limit` alerts after a cursor (raise time and alert id), newest first.
pub async fn list(
    pool: &PgPool,
    filter: &AlertFilter,
    after: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> crate::Result<Vec<Alert>> {
    let rows = sqlx::query_as!(
        AlertRow,
        r#"SELECT client_id, alert_id, type AS kind, severity, service, period, current_value, previous_value, threshold,
             percent, projected, message, raise_time, raise_count, acknowledge_time, acknowledged_by, resolve_time,
             limit_facts AS "limit_facts: Json<LimitFinding>"
         FROM alerts
         WHERE (cardinality($1::text[]) = 0 OR client_id = ANY($1)) AND (cardinality($2::smallint[]) = 0 OR type = ANY($2))
           AND severity >= $3 AND (NOT $4 OR acknowledge_time IS NULL) AND (NOT $5 OR resolve_time IS NULL)
           AND raise_time >= COALESCE($6, '-infinity'::timestamptz) AND raise_time < COALESCE($7, 'infinity'::timestamptz)
           AND ($8::timestamptz IS NULL OR (raise_time, alert_id) < ($8, $9))
         ORDER BY raise_time DESC, alert_id DESC LIMIT $10"#,
        &filter.client_ids,
        &filter.kinds,
        filter.min_severity,
        filter.unacknowledged_only,
        filter.open_only,
        filter.start_time,
        filter.end_time,
        after.map(|(time, _)| time),
        after.map_or("", |(_, alert_id)| alert_id),
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Alert::try_from).collect()
}
