//! Finds the events to which taken idempotency keys belong.
//!
//! A key is looked up in one generation of keys, by the primary key of that partition.
//!
//! The row of a key has the time of its event, so each event is looked up by primary key in the one partition of its
//! month. The cost depends neither on the number of partitions nor on their statistics:
//! - The bounds of the month are parameters, and the statements are planned for their values, so the planner opens one
//!   partition. A generic plan would open and lock all partitions on each run.
//! - Each subquery has a DISTINCT ON, so the planner cannot turn the lookups into a join that reads whole partitions. A LIMIT would
//!   do the same, but Citus rejects it here. The clause removes nothing, because a lookup finds at most one row.

use crate::database::connect;
use crate::usage::events::{EventRow, RecordedEvent};
use crate::usage::keys::charge;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveTime, Utc};
use meterd_domain::event::{Charge, EventId, PayloadHash};
use meterd_domain::period::Month;
use sqlx::PgConnection;
use std::collections::{BTreeMap, HashMap};

/// The event to which a key belongs.
#[derive(Clone, Debug)]
pub struct KeyHolder {
    pub payload_hash: PayloadHash,
    pub id: EventId,
    /// `None` if the event has been removed or voided.
    pub charge: Option<Charge>,
}

/// Keys to look up, each in one generation. The vectors have the same length.
#[derive(Clone, Debug, Default)]
pub struct WantedKeys {
    pub generations: Vec<i32>,
    pub client_ids: Vec<String>,
    pub keys: Vec<String>,
}

impl WantedKeys {
    /// Adds a key.
    pub fn push(&mut self, generation: i32, client_id: &str, key: &str) {
        self.generations.push(generation);
        self.client_ids.push(client_id.into());
        self.keys.push(key.into());
    }
}

/// Returns the holder of each key, in order; `None` for a key that is not in its generation. If a key is found, later
/// statements of the transaction are planned for their values.
pub async fn find(conn: &mut PgConnection, wanted: &WantedKeys) -> crate::Result<Vec<Option<KeyHolder>>> {
    let WantedKeys { generations, client_ids, keys } = wanted;
    let rows = sqlx::query!(
        r#"SELECT number AS "number!", k.payload_hash, k.event_time, k.event_seq
           FROM unnest($1::integer[], $2::text[], $3::text[])
               WITH ORDINALITY AS wanted (generation, client_id, idempotency_key, number)
           CROSS JOIN LATERAL (
               SELECT DISTINCT ON (client_id) payload_hash, event_time, event_seq FROM idempotency_keys AS k
               WHERE k.generation = wanted.generation AND k.client_id = wanted.client_id
                 AND k.idempotency_key = wanted.idempotency_key
           ) AS k"#,
        generations,
        client_ids,
        keys
    )
    .fetch_all(&mut *conn)
    .await?;
    if rows.is_empty() {
        return Ok(vec![None; keys.len()]);
    }
    connect::plan_for_values(conn).await?;
    let mut holders: Vec<Option<KeyHolder>> = vec![None; keys.len()];
    for row in rows {
        let payload_hash =
            row.payload_hash.try_into().map_err(|_| crate::StoreError::inconsistent("no payload hash"))?;
        let id = EventId { time: row.event_time, seq: row.event_seq };
        holders[row.number as usize - 1] = Some(KeyHolder { payload_hash, id, charge: None });
    }
    let named = holders.iter().zip(client_ids).enumerate();
    let named: Vec<_> = named
        .filter_map(|(number, (holder, client_id))| Some((number, client_id.as_str(), holder.as_ref()?.id)))
        .collect();
    for (month, ids) in by_month(named.iter().map(|(number, client_id, id)| (*number, *client_id, *id))) {
        for (number, charge) in charges(conn, month, &ids).await? {
            if let Some(holder) = &mut holders[number] {
                holder.charge = charge;
            }
        }
    }
    Ok(holders)
}

/// Returns these events, in the order of `wanted`; `None` for an event that does not exist, or has been removed. Plans
/// statements as [`find`] does.
pub async fn events(conn: &mut PgConnection, wanted: &[(&str, EventId)]) -> crate::Result<Vec<Option<RecordedEvent>>> {
    connect::plan_for_values(conn).await?;
    let mut events: Vec<Option<RecordedEvent>> = wanted.iter().map(|_| None).collect();
    let numbered = wanted.iter().enumerate().map(|(number, (client_id, id))| (number, *client_id, *id));
    for (month, ids) in by_month(numbered) {
        let mut numbers: BTreeMap<(&str, EventId), Vec<usize>> = BTreeMap::new();
        for (at, number) in ids.numbers.iter().enumerate() {
            let id = EventId { time: ids.times[at], seq: ids.seqs[at] };
            numbers.entry((&ids.client_ids[at], id)).or_default().push(*number);
        }
        for row in rows(conn, month, &ids).await? {
            let event = RecordedEvent::try_from(row)?;
            for number in numbers.get(&(&*event.event.client_id, event.id)).into_iter().flatten() {
                events[*number] = Some(event.clone());
            }
        }
    }
    Ok(events)
}

