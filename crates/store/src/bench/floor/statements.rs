//! Floor (d): one transaction per batch and one multi-row statement per table, as a careful engineer writes them. Only
//! the benchmarks use it. It does not use the write path of meterd on purpose: the floor must stay the same when the
//! write path changes.

use super::sums::{Sum, Sums};
use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::event::{Charge, PayloadHash, PricedEvent};
use meterd_domain::period::Month;
use sqlx::PgConnection;
use std::collections::{BTreeMap, HashSet};

/// An event of a batch and the hash of its payload.
pub type HashedEvent<'a> = (PricedEvent<'a>, PayloadHash);

/// Records events in the caller's transaction: keys, events, months, month services and days, in the lock order of
/// [`crate::locks`]. Skips events whose keys were already taken. Returns the number of recorded events.
pub async fn record_batch(conn: &mut PgConnection, mut events: Vec<HashedEvent<'_>>) -> crate::Result<usize> {
    let key = |(priced, _): &HashedEvent<'_>| (priced.event.client_id.clone(), priced.event.idempotency_key.clone());
    events.sort_by_cached_key(key);
    let mut number = 0;
    let new = claim(conn, &events).await?;
    events.retain(|_| {
        number += 1;
        new.as_ref().is_none_or(|new| new.contains(&number))
    });
    if events.is_empty() {
        return Ok(0);
    }
    insert(conn, &events).await?;
    let (mut months, mut services, mut days) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (priced, _) in &events {
        let (event, month) = (priced.event, Month::of(priced.day).first_day());
        let sum = Sum::of(priced);
        months.entry((&*event.client_id, month)).or_insert_with(Sum::default).add(&sum);
        services.entry((&*event.client_id, month, &*event.service)).or_insert_with(Sum::default).add(&sum);
        let day = (&*event.client_id, priced.day, &*event.service, &*event.operation, &*event.model);
        days.entry(day).or_insert_with(Sum::default).add(&sum);
    }
    add_months(conn, &months).await?;
    add_services(conn, &services).await?;
    add_days(conn, &days).await?;
    Ok(events.len())
}

/// Claims the keys. Returns the positions, from 1, of the events whose keys were free, or `None` if all keys were free.
async fn claim(conn: &mut PgConnection, events: &[HashedEvent<'_>]) -> crate::Result<Option<HashSet<i64>>> {
    let clients: Vec<&str> = column(events, |priced| &*priced.event.client_id);
    let keys: Vec<&str> = column(events, |priced| &*priced.event.idempotency_key);
    let hashes: Vec<&[u8]> = events.iter().map(|(_, hash)| &hash[..]).collect();
    let times: Vec<DateTime<Utc>> = column(events, |priced| priced.id.time);
    let seqs: Vec<i64> = column(events, |priced| priced.id.seq);
    let claimed = sqlx::query!(
        "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq)
         SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::timestamptz[], $5::bigint[])
         ON CONFLICT DO NOTHING",
        &clients as &[&str],
        &keys as &[&str],
        &hashes as &[&[u8]],
        &times,
        &seqs
    )
    .execute(&mut *conn)
    .await?;
    if claimed.rows_affected() == events.len() as u64 {
        return Ok(None);
    }
    // The row of a key that was already taken refers to another event.
    let numbers = sqlx::query_scalar!(
        r#"SELECT number AS "number!"
           FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[]) WITH ORDINALITY
               AS sent (client_id, idempotency_key, event_time, event_seq, number)
           JOIN idempotency_keys USING (client_id, idempotency_key, event_time, event_seq)"#,
        &clients as &[&str],
        &keys as &[&str],
        &times,
        &seqs
    )
    .fetch_all(conn)
    .await?;
    Ok(Some(numbers.into_iter().collect()))
}

