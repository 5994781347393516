//! Writes events: their idempotency keys, the event rows, and their sums in months, month services and days.

use crate::numeric::Numeric;
use crate::rows::{Composite, CopyIn, Fields, Row};
use crate::usage::rollups::MonthRow;
use meterd_domain::alert::AlertSet;
use meterd_domain::decimal::Total;
use meterd_domain::event::{PayloadHash, PricedEvent};
use meterd_domain::period::Month;
use meterd_domain::rollup::{DayKey, Deltas, MonthKey, MonthServiceKey, Sums};
use sqlx::PgConnection;
use std::collections::HashSet;

/// A priced event to write, with the data of its idempotency key.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    pub priced: PricedEvent<'a>,
    pub payload_hash: &'a PayloadHash,
    pub backfill: bool,
}

/// The generation of a write that claims no keys. It is not used.
const NO_GENERATION: i32 = 0;

/// The result of [`record`].
pub enum Written {
    /// Everything was written. Has the updated months, in no particular order. This transaction holds the locks of
    /// their rows.
    All(Vec<MonthRow>),
    /// Some keys were already taken, so only the free keys were written. Has the sequence numbers of the events whose
    /// keys were free.
    Claimed(HashSet<i64>),
}

/// Claims the keys of all events and, if all keys were free, writes the events and adds `deltas`. One statement does
/// all of this.
///
/// `events` must be sorted by client and key, and their keys must not be in a closed generation. `generation` is the current
/// one of [`crate::locks::Versions`]. `deltas` must be the sums of `events`. Waits for other transactions that are claiming
/// the same keys.
pub async fn record(
    conn: &mut PgConnection,
    generation: i32,
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> crate::Result<Written> {
    write(conn, generation, events, events, deltas).await
}

/// Claims keys and writes nothing else, as [`record`] does. The charges of `events` are not read. Returns the sequence numbers
/// of the events whose keys were free.
pub async fn claim(conn: &mut PgConnection, generation: i32, events: &[NewEvent<'_>]) -> crate::Result<HashSet<i64>> {
    match write(conn, generation, events, &[], &Deltas::default()).await? {
        Written::All(_) => Ok(events.iter().map(|event| event.priced.id.seq).collect()),
        Written::Claimed(claimed) => Ok(claimed),
    }
}

/// Writes events whose keys this transaction has already claimed.
pub async fn record_claimed(
    conn: &mut PgConnection,
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> crate::Result<Vec<MonthRow>> {
    all_written(write(conn, NO_GENERATION, &[], events, deltas).await?)
}

/// Adds sums to months, month services and days. Returns the updated months.
pub async fn add(conn: &mut PgConnection, deltas: &Deltas) -> crate::Result<Vec<MonthRow>> {
    all_written(write(conn, NO_GENERATION, &[], &[], deltas).await?)
}

/// Returns the months of a write that claimed no keys.
fn all_written(written: Written) -> crate::Result<Vec<MonthRow>> {
    match written {
        Written::All(months) => Ok(months),
        Written::Claimed(_) => Err(crate::StoreError::inconsistent("rows of months were neither added nor changed")),
    }
}

/// Does the same as [`record`], faster for many events. A key that is already taken is a unique violation, which aborts
/// the transaction.
pub async fn copy(
    conn: &mut PgConnection,
    generation: i32,
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> crate::Result<Vec<MonthRow>> {
    let keys = "COPY idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill,
        generation) FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, keys).await?;
    for event in events {
        copy.add(&KeyOf { generation, event }).await?;
    }
    copy.finish().await?;

    let rows =
        "COPY usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
        output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
        idempotency_key, metadata) FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, rows).await?;
    for event in events {
        copy.add(&Event(event)).await?;
    }
    copy.finish().await?;
    add(conn, deltas).await
}

struct Key<'a>(&'a NewEvent<'a>);

impl Fields for Key<'_> {
    const TYPE: &'static str = "new_key";
    const COUNT: u16 = 6;

    fn put(&self, row: &mut Row<'_>) {
        let NewEvent { priced: PricedEvent { event, id, .. }, payload_hash, backfill } = self.0;
        row.text(&event.client_id);
        row.text(&event.idempotency_key);
        row.bytes(&payload_hash[..]);
        row.time(id.time);
        row.int8(id.seq);
        row.bool(*backfill);
    }
}

/// A key with its generation, for COPY.
struct KeyOf<'a> {
    generation: i32,
    event: &'a NewEvent<'a>,
}

impl Fields for KeyOf<'_> {
    const TYPE: &'static str = Key::TYPE;
    const COUNT: u16 = Key::COUNT + 1;

    fn put(&self, row: &mut Row<'_>) {
        Key(self.event).put(row);
        row.int4(self.generation);
    }
}

