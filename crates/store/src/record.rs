//! Writing events: their keys, the events themselves, and what they add to months, month's services and days.

use crate::numeric::Numeric;
use crate::rollups::MonthRow;
use crate::rows::{Composite, CopyIn, Fields, Row};
use meterd_domain::alert::AlertSet;
use meterd_domain::decimal::Total;
use meterd_domain::event::{PayloadHash, PricedEvent};
use meterd_domain::period::Month;
use meterd_domain::rollup::{DayKey, Deltas, MonthKey, MonthServiceKey, Sums};
use sqlx::PgConnection;
use std::collections::HashSet;

/// An event to be written, and the key that it claims.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    pub priced: PricedEvent<'a>,
    pub payload_hash: &'a PayloadHash,
    pub backfill: bool,
}

/// What became of a try to write.
pub enum Written {
    /// All of it: the months as they are now, in no order. This transaction holds their rows.
    All(Vec<MonthRow>),
    /// Nothing but the keys of the events with these sequence numbers, because others were taken.
    Claimed(HashSet<i64>),
}

/// Claims the keys of all events, and if all were free writes everything, in one statement. `events` sorted by client and
/// key, `deltas` what they add. Waits for a transaction that is claiming the same key.
pub async fn record(conn: &mut PgConnection, events: &[NewEvent<'_>], deltas: &Deltas) -> crate::Result<Written> {
    write(conn, events, events, deltas).await
}

/// Claims keys and writes nothing else. `events` is sorted by client and key; their charges are not read. Returns the sequence
/// numbers of the events whose keys were free. Waits for a transaction that claims one of the keys.
pub async fn claim(conn: &mut PgConnection, events: &[NewEvent<'_>]) -> crate::Result<HashSet<i64>> {
    match write(conn, events, &[], &Deltas::default()).await? {
        Written::All(_) => Ok(events.iter().map(|event| event.priced.id.seq).collect()),
        Written::Claimed(claimed) => Ok(claimed),
    }
}

/// Writes events whose keys this transaction has claimed.
pub async fn record_claimed(
    conn: &mut PgConnection,
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> crate::Result<Vec<MonthRow>> {
    written(write(conn, &[], events, deltas).await?)
}

/// Adds the deltas to months, their services and days, and gives the months as they are now.
pub async fn add(conn: &mut PgConnection, deltas: &Deltas) -> crate::Result<Vec<MonthRow>> {
    written(write(conn, &[], &[], deltas).await?)
}

fn written(written: Written) -> crate::Result<Vec<MonthRow>> {
    match written {
        Written::All(months) => Ok(months),
        Written::Claimed(_) => Err(crate::StoreError::inconsistent("rows of months were neither added nor changed")),
    }
}

/// Does the same as [`record`] for many events, faster. A taken key is an error, a unique violation, and ends the
/// transaction.
pub async fn copy(conn: &mut PgConnection, events: &[NewEvent<'_>], deltas: &Deltas) -> crate::Result<Vec<MonthRow>> {
    let keys = "COPY idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill)
        FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, keys).await?;
    for event in events {
        copy.add(&Key(event)).await?;
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

/// What is added to the row of a key.
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

/// The one statement that changes sums. Months wait until all keys are claimed, and what is below them until they are locked,
/// each sorted: that is the one lock order of everyone. What is below a month, nobody changes without its row.
async fn write(
    conn: &mut PgConnection,
    claims: &[NewEvent<'_>],
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> crate::Result<Written> {
    let Deltas { months, month_services, days } = deltas;
    let rows = sqlx::query!(
        r#"WITH claimed AS (
            INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill)
            SELECT * FROM unnest($1::new_key[])
            ON CONFLICT DO NOTHING
            RETURNING event_seq
        ), months AS (
            INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
                cached_input_tokens, cost, unpriced_event_count, summary_stale_since)
            SELECT *, now() FROM unnest($2::month_delta[])
            WHERE (SELECT count(*) FROM claimed) = cardinality($1)
            ON CONFLICT (client_id, month) DO UPDATE SET
                request_count = t.request_count + excluded.request_count,
                units = t.units + excluded.units,
                input_tokens = t.input_tokens + excluded.input_tokens,
                output_tokens = t.output_tokens + excluded.output_tokens,
                cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
                cost = t.cost + excluded.cost,
                unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count,
                summary_stale_since = COALESCE(t.summary_stale_since, now())
            RETURNING client_id, month, cost, raised_alerts, open_alerts
        ), month_services AS (
            INSERT INTO usage_month_services AS t (client_id, month, service, request_count, units, input_tokens,
                output_tokens, cached_input_tokens, cost, unpriced_event_count)
            SELECT * FROM unnest($3::month_service_delta[])
            WHERE (SELECT count(*) FROM months) = cardinality($2)
            ON CONFLICT (client_id, month, service) DO UPDATE SET
                request_count = t.request_count + excluded.request_count,
                units = t.units + excluded.units,
                input_tokens = t.input_tokens + excluded.input_tokens,
                output_tokens = t.output_tokens + excluded.output_tokens,
                cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
                cost = t.cost + excluded.cost,
                unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count
        ), days AS (
            INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
                output_tokens, cached_input_tokens, cost, unpriced_event_count)
            SELECT * FROM unnest($4::day_delta[])
            WHERE (SELECT count(*) FROM months) = cardinality($2)
            ON CONFLICT (client_id, day, service, operation, model) DO UPDATE SET
                request_count = t.request_count + excluded.request_count,
                units = t.units + excluded.units,
                input_tokens = t.input_tokens + excluded.input_tokens,
                output_tokens = t.output_tokens + excluded.output_tokens,
                cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
                cost = t.cost + excluded.cost,
                unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count
        ), events AS (
            INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units,
                input_tokens, output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject,
                external_id, idempotency_key, metadata)
            SELECT * FROM unnest($5::new_event[])
            WHERE (SELECT count(*) FROM claimed) = cardinality($1)
        )
        SELECT claims.all_free AS "all_free!",
               CASE WHEN claims.all_free THEN '{}' ELSE ARRAY(SELECT event_seq FROM claimed) END AS "claimed!",
               m.client_id AS "client_id?", m.month AS "month?", m.cost AS "cost?: Numeric",
               m.raised_alerts AS "raised_alerts?", m.open_alerts AS "open_alerts?"
        FROM (SELECT count(*) = cardinality($1) AS all_free FROM claimed) AS claims LEFT JOIN months m ON true"#,
        composites(claims.iter().map(Key)) as Vec<Composite<Key<'_>>>,
        composites(months) as Vec<Composite<Delta<'_, MonthKey>>>,
        composites(month_services) as Vec<Composite<Delta<'_, MonthServiceKey>>>,
        composites(days) as Vec<Composite<Delta<'_, DayKey>>>,
        composites(events.iter().map(Event)) as Vec<Composite<Event<'_>>>
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