async fn insert(conn: &mut PgConnection, events: &[HashedEvent<'_>]) -> crate::Result<()> {
    let charges = column(events, |priced| match priced.charge {
        Charge::Priced { charge, .. } => Some(numeric::of(charge)),
        Charge::Unpriced(_) => None,
    });
    let price_ids = column(events, |priced| match priced.charge {
        Charge::Priced { price_id, .. } => Some(price_id),
        Charge::Unpriced(_) => None,
    });
    let reasons = column(events, |priced| match priced.charge {
        Charge::Priced { .. } => None,
        Charge::Unpriced(reason) => Some(reason as i16),
    });
    sqlx::query_file!(
        "sql/bench/floor_insert_events.sql",
        &column(events, |priced| &*priced.event.client_id) as &[&str],
        &column(events, |priced| priced.id.time),
        &column(events, |priced| priced.id.seq),
        &column(events, |priced| priced.day),
        &column(events, |priced| &*priced.event.service) as &[&str],
        &column(events, |priced| &*priced.event.operation) as &[&str],
        &column(events, |priced| &*priced.event.model) as &[&str],
        &column(events, |priced| numeric::of(priced.event.measures.units)),
        &column(events, |priced| priced.event.measures.input_tokens),
        &column(events, |priced| priced.event.measures.output_tokens),
        &column(events, |priced| priced.event.measures.cached_input_tokens),
        &column(events, |priced| priced.event.measures.amount.map(numeric::of)) as &[Option<BigDecimal>],
        &charges as &[Option<BigDecimal>],
        &price_ids as &[Option<i64>],
        &reasons as &[Option<i16>],
        &column(events, |priced| &*priced.event.subject) as &[&str],
        &column(events, |priced| &*priced.event.external_id) as &[&str],
        &column(events, |priced| &*priced.event.idempotency_key) as &[&str],
        &column(events, |priced| priced.event.metadata.as_deref()) as &[Option<&str>]
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

fn column<'a, T>(events: &'a [HashedEvent<'a>], of: impl Fn(&'a PricedEvent<'a>) -> T) -> Vec<T> {
    events.iter().map(|(priced, _)| of(priced)).collect()
}

async fn add_months(conn: &mut PgConnection, rows: &BTreeMap<(&str, NaiveDate), Sum>) -> crate::Result<()> {
    let sums = Sums::of(rows);
    sqlx::query_file!(
        "sql/bench/floor_add_months.sql",
        &rows.keys().map(|key| key.0).collect::<Vec<_>>() as &[&str],
        &rows.keys().map(|key| key.1).collect::<Vec<_>>(),
        &sums.requests,
        &sums.units,
        &sums.input_tokens,
        &sums.output_tokens,
        &sums.cached_input_tokens,
        &sums.costs,
        &sums.unpriced
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

async fn add_services(conn: &mut PgConnection, rows: &BTreeMap<(&str, NaiveDate, &str), Sum>) -> crate::Result<()> {
    let sums = Sums::of(rows);
    sqlx::query_file!(
        "sql/bench/floor_add_month_services.sql",
        &rows.keys().map(|key| key.0).collect::<Vec<_>>() as &[&str],
        &rows.keys().map(|key| key.1).collect::<Vec<_>>(),
        &rows.keys().map(|key| key.2).collect::<Vec<_>>() as &[&str],
        &sums.requests,
        &sums.units,
        &sums.input_tokens,
        &sums.output_tokens,
        &sums.cached_input_tokens,
        &sums.costs,
        &sums.unpriced
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Client, day, service, operation and model.
type DayKey<'a> = (&'a str, NaiveDate, &'a str, &'a str, &'a str);

async fn add_days(conn: &mut PgConnection, rows: &BTreeMap<DayKey<'_>, Sum>) -> crate::Result<()> {
    let sums = Sums::of(rows);
    sqlx::query_file!(
        "sql/bench/floor_add_days.sql",
        &rows.keys().map(|key| key.0).collect::<Vec<_>>() as &[&str],
        &rows.keys().map(|key| key.1).collect::<Vec<_>>(),
        &rows.keys().map(|key| key.2).collect::<Vec<_>>() as &[&str],
        &rows.keys().map(|key| key.3).collect::<Vec<_>>() as &[&str],
        &rows.keys().map(|key| key.4).collect::<Vec<_>>() as &[&str],
        &sums.requests,
        &sums.units,
        &sums.input_tokens,
        &sums.output_tokens,
        &sums.cached_input_tokens,
        &sums.costs,
        &sums.unpriced
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}