/// Returns the events of a client that have these keys. Looks in all generations.
pub async fn of_keys(
    conn: &mut PgConnection,
    client_id: &str,
    keys: &[String],
) -> crate::Result<HashMap<String, EventId>> {
    let rows = sqlx::query!(
        "SELECT idempotency_key, event_time, event_seq FROM idempotency_keys
         WHERE client_id = $1 AND idempotency_key = ANY($2)",
        client_id,
        keys
    )
    .fetch_all(conn)
    .await?;
    let id = |time, seq| EventId { time, seq };
    Ok(rows.into_iter().map(|row| (row.idempotency_key, id(row.event_time, row.event_seq))).collect())
}

/// Returns the events of a client since a time that have one of these external ids, and whether they are voided. Reads all events of
/// the client since then, because there is no index of external ids.
pub async fn of_external_ids(
    conn: &mut PgConnection,
    client_id: &str,
    external_ids: &[String],
    since: DateTime<Utc>,
    limit: i64,
) -> crate::Result<Vec<(String, EventId, bool)>> {
    let rows = sqlx::query!(
        r#"SELECT external_id, event_time, event_seq, void_time IS NOT NULL AS "is_void!" FROM usage_events
           WHERE client_id = $1 AND event_time >= $2 AND external_id = ANY($3) ORDER BY event_time LIMIT $4"#,
        client_id,
        since,
        external_ids,
        limit
    )
    .fetch_all(conn)
    .await?;
    let found = |time, seq| EventId { time, seq };
    Ok(rows.into_iter().map(|row| (row.external_id, found(row.event_time, row.event_seq), row.is_void)).collect())
}

/// Ids of events in one UTC month, one vector per parameter of the statements.
#[derive(Default)]
struct Ids {
    /// Positions in the caller's list.
    numbers: Vec<usize>,
    client_ids: Vec<String>,
    times: Vec<DateTime<Utc>>,
    seqs: Vec<i64>,
}

fn by_month<'a>(wanted: impl Iterator<Item = (usize, &'a str, EventId)>) -> BTreeMap<Month, Ids> {
    let mut of_months: BTreeMap<Month, Ids> = BTreeMap::new();
    for (number, client_id, id) in wanted {
        let ids = of_months.entry(Month::of(id.time.date_naive())).or_default();
        ids.numbers.push(number);
        ids.client_ids.push(client_id.into());
        ids.times.push(id.time);
        ids.seqs.push(id.seq);
    }
    of_months
}

/// Returns the start and the end of a UTC month, which are the bounds of its partition.
fn bounds(month: Month) -> (DateTime<Utc>, DateTime<Utc>) {
    let start = |month: Month| month.first_day().and_time(NaiveTime::MIN).and_utc();
    (start(month), start(month.next()))
}

async fn charges(conn: &mut PgConnection, month: Month, ids: &Ids) -> crate::Result<Vec<(usize, Option<Charge>)>> {
    let (start, end) = bounds(month);
    let rows = sqlx::query!(
        r#"SELECT number AS "number!", e.charge AS "charge?: BigDecimal", e.price_id, e.unpriced_reason
           FROM unnest($1::text[], $2::timestamptz[], $3::bigint[])
               WITH ORDINALITY AS wanted (client_id, event_time, event_seq, number)
           CROSS JOIN LATERAL (
               SELECT DISTINCT ON (client_id) charge, price_id, unpriced_reason FROM usage_events AS e
               WHERE e.client_id = wanted.client_id AND e.event_time = wanted.event_time
                 AND e.event_seq = wanted.event_seq AND e.event_time >= $4 AND e.event_time < $5 AND e.void_time IS NULL
           ) AS e"#,
        &ids.client_ids,
        &ids.times,
        &ids.seqs,
        start,
        end
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let charge = charge(row.charge.as_ref(), row.price_id, row.unpriced_reason)?;
            Ok((ids.numbers[row.number as usize - 1], charge))
        })
        .collect()
}

async fn rows(conn: &mut PgConnection, month: Month, ids: &Ids) -> crate::Result<Vec<EventRow>> {
    let (start, end) = bounds(month);
    sqlx::query_as!(
        EventRow,
        r#"SELECT e.client_id, e.event_time, e.event_seq, day, service, operation, model, units, input_tokens,
               output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
               idempotency_key, metadata::text AS metadata, service_tier,
               measures::text AS measures, reported_cost, labels::text AS labels, tier_month, tier_charge, tier_uses::text AS tier_uses,
               tier_residue, void_time, record_time
           FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS wanted (client_id, event_time, event_seq)
           CROSS JOIN LATERAL (
               SELECT DISTINCT ON (client_id) * FROM usage_events AS e
               WHERE e.client_id = wanted.client_id AND e.event_time = wanted.event_time
                 AND e.event_seq = wanted.event_seq AND e.event_time >= $4 AND e.event_time < $5
           ) AS e"#,
        &ids.client_ids,
        &ids.times,
        &ids.seqs,
        start,
        end
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}
