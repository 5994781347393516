//! What the alerts about unpriced events are raised from.

use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::alert::{AlertType, Severity, UnpricedFacts, UnpricedSample};
use meterd_domain::event::UnpricedReason;
use meterd_domain::period::Month;
use meterd_domain::rollup::MonthServiceKey;
use sqlx::PgConnection;
use std::collections::HashMap;
use std::sync::Arc;

/// Maximum number of events from which the models and reasons of an alert are read.
const SAMPLE_EVENTS_MAX: i64 = 10_000;

/// Services of months of clients: one vector for each parameter of the statements.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    pub clients: Vec<String>,
    /// First days.
    pub months: Vec<NaiveDate>,
    pub services: Vec<String>,
}

impl Keys {
    /// Adds a key.
    pub fn push(&mut self, (client_id, month, service): &MonthServiceKey) {
        self.clients.push(client_id.to_string());
        self.months.push(month.first_day());
        self.services.push(service.to_string());
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

impl<'k> FromIterator<&'k MonthServiceKey> for Keys {
    fn from_iter<I: IntoIterator<Item = &'k MonthServiceKey>>(keys: I) -> Self {
        let mut all = Self::default();
        keys.into_iter().for_each(|key| all.push(key));
        all
    }
}

/// Returns the id of the open alert of each key, in order. `None`: no alert is open.
pub async fn open(conn: &mut PgConnection, keys: &Keys) -> crate::Result<Vec<Option<String>>> {
    sqlx::query_scalar!(
        r#"SELECT a.alert_id AS "alert_id?"
           FROM unnest($1::text[], $2::date[], $3::text[]) WITH ORDINALITY AS wanted (client_id, month, service, number)
           LEFT JOIN alerts a ON a.client_id = wanted.client_id AND a.type = $4 AND a.service = wanted.service
               AND a.severity = $5 AND a.period = wanted.month AND a.resolve_time IS NULL
           ORDER BY number"#,
        &keys.clients,
        &keys.months,
        &keys.services,
        i16::from(AlertType::Unpriced),
        i16::from(Severity::Warning)
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the number of unpriced events of each key, in order. The rows of the months are locked and exist.
pub async fn counts(conn: &mut PgConnection, keys: &Keys) -> crate::Result<Vec<i64>> {
    // The statement joins the rows of the months first: see `rollups::month_contexts`.
    sqlx::query_scalar!(
        r#"SELECT COALESCE(u.event_count, 0)::bigint AS "event_count!"
           FROM unnest($1::text[], $2::date[], $3::text[]) WITH ORDINALITY AS wanted (client_id, month, service, number)
           JOIN usage_months m USING (client_id, month)
           CROSS JOIN LATERAL (
               SELECT sum(s.unpriced_event_count) AS event_count FROM all_usage_month_services s
               WHERE s.client_id = m.client_id AND s.month = m.month AND s.service = wanted.service
           ) AS u
           ORDER BY number"#,
        &keys.clients,
        &keys.months,
        &keys.services
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the services of a client's months that have unpriced events.
pub async fn of_months(
    conn: &mut PgConnection,
    client_id: &str,
    months: &[Month],
) -> crate::Result<Vec<UnpricedFacts>> {
    let months: Vec<NaiveDate> = months.iter().map(|month| month.first_day()).collect();
    let rows = sqlx::query!(
        r#"SELECT month AS "month!", service AS "service!", sum(unpriced_event_count)::bigint AS "event_count!"
           FROM all_usage_month_services WHERE client_id = $1 AND month = ANY($2)
           GROUP BY month, service HAVING sum(unpriced_event_count) > 0 ORDER BY 1, 2"#,
        client_id,
        &months
    )
    .fetch_all(conn)
    .await?;
    let facts = |(service, month, event_count)| UnpricedFacts { service, month: Month::of(month), event_count };
    Ok(rows.into_iter().map(|row| facts((row.service, row.month, row.event_count))).collect())
}

/// Returns the models and reasons of the last [`SAMPLE_EVENTS_MAX`] unpriced events of a service in a client's month.
pub async fn sample(
    conn: &mut PgConnection,
    client_id: &str,
    month: Month,
    service: &str,
) -> crate::Result<UnpricedSample> {
    let (start, end): (DateTime<Utc>, DateTime<Utc>) = month.widest_range();
    let rows = sqlx::query!(
        r#"SELECT model, unpriced_reason AS "unpriced_reason!", count(*) AS "event_count!"
           FROM (
               SELECT model, unpriced_reason FROM usage_events
               WHERE service = $1 AND client_id = $2 AND event_time >= $3 AND event_time < $4 AND day >= $5 AND day <= $6
                 AND unpriced_reason IS NOT NULL AND void_time IS NULL
               ORDER BY event_time DESC, event_seq DESC LIMIT $7
           ) AS last_events
           GROUP BY model, unpriced_reason"#,
        service,
        client_id,
        start,
        end,
        month.first_day(),
        month.last_day(),
        SAMPLE_EVENTS_MAX
    )
    .fetch_all(conn)
    .await?;
    let mut models: HashMap<String, Arc<str>> = HashMap::new();
    let mut sample = UnpricedSample::default();
    for row in rows {
        let model = models.entry(row.model).or_insert_with_key(|name| name.as_str().into()).clone();
        sample.add(&model, UnpricedReason::from_number(row.unpriced_reason), row.event_count as u64);
    }
    Ok(sample)
}
