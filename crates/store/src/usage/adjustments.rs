//! Changes recorded events, and keeps what was changed as adjustments.

use crate::numeric;
use crate::rows::Composite;
use crate::usage::keys::charge;
use crate::usage::record::{EventRow, composites};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use meterd_domain::adjustment::{AdjustmentKind, FieldChanges};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, EventId, PricedEvent};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use std::collections::HashSet;

/// An adjustment to store.
#[derive(Debug)]
pub struct NewAdjustment<'a> {
    pub client_id: &'a str,
    pub event: EventId,
    pub old: Charge,
    /// `None` if the event was voided.
    pub new: Option<Charge>,
    /// What the change adds to the cost in addition to the difference of the charges.
    pub tier_residue: Decimal,
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
    /// What the change added to the cost in addition to the difference of the charges.
    pub tier_residue: Decimal,
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
    let mut residues = vec![];
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
        residues.push(Some(adjustment.tier_residue).filter(|residue| *residue != Decimal::ZERO).map(numeric::of));
        changes.push((!adjustment.changes.is_empty()).then_some(Json(&adjustment.changes)));
    }
    sqlx::query!(
        "INSERT INTO usage_adjustments (client_id, event_time, event_seq, number, kind, old_charge, old_price_id,
             old_unpriced_reason, new_charge, new_price_id, new_unpriced_reason, changes, reason, actor, run_id, tier_residue)
         SELECT new.client_id, new.event_time, new.event_seq, 1 + COALESCE((
                    SELECT max(a.number) FROM usage_adjustments a
                    WHERE a.client_id = new.client_id AND a.event_time = new.event_time AND a.event_seq = new.event_seq
                ), 0), $11, new.old_charge, new.old_price_id, new.old_unpriced_reason, new.new_charge, new.new_price_id,
                new.new_unpriced_reason, new.changes, $12, $13, $14, new.tier_residue
         FROM unnest($1::text[], $2::timestamptz[], $3::bigint[], $4::numeric[], $5::bigint[], $6::smallint[], $7::numeric[],
                 $8::bigint[], $9::smallint[], $10::jsonb[], $15::numeric[])
             AS new (client_id, event_time, event_seq, old_charge, old_price_id, old_unpriced_reason, new_charge,
                 new_price_id, new_unpriced_reason, changes, tier_residue)",
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
        origin.run_id,
        &residues as &[Option<BigDecimal>]
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
        "UPDATE usage_events t SET void_time = now(), tier_charge = NULL, tier_uses = NULL
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

/// Sets what remains in the cost of tiers that events do not count in any more. The transaction holds the locks of their months.
pub async fn set_residues(conn: &mut PgConnection, events: &[(&str, EventId, Decimal)]) -> crate::Result<()> {
    let clients: Vec<String> = events.iter().map(|(client_id, ..)| (*client_id).to_owned()).collect();
    let times: Vec<DateTime<Utc>> = events.iter().map(|(_, id, _)| id.time).collect();
    let seqs: Vec<i64> = events.iter().map(|(_, id, _)| id.seq).collect();
    let residues: Vec<BigDecimal> = events.iter().map(|(.., residue)| numeric::of(*residue)).collect();
    sqlx::query!(
        "UPDATE usage_events t SET tier_residue = NULLIF(new.tier_residue, 0)
         FROM unnest($1::text[], $2::timestamptz[], $3::bigint[], $4::numeric[])
             AS new (client_id, event_time, event_seq, tier_residue)
         WHERE t.client_id = new.client_id AND t.event_time = new.event_time AND t.event_seq = new.event_seq",
        &clients,
        &times,
        &seqs,
        &residues
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Replaces the contents and the charges of events. The transaction holds the locks of their months.
pub async fn correct(conn: &mut PgConnection, events: &[PricedEvent<'_>]) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE usage_events t SET service = new.service, operation = new.operation, model = new.model, units = new.units,
             input_tokens = new.input_tokens, output_tokens = new.output_tokens,
             cached_input_tokens = new.cached_input_tokens, amount = new.amount, charge = new.charge,
             price_id = new.price_id, unpriced_reason = new.unpriced_reason, subject = new.subject,
             external_id = new.external_id, metadata = new.metadata, service_tier = new.service_tier,
             measures = new.measures, reported_cost = new.reported_cost, labels = new.labels,
             tier_month = COALESCE(t.tier_month, new.tier_month), tier_charge = new.tier_charge, tier_uses = new.tier_uses
         FROM unnest($1::recorded_event[]) AS new
         WHERE t.client_id = new.client_id AND t.event_time = new.event_time AND t.event_seq = new.event_seq",
        composites(events.iter().map(EventRow)) as Vec<Composite<EventRow<'_>>>
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the events that have adjustments.
pub async fn adjusted(
    conn: &mut PgConnection,
    events: &[(&str, EventId)],
) -> crate::Result<HashSet<(String, EventId)>> {
    let clients: Vec<String> = events.iter().map(|(client_id, _)| (*client_id).to_owned()).collect();
    let times: Vec<DateTime<Utc>> = events.iter().map(|(_, id)| id.time).collect();
    let seqs: Vec<i64> = events.iter().map(|(_, id)| id.seq).collect();
    let rows = sqlx::query!(
        "SELECT client_id, event_time, event_seq FROM usage_adjustments
         JOIN unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS wanted (client_id, event_time, event_seq)
             USING (client_id, event_time, event_seq)
         WHERE number = 1",
        &clients,
        &times,
        &seqs
    )
    .fetch_all(conn)
    .await?;
    let id = |time, seq| EventId { time, seq };
    Ok(rows.into_iter().map(|row| (row.client_id, id(row.event_time, row.event_seq))).collect())
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
    tier_residue: Option<BigDecimal>,
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
            tier_residue: row.tier_residue.as_ref().map(numeric::decimal).transpose()?.unwrap_or_default(),
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
                  new_price_id, new_unpriced_reason, tier_residue, changes AS "changes: Json<FieldChanges>", reason, actor, run_id,
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
