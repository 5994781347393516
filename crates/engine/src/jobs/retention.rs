//! Closes months past their retention: their sums are kept, their events are removed. Also deletes changes of alerts and
//! notifications that are past their own retention.

use super::{Work, counted};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::period::Month;
use meterd_store::alerts::{feed as alert_feed, outbox};
use meterd_store::database::{connect, deployment};
use meterd_store::locks;
use meterd_store::usage::partitions;
use sqlx::{Connection, PgConnection};
use std::time::Duration;

/// Maximum number of changes of alerts that one transaction deletes. It locks a row that every change of an alert needs.
const FEED_CHUNK_ROWS: i64 = 1_000;
/// Maximum number of notifications that one transaction deletes.
const NOTIFICATIONS_CHUNK_ROWS: i64 = 1_000;

/// Maximum number of attempts to detach a partition that is being read, and the pause between them. In the pause, statements that
/// waited for the attempt continue.
const DETACH_TRIES: usize = 4;
const DETACH_PAUSE: Duration = Duration::from_millis(400);

/// Prunes the feed and the notifications, closes months, and removes the partitions that only have events of closed months.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let changes = counted(prune_feed(work).await?, "change");
    let notifications = counted(prune_notifications(work).await?, "notification");
    let mut conn = work.pool.acquire().await?;
    // The earlier of two clocks: closing a month cannot be undone, so one wrong clock must not cause it.
    let now = work.clock.now().min(connect::now(&work.pool).await?);
    if let Some(last) = last_to_close(now, work.config.retention_months) {
        close_through(&mut conn, last).await?;
    }
    let Some(closed) = deployment::closed_through(&mut conn).await? else {
        return Ok(format!("every month is kept; {changes} of alerts and {notifications} pruned"));
    };
    let drop_table = work.config.drop_closed_months;
    let removed = partitions::before(&mut conn, closed).await?;
    for &month in &removed {
        detach(&mut conn, month, drop_table).await?;
        tracing::info!(%month, drop_table, "a partition of closed months was removed");
    }
    let partitions = counted(removed.len() as u64, "partition");
    let action = if drop_table { "dropped" } else { "detached" };
    Ok(format!(
        "months through {closed} are closed; {partitions} {action}; {changes} of alerts and {notifications} pruned"
    ))
}

/// Returns the newest month that is past its retention: `retention_months` whole months between it and the current month stay
/// open. Returns `None` if all months are kept.
fn last_to_close(now: DateTime<Utc>, retention_months: u32) -> Option<Month> {
    let current = Month::of(now.date_naive());
    (retention_months > 0).then(|| (0..=retention_months).fold(current, |month, _| month.previous()))
}

async fn close_through(conn: &mut PgConnection, last: Month) -> meterd_store::Result<()> {
    if deployment::closed_through(conn).await?.is_some_and(|closed| closed >= last) {
        return Ok(());
    }
    let mut tx = conn.begin().await?;
    // Every batch shares this lock from before it reads which months are closed until its commit.
    locks::change_versions(&mut tx).await?;
    deployment::close_through(&mut tx, last).await?;
    tx.commit().await?;
    tracing::info!(closed_through = %last, "months are closed");
    Ok(())
}

async fn detach(conn: &mut PgConnection, month: Month, drop_table: bool) -> meterd_store::Result<()> {
    let mut tries = 1;
    loop {
        match partitions::detach(conn, month, drop_table).await {
            Err(error) if error.is_lock_timeout() && tries < DETACH_TRIES => tokio::time::sleep(DETACH_PAUSE).await,
            done => return done,
        }
        tries += 1;
    }
}

async fn prune_feed(work: &Work) -> meterd_store::Result<u64> {
    let before = work.data_time().await? - TimeDelta::days(work.config.alert_feed_days.into());
    let mut pruned = 0;
    loop {
        let count = alert_feed::prune(&work.pool, before, FEED_CHUNK_ROWS).await?;
        pruned += count;
        if count < FEED_CHUNK_ROWS as u64 {
            return Ok(pruned);
        }
    }
}

/// Deletes finished notifications that are older than the retention of the feed.
async fn prune_notifications(work: &Work) -> meterd_store::Result<u64> {
    let before = work.data_time().await? - TimeDelta::days(work.config.alert_feed_days.into());
    let mut pruned = 0;
    loop {
        let count = outbox::prune(&work.pool, before, NOTIFICATIONS_CHUNK_ROWS).await?;
        pruned += count;
        if count < NOTIFICATIONS_CHUNK_ROWS as u64 {
            return Ok(pruned);
        }
    }
}
