//! Reads recorded events.

use crate::numeric;
use crate::usage::AsOf;
use crate::usage::keys::charge;
use crate::usage::tiers;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, EventId, Labels, UsageEvent};
use meterd_domain::measures::Measures;
use meterd_domain::period::Month;
use meterd_domain::tiers::EventTiers;
use sqlx::PgPool;
use sqlx::types::Json;

/// A recorded event.
#[derive(Clone, Debug)]
pub struct RecordedEvent {
    pub id: EventId,
    pub event: UsageEvent,
    /// Day in the time zone of the client.
    pub day: NaiveDate,
    pub charge: Charge,
    pub tiers: RecordedTiers,
    /// When the event was voided. A voided event counts in no sum.
    pub void_time: Option<DateTime<Utc>>,
    pub record_time: DateTime<Utc>,
}

/// What a recorded event has to do with tiers.
#[derive(Clone, Debug, Default)]
pub struct RecordedTiers {
    /// The month in whose tiers the event counts, or counted.
    pub month: Option<Month>,
    /// The part of the charge that is computed by tiers.
    pub current: Option<EventTiers>,
    /// What remains in the cost of tiers that the event does not count in any more.
    pub residue: Decimal,
}

/// A row of `usage_events`.
pub struct EventRow {
    pub client_id: String,
    pub event_time: DateTime<Utc>,
    pub event_seq: i64,
    pub day: NaiveDate,
    pub service: String,
    pub operation: String,
    pub model: String,
    pub units: BigDecimal,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub amount: Option<BigDecimal>,
    pub charge: Option<BigDecimal>,
    pub price_id: Option<i64>,
    pub unpriced_reason: Option<i16>,
    pub subject: String,
    pub external_id: String,
    pub idempotency_key: String,
    pub metadata: Option<String>,
    pub service_tier: Option<String>,
    /// The measures that have no column, as JSON.
    pub measures: Option<String>,
    pub reported_cost: Option<BigDecimal>,
    /// As JSON.
    pub labels: Option<String>,
    pub tier_month: Option<NaiveDate>,
    pub tier_charge: Option<BigDecimal>,
    /// As JSON.
    pub tier_uses: Option<String>,
    pub tier_residue: Option<BigDecimal>,
    pub void_time: Option<DateTime<Utc>>,
    pub record_time: DateTime<Utc>,
}

/// Which events to list. An empty filter matches everything.
pub struct EventFilter<'a> {
    pub client_id: &'a str,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    pub services: &'a [String],
    pub operations: &'a [String],
    pub models: &'a [String],
    pub subjects: &'a [String],
    pub unpriced_only: bool,
    /// Only events that have all of these labels.
    pub labels: &'a Labels,
    pub price_id: Option<i64>,
}

impl TryFrom<EventRow> for RecordedEvent {
    type Error = crate::StoreError;

    fn try_from(row: EventRow) -> crate::Result<Self> {
        let without_charge = || crate::StoreError::inconsistent("event with neither charge nor reason");
        Ok(Self {
            id: EventId { time: row.event_time, seq: row.event_seq },
            day: row.day,
            charge: charge(row.charge.as_ref(), row.price_id, row.unpriced_reason)?.ok_or_else(without_charge)?,
            tiers: RecordedTiers {
                month: row.tier_month.map(Month::of),
                current: match (&row.tier_charge, &row.tier_uses) {
                    (Some(charge), Some(uses)) => {
                        Some(EventTiers { charge: numeric::decimal(charge)?, uses: tiers::uses(uses)? })
                    }
                    _ => None,
                },
                residue: row.tier_residue.as_ref().map(numeric::decimal).transpose()?.unwrap_or_default(),
            },
            void_time: row.void_time,
            record_time: row.record_time,
            event: UsageEvent {
                client_id: row.client_id.into(),
                service: row.service.into(),
                operation: row.operation.into(),
                model: row.model.into(),
                service_tier: row.service_tier.unwrap_or_default(),
                measures: Measures {
                    units: numeric::decimal(&row.units)?,
                    input_tokens: row.input_tokens,
                    output_tokens: row.output_tokens,
                    cached_input_tokens: row.cached_input_tokens,
                    amount: row.amount.as_ref().map(numeric::decimal).transpose()?,
                    reported_cost: row.reported_cost.as_ref().map(numeric::decimal).transpose()?,
                    others: match &row.measures {
                        Some(json) => numeric::by_name(json, Decimal::parse)?,
                        None => vec![],
                    },
                },
                event_time: row.event_time,
                idempotency_key: row.idempotency_key.into(),
                subject: row.subject,
                external_id: row.external_id,
                metadata: row.metadata,
                labels: match &row.labels {
                    Some(json) => serde_json::from_str(json).map_err(crate::StoreError::inconsistent)?,
                    None => Labels::new(),
                },
            },
        })
    }
}

/// Returns one event of a client. `None` if it does not exist.
pub async fn find(pool: &PgPool, client_id: &str, id: EventId) -> crate::Result<Option<RecordedEvent>> {
    let row = sqlx::query_as!(
        EventRow,
        r#"SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens, output_tokens,
               cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id, idempotency_key,
               metadata::text AS metadata, service_tier,
               measures::text AS measures, reported_cost, labels::text AS labels, tier_month, tier_charge, tier_uses::text AS tier_uses,
               tier_residue, void_time, record_time
           FROM usage_events WHERE client_id = $1 AND event_time = $2 AND event_seq = $3"#,
        client_id,
        id.time,
        id.seq
    )
    .fetch_optional(pool)
    .await?;
    row.map(RecordedEvent::try_from).transpose()
}

/// Returns the JSON object that the labels of an event must contain, or `None` if any event matches.
pub(super) fn labels_filter(labels: &Labels) -> Option<Json<&Labels>> {
    (!labels.is_empty()).then_some(Json(labels))
}

/// Returns up to `limit` events after `after`, in ascending or descending order of time, and the time up to which the
/// answer is complete.
pub async fn list(
    pool: &PgPool,
    filter: &EventFilter<'_>,
    ascending: bool,
    after: Option<EventId>,
    limit: i64,
) -> crate::Result<AsOf<Vec<RecordedEvent>>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let complete_as_of = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *tx).await?;
    let EventFilter {
        client_id,
        start_time,
        end_time,
        services,
        operations,
        models,
        subjects,
        unpriced_only,
        labels,
        price_id,
    } = *filter;
    let labels = labels_filter(labels);
    let (after_time, after_seq) = (after.map(|id| id.time), after.map(|id| id.seq));
    // Two statements instead of one with a switch, so that each reads its index in order and stops at the limit.
    let rows = if ascending {
        sqlx::query_file_as!(
            EventRow,
            "sql/usage/list_events_ascending.sql",
            client_id,
            start_time,
            end_time,
            services,
            operations,
            models,
            subjects,
            unpriced_only,
            after_time,
            after_seq,
            limit,
            labels as Option<Json<&Labels>>,
            price_id
        )
        .fetch_all(&mut *tx)
        .await?
    } else {
        sqlx::query_file_as!(
            EventRow,
            "sql/usage/list_events_descending.sql",
            client_id,
            start_time,
            end_time,
            services,
            operations,
            models,
            subjects,
            unpriced_only,
            after_time,
            after_seq,
            limit,
            labels as Option<Json<&Labels>>,
            price_id
        )
        .fetch_all(&mut *tx)
        .await?
    };
    tx.commit().await?;
    let rows = rows.into_iter().map(RecordedEvent::try_from).collect::<crate::Result<_>>()?;
    Ok(AsOf { complete_as_of, rows })
}
