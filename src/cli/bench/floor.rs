//! The two floors: (b) what PostgreSQL gives a careful engineer who writes a transaction an event through a pool, and
//! (g) what the same server gives for a gRPC call that does nothing.

use super::events::Events;
use super::window::{Tally, Window};
use crate::cli::connect::Connection;
use crate::cli::connect::status_error;
use crate::clock::Clock;
use crate::domain::catalog::Catalog;
use crate::domain::event::{EventId, PayloadHash, PricedEvent, UsageEvent};
use crate::domain::period::{Month, day_of};
use crate::store::{clients, floor, partitions};
use chrono_tz::Tz;
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// How long a caller of the floor waits for its turn.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(60);

/// A pool with all its connections open. As fast as it gets: no ping before and no roll-back after each use.
pub async fn pool(options: &PgConnectOptions, connections: u32) -> anyhow::Result<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // Many callers wait for the row of a hot client, each for all before it.
        .connect_with(options.clone().options([("lock_timeout", "0")]))
        .await?;
    let mut open = vec![];
    for _ in 0..connections {
        open.push(pool.acquire().await?);
    }
    Ok(pool)
}

/// Makes the floor's clients and a place for their events, and records one event of each, so that all rows are there.
/// Gives how many.
pub async fn prepare(pool: &PgPool, catalog: &Catalog, events: &Events) -> anyhow::Result<u64> {
    let ids = events.client_ids();
    let mut conn = pool.acquire().await?;
    clients::insert_missing(&mut conn, &ids, Tz::UTC).await?;
    let now = Clock::system().now();
    let month = Month::of(now.date_naive());
    for month in [month, month.next()] {
        partitions::ensure(&mut conn, month).await?;
    }
    drop(conn);
    let count = ids.len() as u64;
    let recordings = stream::iter(ids).map(async |id| record(pool, catalog, Events::checked_of(id, now)).await);
    let connections = pool.options().get_max_connections() as usize;
    recordings.buffer_unordered(connections).try_collect::<Vec<()>>().await?;
    Ok(count)
}

/// Floor (b).
pub async fn transactions(
    pool: PgPool,
    catalog: Arc<Catalog>,
    events: Events,
    window: Arc<Window>,
) -> anyhow::Result<Tally> {
    let clock = Clock::system();
    let mut tally = Tally::default();
    while !window.is_over() {
        let event = events.next_checked(clock.now());
        let begin = Instant::now();
        record(&pool, &catalog, event).await?;
        tally.add(&window, begin, 1);
    }
    Ok(tally)
}

async fn record(
    pool: &PgPool,
    catalog: &Catalog,
    (event, payload_hash): (UsageEvent, PayloadHash),
) -> anyhow::Result<()> {
    let priced = PricedEvent {
        event: &event,
        id: EventId::new(event.event_time),
        day: day_of(event.event_time, Tz::UTC),
        charge: catalog.charge(&event),
    };
    let mut tx = pool.begin().await?;
    let new = floor::record(&mut tx, &priced, &payload_hash).await?;
    tx.commit().await?;
    anyhow::ensure!(new, "a new key was taken");
    Ok(())
}

/// Floor (g).
pub async fn health_checks(channel: Connection, window: Arc<Window>) -> anyhow::Result<Tally> {
    let mut client = HealthClient::new(channel);
    let mut tally = Tally::default();
    while !window.is_over() {
        let begin = Instant::now();
        let request = HealthCheckRequest { service: String::new() };
        client.check(request).await.map_err(|status| status_error(&status))?;
        tally.add_empty_call(&window, begin);
    }
    Ok(tally)
}
