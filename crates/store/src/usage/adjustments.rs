//! Changes recorded events, and keeps what was changed as adjustments.

use crate::numeric;
use crate::usage::events::RecordedEvent;
use crate::usage::keys::charge;
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use meterd_domain::adjustment::{AdjustmentKind, FieldChanges};
use meterd_domain::event::{Charge, EventId, UsageEvent};
use meterd_domain::measures;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

/// An adjustment to store.
#[derive(Debug)]
pub struct NewAdjustment<'a> {
    pub client_id: &'a str,
    pub event: EventId,
    pub old: Charge,
    /// `None` if the event was voided.
    pub new: Option<Charge>,
    pub changes: FieldChanges,
}

/// What adjustments of one call or run have in common.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub kind: AdjustmentKind,
    pub reason: &'a str,
    /// The principal of the caller.
    pub actor: &'a str,
    pub run_id: Option<i64>,
}

/// A stored adjustment.
#[derive(Clone, Debug)]
pub struct Adjustment {
    pub event: EventId,
    /// From 1 for each event.
    pub number: i32,
    pub kind: AdjustmentKind,
    pub old: Option<Charge>,
    /// `None` if the event was voided.
    pub new: Option<Charge>,
    pub changes: FieldChanges,
    pub reason: String,
    pub actor: String,
    pub run_id: Option<i64>,
    pub adjust_time: DateTime<Utc>,
}

