//! The floors: (b) one transaction per event through a pool, (d) one transaction per batch, (e) only COPY, and (g) an empty gRPC
//! call on the measured server.

use super::events::Events;
use super::load::Load;
use super::repeats::Repeats;
use super::window::{Tally, Window};
use crate::connection::Connection;
use crate::product::{Clock, status_error};
use bigdecimal::BigDecimal;
use chrono_tz::Tz;
use meterd_domain::catalog::Catalog;
use meterd_domain::event::{EventId, PricedEvent, UsageEvent, payload_hash};
use meterd_domain::period::{Month, day_of};
use meterd_domain::plan::ClientPlans;
use meterd_domain::pricing::Pricing;
use meterd_store::bench::floor;
use meterd_store::clients;
use meterd_store::usage::partitions;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection as _};
use std::sync::Arc;
use std::time::Duration;
use tonic_health::pb::HealthCheckRequest;

/// Longest wait of a caller for a connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(60);
/// Events of a transaction that creates the clients.
const PREPARE_EVENTS: usize = 1_000;

/// Without a lock timeout: many callers wait for the row of a hot client.
fn patient(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().options([("lock_timeout", "0")])
}

/// A pool with all its connections open. For speed, it does not ping a connection before each use.
pub async fn pool(options: &PgConnectOptions, connections: u32) -> anyhow::Result<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(patient(options))
        .await?;
    let mut open = vec![];
    for _ in 0..connections {
        open.push(pool.acquire().await?);
    }
    Ok(pool)
}

/// Opens connections without a pool.
pub async fn connections(options: &PgConnectOptions, count: u32) -> anyhow::Result<Vec<PgConnection>> {
    let mut connections = vec![];
    for _ in 0..count {
        connections.push(patient(options).connect().await?);
    }
    Ok(connections)
}

/// Creates the clients of the floor and the partitions, and records one event of each client and kind, so that all rows exist.
/// Returns the number of events.
pub async fn prepare(options: &PgConnectOptions, catalog: &Catalog, events: &Events) -> anyhow::Result<u64> {
    let mut conn = patient(options).connect().await?;
    clients::insert_missing(&mut conn, &events.client_ids(), Tz::UTC).await?;
    let now = Clock::system().now();
    let month = Month::of(now.date_naive());
    for month in [month, month.next()] {
        partitions::ensure(&mut conn, month).await?;
    }
    let all: Vec<UsageEvent> = events.all_checked(now).collect();
    for batch in all.chunks(PREPARE_EVENTS) {
        record_batch(&mut conn, catalog, batch, batch.len()).await?;
    }
    conn.close().await?;
    Ok(all.len() as u64)
}

/// Floor (b).
pub async fn transactions(
    pool: PgPool,
    catalog: Arc<Catalog>,
    load: Load,
    window: Arc<Window>,
) -> anyhow::Result<Tally> {
    let clock = Clock::system();
    let (mut tally, mut repeats) = (Tally::default(), Repeats::new(load.duplicates));
    loop {
        let (event, again) = repeats.choose(|| load.events.next_checked(clock.now()));
        let Some(begin) = window.begin(1).await else { break };
        let hash = payload_hash(&event, false);
        let mut tx = pool.begin().await?;
        let new = floor::record(&mut tx, &priced(&event, &catalog), &hash).await?;
        tx.commit().await?;
        anyhow::ensure!(new != again, "an event is new only where its key is");
        tally.add(&window, begin, 1, again.into());
        repeats.remember(Some(event).filter(|_| !again));
    }
    Ok(tally)
}

/// Floor (d).
pub async fn statements(
    mut conn: PgConnection,
    catalog: Arc<Catalog>,
    load: Load,
    size: u32,
    window: Arc<Window>,
) -> anyhow::Result<Tally> {
    let clock = Clock::system();
    let (mut tally, mut repeats) = (Tally::default(), Repeats::new(load.duplicates));
    loop {
        let now = clock.now();
        let chosen = (0..size).map(|_| repeats.choose(|| load.events.next_checked(now)));
        let (events, again): (Vec<UsageEvent>, Vec<bool>) = chosen.unzip();
        let duplicates = again.iter().filter(|again| **again).count();
        let Some(begin) = window.begin(size).await else { break };
        record_batch(&mut conn, &catalog, &events, events.len() - duplicates).await?;
        tally.add(&window, begin, size.into(), duplicates as u64);
        let new = events.into_iter().zip(again).find(|(_, again)| !again);
        repeats.remember(new.map(|(event, _)| event));
    }
    conn.close().await?;
    Ok(tally)
}

/// Records a batch in a transaction and checks how many of its events are new.
async fn record_batch(
    conn: &mut PgConnection,
    catalog: &Catalog,
    events: &[UsageEvent],
    new: usize,
) -> anyhow::Result<()> {
    let hashed = events.iter().map(|event| (priced(event, catalog), payload_hash(event, false))).collect();
    let mut tx = conn.begin().await?;
    let recorded = floor::record_batch(&mut tx, hashed).await?;
    tx.commit().await?;
    anyhow::ensure!(recorded == new, "{recorded} of {} events were new, and not {new}", events.len());
    Ok(())
}

/// Floor (e).
pub async fn copies(
    mut conn: PgConnection,
    catalog: Arc<Catalog>,
    events: Events,
    size: u32,
    window: Arc<Window>,
) -> anyhow::Result<Tally> {
    let clock = Clock::system();
    let mut tally = Tally::default();
    loop {
        let now = clock.now();
        let chunk: Vec<UsageEvent> = (0..size).map(|_| events.next_checked(now)).collect();
        let Some(begin) = window.begin(size).await else { break };
        let mut rows = floor::CopyRows::default();
        for event in &chunk {
            rows.push(&priced(event, &catalog));
        }
        let copied = floor::copy(&mut conn, rows).await?;
        anyhow::ensure!(copied == u64::from(size), "{copied} of {size} rows were copied");
        tally.add(&window, begin, size.into(), 0);
    }
    conn.close().await?;
    Ok(tally)
}

/// Checks that the table has all copied events, with charges.
pub async fn check_copied(conn: &mut PgConnection, acknowledged: u64) -> anyhow::Result<()> {
    let (rows, cost) = floor::sum_copied(conn).await?;
    anyhow::ensure!(u64::try_from(rows) == Ok(acknowledged), "{acknowledged} events were copied, and {rows} are there");
    anyhow::ensure!(cost > BigDecimal::default(), "copied events cost nothing");
    Ok(())
}

fn priced<'a>(event: &'a UsageEvent, catalog: &Catalog) -> PricedEvent<'a> {
    PricedEvent {
        tiers: None,
        event,
        id: EventId::new(event.event_time),
        day: day_of(event.event_time, Tz::UTC),
        charge: Pricing { catalog, plans: &ClientPlans::default() }.charge(event),
    }
}

/// Floor (g).
pub async fn health_checks(channel: Connection, window: Arc<Window>) -> anyhow::Result<Tally> {
    let mut client = channel.health();
    let mut tally = Tally::default();
    while let Some(begin) = window.begin(1).await {
        let request = HealthCheckRequest { service: String::new() };
        client.check(request).await.map_err(|status| status_error(&status))?;
        tally.add_empty_call(&window, begin);
    }
    Ok(tally)
}
