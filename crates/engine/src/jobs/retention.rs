//! Closes months past their retention: their sums stay, their events go. Changes of alerts and notifications past theirs go too.

use super::{Work, counted};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::period::Month;
use meterd_store::{alert_feed, connect, deployment, locks, outbox, partitions};
use sqlx::{Connection, PgConnection};
use std::time::Duration;

/// Changes of alerts that one transaction removes: it holds the row that every change of an alert waits for.
const FEED_CHUNK_ROWS: i64 = 1_000;
/// Notifications that one transaction removes.
const NOTIFICATIONS_CHUNK_ROWS: i64 = 1_000;

/// How often a partition that somebody reads is tried, and the pause between, in which those who waited get through.
const DETACH_TRIES: usize = 4;
const DETACH_PAUSE: Duration = Duration::from_millis(400);

/// Prunes the feed, closes months, and takes away the partitions that only closed months have events in.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let changes = counted(prune_feed(work).await?, "change");
    let notifications = counted(prune_notifications(work).await?, "notification");
    let mut conn = work.pool.acquire().await?;
    // No one clock is trusted with what cannot be undone: the earlier of this process's and the database's.
    let now = work.clock.now().min(connect::now(&work.pool).await?);
    if let Some(last) = last_to_close(now, work.config.retention_months) {
        close_through(&mut conn, last).await?;
    }
    let Some(closed) = deployment::closed_through(&mut conn).await? else {
        return Ok(format!("every month is kept; {changes} of alerts and {notifications} pruned"));
    };
    let drop_table = work.config.drop_closed_months;
    let gone = partitions::before(&mut conn, closed).await?;
    for &month in &gone {
        detach(&mut conn, month, drop_table).await?;
        tracing::info!(%month, drop_table, "a partition of closed months was taken away");
    }
    let partitions = counted(gone.len() as u64, "partition");
    let action = if drop_table { "dropped" } else { "detached" };
    Ok(format!(
        "months through {closed} are closed; {partitions} {action}; {changes} of alerts and {notifications} pruned"
    ))
}

/// The month before the present one and the `retention_months` before it; nothing where everything is kept.
fn last_to_close(now: DateTime<Utc>, retention_months: u32) -> Option<Month> {
    let present = Month::of(now.date_naive());
    (retention_months > 0).then(|| (0..=retention_months).fold(present, |month, _| month.previous()))
}

async fn close_through(conn: &mut PgConnection, last: Month) -> meterd_store::Result<()> {
    if deployment::closed_through(conn).await?.is_some_and(|closed| closed >= last) {
        return Ok(());
    }
    let mut tx = conn.begin().await?;
    // Every batch shares it from before it asks which months are closed until its commit.
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

/// Removes notifications that ended before what is kept of the feed.
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
