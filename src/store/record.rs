//! Writing events: their keys, the events themselves, and what they add to months, month's services and days.

use crate::domain::alert::AlertSet;
use crate::domain::decimal::{Decimal, Total};
use crate::domain::event::{PayloadHash, PricedEvent};
use crate::domain::period::Month;
use crate::domain::rollup::Deltas;
use crate::store::copy::{CopyIn, Row};
use crate::store::rollups::MonthRow;
use crate::store::sums::SumsColumns;
use chrono::{DateTime, NaiveDate, Utc};
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
pub async fn record(conn: &mut PgConnection, events: &[NewEvent<'_>], deltas: &Deltas) -> sqlx::Result<Written> {
    write(conn, events, events, deltas).await
}

/// Writes events whose keys this transaction has claimed.
pub async fn record_claimed(
    conn: &mut PgConnection,
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> sqlx::Result<Vec<MonthRow>> {
    written(write(conn, &[], events, deltas).await?)
}

/// Adds the deltas to months, their services and days, and gives the months as they are now.
pub async fn add(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<Vec<MonthRow>> {
    written(write(conn, &[], &[], deltas).await?)
}

fn written(written: Written) -> sqlx::Result<Vec<MonthRow>> {
    match written {
        Written::All(months) => Ok(months),
        Written::Claimed(_) => Err(sqlx::Error::Protocol("rows of months were neither added nor changed".into())),
    }
}

/// Does the same as [`record`] for many events, faster. A taken key is an error, a unique violation, and ends the
/// transaction.
pub async fn copy(conn: &mut PgConnection, events: &[NewEvent<'_>], deltas: &Deltas) -> sqlx::Result<Vec<MonthRow>> {
    let keys = "COPY idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill)
        FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, keys, 6).await?;
    for NewEvent { priced, payload_hash, backfill } in events {
        let put = |row: &mut Row| {
            row.text(&priced.event.client_id);
            row.text(&priced.event.idempotency_key);
            row.bytes(&payload_hash[..]);
            row.time(priced.id.time);
            row.int8(priced.id.seq);
            row.bool(*backfill);
        };
        copy.add(put).await?;
    }
    copy.finish().await?;

    let rows =
        "COPY usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
        output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
        idempotency_key, metadata) FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, rows, 19).await?;
    for NewEvent { priced, .. } in events {
        let PricedEvent { event, id, day, charge } = priced;
        let put = |row: &mut Row| {
            row.text(&event.client_id);
            row.time(id.time);
            row.int8(id.seq);
            row.date(*day);
            row.text(&event.service);
            row.text(&event.operation);
            row.text(&event.model);
            row.numeric(event.measures.units);
            row.int8(event.measures.input_tokens);
            row.int8(event.measures.output_tokens);
            row.int8(event.measures.cached_input_tokens);
            row.optional(event.measures.amount, Row::numeric);
            let (charge, price_id, reason) = charge.columns();
            row.optional(charge, Row::numeric);
            row.optional(price_id, Row::int8);
            row.optional(reason, Row::int2);
            row.text(&event.subject);
            row.text(&event.external_id);
            row.text(&event.idempotency_key);
            row.optional(event.metadata.as_deref(), Row::jsonb);
        };
        copy.add(put).await?;
    }
    copy.finish().await?;
    add(conn, deltas).await
}

/// The columns of the keys to claim.
#[derive(Default)]
struct Claims {
    client_ids: Vec<String>,
    keys: Vec<String>,
    payload_hashes: Vec<Vec<u8>>,
    event_times: Vec<DateTime<Utc>>,
    event_seqs: Vec<i64>,
    backfills: Vec<bool>,
}

impl Claims {
    fn of(events: &[NewEvent<'_>]) -> Self {
        let mut claims = Self::default();
        for NewEvent { priced, payload_hash, backfill } in events {
            claims.client_ids.push(priced.event.client_id.to_string());
            claims.keys.push(priced.event.idempotency_key.to_string());
            claims.payload_hashes.push(payload_hash.to_vec());
            claims.event_times.push(priced.id.time);
            claims.event_seqs.push(priced.id.seq);
            claims.backfills.push(*backfill);
        }
        claims
    }
}

/// One value an event.
fn column<'a, T>(events: &'a [NewEvent<'a>], of: impl Fn(&'a PricedEvent<'a>) -> T) -> Vec<T> {
    events.iter().map(|event| of(&event.priced)).collect()
}

/// The one statement that changes sums. Months wait until all keys are claimed, and what is below them until they are locked,
/// each sorted: that is the one lock order of everyone. What is below a month, nobody changes without its row.
async fn write(
    conn: &mut PgConnection,
    claims: &[NewEvent<'_>],
    events: &[NewEvent<'_>],
    deltas: &Deltas,
) -> sqlx::Result<Written> {
    let claims = Claims::of(claims);
    let Deltas { months, month_services, days } = deltas;
    let month_sums: SumsColumns = months.values().collect();
    let service_sums: SumsColumns = month_services.values().collect();
    let day_sums: SumsColumns = days.values().collect();
    let rows = sqlx::query!(
        r#"WITH claimed AS (
            INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill)
            SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::timestamptz[], $5::bigint[], $6::bool[])
            ON CONFLICT DO NOTHING
            RETURNING event_seq
        ), months AS (
            INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
                cached_input_tokens, cost, unpriced_event_count, summary_stale_since)
            SELECT *, now() FROM unnest($7::text[], $8::date[], $9::bigint[], $10::numeric[], $11::bigint[],
                $12::bigint[], $13::bigint[], $14::numeric[], $15::bigint[])
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
            SELECT * FROM unnest($16::text[], $17::date[], $18::text[], $19::bigint[], $20::numeric[], $21::bigint[],
                $22::bigint[], $23::bigint[], $24::numeric[], $25::bigint[])
            WHERE (SELECT count(*) FROM months) = cardinality($7)
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
            SELECT * FROM unnest($26::text[], $27::date[], $28::text[], $29::text[], $30::text[], $31::bigint[],
                $32::numeric[], $33::bigint[], $34::bigint[], $35::bigint[], $36::numeric[], $37::bigint[])
            WHERE (SELECT count(*) FROM months) = cardinality($7)
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
            SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
                output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
                idempotency_key, metadata::jsonb
            FROM unnest($38::text[], $39::timestamptz[], $40::bigint[], $41::date[], $42::text[], $43::text[],
                $44::text[], $45::numeric[], $46::bigint[], $47::bigint[], $48::bigint[], $49::numeric[],
                $50::numeric[], $51::bigint[], $52::smallint[], $53::text[], $54::text[], $55::text[], $56::text[])
                AS new (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
                output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
                idempotency_key, metadata)
            WHERE (SELECT count(*) FROM claimed) = cardinality($1)
        )
        SELECT claims.all_free AS "all_free!",
               CASE WHEN claims.all_free THEN '{}' ELSE ARRAY(SELECT event_seq FROM claimed) END AS "claimed!",
               m.client_id AS "client_id?", m.month AS "month?", m.cost AS "cost?: Total",
               m.raised_alerts AS "raised_alerts?", m.open_alerts AS "open_alerts?"
        FROM (SELECT count(*) = cardinality($1) AS all_free FROM claimed) AS claims LEFT JOIN months m ON true"#,
        &claims.client_ids,
        &claims.keys,
        &claims.payload_hashes,
        &claims.event_times,
        &claims.event_seqs,
        &claims.backfills,
        &months.keys().map(|key| key.0.to_string()).collect::<Vec<String>>(),
        &months.keys().map(|key| key.1.first_day()).collect::<Vec<NaiveDate>>(),
        &month_sums.request_counts,
        &month_sums.units as &[Total],
        &month_sums.input_tokens,
        &month_sums.output_tokens,
        &month_sums.cached_input_tokens,
        &month_sums.costs as &[Total],
        &month_sums.unpriced_event_counts,
        &month_services.keys().map(|key| key.0.to_string()).collect::<Vec<String>>(),
        &month_services.keys().map(|key| key.1.first_day()).collect::<Vec<NaiveDate>>(),
        &month_services.keys().map(|key| key.2.to_string()).collect::<Vec<String>>(),
        &service_sums.request_counts,
        &service_sums.units as &[Total],
        &service_sums.input_tokens,
        &service_sums.output_tokens,
        &service_sums.cached_input_tokens,
        &service_sums.costs as &[Total],
        &service_sums.unpriced_event_counts,
        &days.keys().map(|key| key.0.to_string()).collect::<Vec<String>>(),
        &days.keys().map(|key| key.1).collect::<Vec<NaiveDate>>(),
        &days.keys().map(|key| key.2.to_string()).collect::<Vec<String>>(),
        &days.keys().map(|key| key.3.to_string()).collect::<Vec<String>>(),
        &days.keys().map(|key| key.4.to_string()).collect::<Vec<String>>(),
        &day_sums.request_counts,
        &day_sums.units as &[Total],
        &day_sums.input_tokens,
        &day_sums.output_tokens,
        &day_sums.cached_input_tokens,
        &day_sums.costs as &[Total],
        &day_sums.unpriced_event_counts,
        &column(events, |e| e.event.client_id.to_string()),
        &column(events, |e| e.id.time),
        &column(events, |e| e.id.seq),
        &column(events, |e| e.day),
        &column(events, |e| e.event.service.to_string()),
        &column(events, |e| e.event.operation.to_string()),
        &column(events, |e| e.event.model.to_string()),
        &column(events, |e| e.event.measures.units) as &[Decimal],
        &column(events, |e| e.event.measures.input_tokens),
        &column(events, |e| e.event.measures.output_tokens),
        &column(events, |e| e.event.measures.cached_input_tokens),
        &column(events, |e| e.event.measures.amount) as &[Option<Decimal>],
        &column(events, |e| e.charge.columns().0) as &[Option<Decimal>],
        &column(events, |e| e.charge.columns().1) as &[Option<i64>],
        &column(events, |e| e.charge.columns().2) as &[Option<i16>],
        &column(events, |e| e.event.subject.clone()),
        &column(events, |e| e.event.external_id.clone()),
        &column(events, |e| e.event.idempotency_key.to_string()),
        &column(events, |e| e.event.metadata.clone()) as &[Option<String>]
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
            cost: row.cost.unwrap_or_default(),
            raised: AlertSet(row.raised_alerts.unwrap_or_default()),
            open: AlertSet(row.open_alerts.unwrap_or_default()),
        });
    }
    Ok(Written::All(months))
}