/// Stores adjustments, at most one for each event. The transaction holds the locks of the events' months.
pub async fn insert(
    conn: &mut PgConnection,
    origin: &Origin<'_>,
    adjustments: &[NewAdjustment<'_>],
) -> crate::Result<()> {
    let (mut clients, mut times, mut seqs, mut changes) = (vec![], vec![], vec![], vec![]);
    let (mut old_charges, mut old_prices, mut old_reasons) = (vec![], vec![], vec![]);
    let (mut new_charges, mut new_prices, mut new_reasons) = (vec![], vec![], vec![]);
    for adjustment in adjustments {
        clients.push(adjustment.client_id.to_owned());
        times.push(adjustment.event.time);
        seqs.push(adjustment.event.seq);
        let (charge, price_id, reason) = adjustment.old.columns();
        old_charges.push(charge.map(numeric::of));
        old_prices.push(price_id);
        old_reasons.push(reason);
        let (charge, price_id, reason) = adjustment.new.map_or((None, None, None), Charge::columns);
        new_charges.push(charge.map(numeric::of));
        new_prices.push(price_id);
        new_reasons.push(reason);
        changes.push((!adjustment.changes.is_empty()).then_some(Json(&adjustment.changes)));
    }
    sqlx::query!(
        "INSERT INTO usage_adjustments (client_id, event_time, event_seq, number, kind, old_charge, old_price_id,
             old_unpriced_reason, new_charge, new_price_id, new_unpriced_reason, changes, reason, actor, run_id)
         SELECT new.client_id, new.event_time, new.event_seq, 1 + COALESCE((
                    SELECT max(a.number) FROM usage_adjustments a
                    WHERE a.client_id = new.client_id AND a.event_time = new.event_time AND a.event_seq = new.event_seq
                ), 0), $11, new.old_charge, new.old_price_id, new.old_unpriced_reason, new.new_charge, new.new_price_id,
                new.new_unpriced_reason, new.changes, $12, $13, $14
         FROM unnest($1::text[], $2::timestamptz[], $3::bigint[], $4::numeric[], $5::bigint[], $6::smallint[], $7::numeric[],
                 $8::bigint[], $9::smallint[], $10::jsonb[])
             AS new (client_id, event_time, event_seq, old_charge, old_price_id, old_unpriced_reason, new_charge,
                 new_price_id, new_unpriced_reason, changes)",
        &clients,
        &times,
        &seqs,
        &old_charges as &[Option<BigDecimal>],
        &old_prices as &[Option<i64>],
        &old_reasons as &[Option<i16>],
        &new_charges as &[Option<BigDecimal>],
        &new_prices as &[Option<i64>],
        &new_reasons as &[Option<i16>],
        &changes as &[Option<Json<&FieldChanges>>],
        i16::from(origin.kind),
        origin.reason,
        origin.actor,
        origin.run_id
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Voids events. The transaction holds the locks of their months.
pub async fn void(conn: &mut PgConnection, events: &[(&str, EventId)]) -> crate::Result<()> {
    let clients: Vec<String> = events.iter().map(|(client_id, _)| (*client_id).to_owned()).collect();
    let times: Vec<DateTime<Utc>> = events.iter().map(|(_, id)| id.time).collect();
    let seqs: Vec<i64> = events.iter().map(|(_, id)| id.seq).collect();
    sqlx::query!(
        "UPDATE usage_events t SET void_time = now()
         FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS voided (client_id, event_time, event_seq)
         WHERE t.client_id = voided.client_id AND t.event_time = voided.event_time AND t.event_seq = voided.event_seq",
        &clients,
        &times,
        &seqs
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Replaces the contents and the charge of an event. The transaction holds the lock of its month.
pub async fn correct(conn: &mut PgConnection, id: EventId, event: &UsageEvent, charge: Charge) -> crate::Result<()> {
    let (amount, price_id, reason) = charge.columns();
    let metadata = event.metadata.as_deref().map(serde_json::from_str::<serde_json::Value>);
    let metadata = metadata.transpose().map_err(crate::StoreError::inconsistent)?;
    let others = measures::to_json(&event.measures.others);
    sqlx::query!(
        "UPDATE usage_events SET service = $4, operation = $5, model = $6, units = $7, input_tokens = $8, output_tokens = $9,
             cached_input_tokens = $10, amount = $11, charge = $12, price_id = $13, unpriced_reason = $14, subject = $15,
             external_id = $16, metadata = $17, service_tier = NULLIF($18, ''), measures = $19::text::jsonb
         WHERE client_id = $1 AND event_time = $2 AND event_seq = $3",
        &*event.client_id,
        id.time,
        id.seq,
        &*event.service,
        &*event.operation,
        &*event.model,
        numeric::of(event.measures.units),
        event.measures.input_tokens,
        event.measures.output_tokens,
        event.measures.cached_input_tokens,
        event.measures.amount.map(numeric::of),
        amount.map(numeric::of),
        price_id,
        reason,
        event.subject,
        event.external_id,
        metadata,
        event.service_tier,
        others
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Which adjustments of a client to list.
#[derive(Debug)]
pub struct AdjustmentFilter<'a> {
    pub client_id: &'a str,
    pub event: Option<EventId>,
    pub run_id: Option<i64>,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
}

/// Time, event and number of an adjustment: its position in the list.
pub type AdjustmentCursor = (DateTime<Utc>, DateTime<Utc>, i64, i32);

struct AdjustmentRow {
    event_time: DateTime<Utc>,
    event_seq: i64,
    number: i32,
    kind: i16,
    old_charge: Option<BigDecimal>,
    old_price_id: Option<i64>,
    old_unpriced_reason: Option<i16>,
    new_charge: Option<BigDecimal>,
    new_price_id: Option<i64>,
    new_unpriced_reason: Option<i16>,
    changes: Option<Json<FieldChanges>>,
    reason: String,
    actor: String,
    run_id: Option<i64>,
    adjust_time: DateTime<Utc>,
}

impl TryFrom<AdjustmentRow> for Adjustment {
    type Error = crate::StoreError;

    fn try_from(row: AdjustmentRow) -> crate::Result<Self> {
        Ok(Self {
            event: EventId { time: row.event_time, seq: row.event_seq },
            number: row.number,
            kind: row.kind.try_into().map_err(crate::StoreError::inconsistent)?,
            old: charge(row.old_charge.as_ref(), row.old_price_id, row.old_unpriced_reason)?,
            new: charge(row.new_charge.as_ref(), row.new_price_id, row.new_unpriced_reason)?,
            changes: row.changes.map(|changes| changes.0).unwrap_or_default(),
            reason: row.reason,
            actor: row.actor,
            run_id: row.run_id,
            adjust_time: row.adjust_time,
        })
    }
}

/// Returns up to `limit` adjustments of a client after `after`, oldest first.
pub async fn list(
    pool: &PgPool,
    filter: &AdjustmentFilter<'_>,
    after: Option<AdjustmentCursor>,
    limit: i64,
) -> crate::Result<Vec<Adjustment>> {
    let (after_time, after_event, after_seq, after_number) = after
        .map_or((None, None, None, None), |(time, event, seq, number)| {
            (Some(time), Some(event), Some(seq), Some(number))
        });
    let rows = sqlx::query_as!(
        AdjustmentRow,
        r#"SELECT event_time, event_seq, number, kind, old_charge, old_price_id, old_unpriced_reason, new_charge,
                  new_price_id, new_unpriced_reason, changes AS "changes: Json<FieldChanges>", reason, actor, run_id,
                  adjust_time
           FROM usage_adjustments
           WHERE client_id = $1 AND ($2::timestamptz IS NULL OR event_time = $2 AND event_seq = $3)
             AND ($4::bigint IS NULL OR run_id = $4)
             AND adjust_time >= COALESCE($5, '-infinity'::timestamptz) AND adjust_time < COALESCE($6, 'infinity'::timestamptz)
             AND (adjust_time, event_time, event_seq, number)
                 > (COALESCE($7, '-infinity'::timestamptz), COALESCE($8, '-infinity'::timestamptz), COALESCE($9::bigint, 0),
                    COALESCE($10::integer, 0))
           ORDER BY adjust_time, event_time, event_seq, number LIMIT $11"#,
        filter.client_id,
        filter.event.map(|event| event.time),
        filter.event.map(|event| event.seq),
        filter.run_id,
        filter.start_time,
        filter.end_time,
        after_time,
        after_event,
        after_seq,
        after_number,
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Adjustment::try_from).collect()
}

/// An event whose adjustments do not lead to its charge.
pub struct ChainDifference {
    pub client_id: String,
    pub day: chrono::NaiveDate,
    pub event: EventId,
    pub fault: &'static str,
}

struct ChainRow {
    client_id: String,
    day: chrono::NaiveDate,
    event_time: DateTime<Utc>,
    event_seq: i64,
    is_broken: bool,
    is_void: bool,
}

/// Returns the events of a scope whose adjustments are not a chain: each begins with the charge with which the one before it ends,
/// and the last one ends with the charge of the event, or is its void.
pub async fn chain_differences(
    conn: &mut PgConnection,
    scope: &crate::usage::verify::Scope,
) -> crate::Result<Vec<ChainDifference>> {
    use meterd_domain::period::Month;
    let rows = sqlx::query_file_as!(
        ChainRow,
        "sql/usage/chain_differences.sql",
        scope.after,
        scope.upto,
        scope.first.map(Month::first_day),
        scope.last.map(|last| last.next().first_day()),
        scope.first.map(|first| first.widest_range().0),
        scope.last.map(|last| last.widest_range().1),
        scope.client_id
    )
    .fetch_all(conn)
    .await?;
    let difference = |row: ChainRow| ChainDifference {
        client_id: row.client_id,
        day: row.day,
        event: EventId { time: row.event_time, seq: row.event_seq },
        fault: match (row.is_void, row.is_broken) {
            (true, _) => "is voided without an adjustment, or has an adjustment that voids it and counts",
            (false, true) => "has an adjustment that does not begin where the one before it ends",
            (false, false) => "has another charge than its last adjustment",
        },
    };
    Ok(rows.into_iter().map(difference).collect())
}

/// The events of a run of repricing after `after`, in order of client, time and sequence number.
pub async fn next_events(
    conn: &mut PgConnection,
    clients: &[String],
    days: (chrono::NaiveDate, chrono::NaiveDate),
    after: (&str, Option<DateTime<Utc>>, i64),
    limit: i64,
) -> crate::Result<Vec<RecordedEvent>> {
    use crate::usage::events::EventRow;
    use meterd_domain::period::Month;
    let (from, to) = (Month::of(days.0).widest_range().0, Month::of(days.1).widest_range().1);
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens, output_tokens,
             cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id, idempotency_key,
             metadata::text AS metadata, service_tier, measures::text AS measures, void_time, record_time
         FROM usage_events
         WHERE (client_id, event_time, event_seq) > ($1, COALESCE($2, '-infinity'::timestamptz), $3)
           AND (cardinality($4::text[]) = 0 OR client_id = ANY($4))
           AND day BETWEEN $5 AND $6 AND event_time >= $7 AND event_time < $8
         ORDER BY client_id, event_time, event_seq LIMIT $9",
        after.0,
        after.1,
        after.2,
        clients,
        days.0,
        days.1,
        from,
        to,
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(RecordedEvent::try_from).collect()
}