struct Event<'a>(&'a NewEvent<'a>);

impl Fields for Event<'_> {
    const TYPE: &'static str = "new_event";
    const COUNT: u16 = 19;

    fn put(&self, row: &mut Row<'_>) {
        let PricedEvent { event, id, day, charge } = &self.0.priced;
        row.text(&event.client_id);
        row.time(id.time);
        row.int8(id.seq);
        row.date(*day);
        row.text(&event.service);
        row.text(&event.operation);
        row.text(&event.model);
        row.decimal(event.measures.units);
        row.int8(event.measures.input_tokens);
        row.int8(event.measures.output_tokens);
        row.int8(event.measures.cached_input_tokens);
        row.decimal(event.measures.amount);
        let (charge, price_id, reason) = charge.columns();
        row.decimal(charge);
        row.int8(price_id);
        row.int2(reason);
        row.text(&event.subject);
        row.text(&event.external_id);
        row.text(&event.idempotency_key);
        row.jsonb(event.metadata.as_deref());
    }
}

fn put_sums(row: &mut Row<'_>, sums: &Sums) {
    row.int8(sums.request_count);
    row.total(sums.units);
    row.int8(sums.input_tokens);
    row.int8(sums.output_tokens);
    row.int8(sums.cached_input_tokens);
    row.total(sums.cost);
    row.int8(sums.unpriced_event_count);
}

/// A rollup key and the sums to add to its row.
type Delta<'a, Key> = (&'a Key, &'a Sums);

impl Fields for Delta<'_, MonthKey> {
    const TYPE: &'static str = "month_delta";
    const COUNT: u16 = 9;

    fn put(&self, row: &mut Row<'_>) {
        let ((client_id, month), sums) = self;
        row.text(client_id);
        row.date(month.first_day());
        put_sums(row, sums);
    }
}

impl Fields for Delta<'_, MonthServiceKey> {
    const TYPE: &'static str = "month_service_delta";
    const COUNT: u16 = 10;

    fn put(&self, row: &mut Row<'_>) {
        let ((client_id, month, service), sums) = self;
        row.text(client_id);
        row.date(month.first_day());
        row.text(service);
        put_sums(row, sums);
    }
}

impl Fields for Delta<'_, DayKey> {
    const TYPE: &'static str = "day_delta";
    const COUNT: u16 = 12;

    fn put(&self, row: &mut Row<'_>) {
        let ((client_id, day, service, operation, model), sums) = self;
        row.text(client_id);
        row.date(*day);
        row.text(service);
        row.text(operation);
        row.text(model);
        put_sums(row, sums);
    }
}

fn composites<F>(rows: impl IntoIterator<Item = F>) -> Vec<Composite<F>> {
    rows.into_iter().map(Composite).collect()
}

/// Runs the only statement that adds to sums.
///
/// It locks all keys first, then the months, then the month services and days, each in sorted order: this is the lock
/// order of [`crate::locks`]. The rows below a month change only while the row of the month is locked.
async fn write(
    conn: &mut PgConnection,
    generation: i32,
    claims: &[NewEvent<'_>],
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> crate::Result<Written> {
    let Deltas { months, month_services, days } = deltas;
    let rows = sqlx::query_file!(
        "sql/usage/record.sql",
        composites(claims.iter().map(Key)) as Vec<Composite<Key<'_>>>,
        composites(months) as Vec<Composite<Delta<'_, MonthKey>>>,
        composites(month_services) as Vec<Composite<Delta<'_, MonthServiceKey>>>,
        composites(days) as Vec<Composite<Delta<'_, DayKey>>>,
        composites(events.iter().map(Event)) as Vec<Composite<Event<'_>>>,
        generation
    )
    .fetch_all(conn)
    .await?;
    if let Some(row) = rows.iter().find(|row| !row.all_free) {
        return Ok(Written::Claimed(row.claimed.iter().copied().collect()));
    }
    let mut months: Vec<MonthRow> = Vec::with_capacity(deltas.months.len());
    for row in rows {
        let (Some(client_id), Some(month)) = (row.client_id, row.month) else { continue };
        months.push(MonthRow {
            client_id,
            month: Month::of(month),
            cost: row.cost.map(Total::from).unwrap_or_default(),
            raised: AlertSet(row.raised_alerts.unwrap_or_default()),
            open: AlertSet(row.open_alerts.unwrap_or_default()),
        });
    }
    if months.len() != deltas.months.len() {
        return Err(crate::StoreError::inconsistent("the sums of a month were neither added nor changed"));
    }
    Ok(Written::All(months))
}
