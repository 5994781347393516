//! Deletes idempotency keys, and first answers of creates, that are older than their retention.
//!
//! No live event of a given time is counted twice for it: before a key goes, the deployment remembers through when keys are
//! gone, and every batch refuses what may have had one. A backfill takes events of any age, so one that repeats a live event whose key is
//! gone counts it again; its own keys are kept until their months are closed.

use super::{Work, counted};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_store::{deployment, keys, locks, requests};

/// Rows of one transaction.
const CHUNK_ROWS: i64 = 10_000;

/// Deletes the keys past their retention, those of backfills when their month is closed too. What
/// fails stops nothing else, and fails the run.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let before = work.data_time().await? - TimeDelta::days(work.config.key_retention_days.into());
    let (mut key_count, mut request_count) = (0, 0);
    let failures = [
        ("keys", prune_live(work, before, &mut key_count).await),
        ("keys of backfills", prune_backfill(work, before, &mut key_count).await),
        ("request ids", prune_requests(work, before, &mut request_count).await),
    ];
    let done = format!("{} and {} deleted", counted(key_count, "key"), counted(request_count, "request id"));
    let failures: Vec<String> = failures
        .into_iter()
        .filter_map(|(what, pruned)| Some(format!("{what} could not all be deleted: {}", pruned.err()?)))
        .collect();
    anyhow::ensure!(failures.is_empty(), "{done}; {}", failures.join("; "));
    Ok(done)
}

async fn prune_live(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    if !keys::is_any_live_before(&work.pool, before).await? {
        return Ok(());
    }
    refuse_before(work, before).await?;
    let mut after = None;
    loop {
        let pruned = keys::prune_live(&work.pool, before, after, CHUNK_ROWS).await?;
        *count += pruned.count as u64;
        if pruned.count < CHUNK_ROWS {
            return Ok(());
        }
        after = pruned.last_time;
    }
}

/// Lets no new event be taken that may have had a key from before this time.
async fn refuse_before(work: &Work, before: DateTime<Utc>) -> meterd_store::Result<()> {
    let mut tx = work.pool.begin().await?;
    // Every batch shares it from before it claims its keys until its commit: none that looks for keys by the time before is
    // under way when they go.
    locks::change_versions(&mut tx).await?;
    deployment::prune_keys_through(&mut tx, before).await?;
    tx.commit().await.map_err(Into::into)
}

async fn prune_backfill(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    let closed = deployment::closed_through(&mut *work.pool.acquire().await?).await?;
    let Some(closed) = closed else { return Ok(()) };
    let mut after = None;
    loop {
        let pruned = keys::prune_backfill(&work.pool, before, closed, after, CHUNK_ROWS).await?;
        *count += pruned.count as u64;
        if pruned.count < CHUNK_ROWS {
            return Ok(());
        }
        after = pruned.last_time;
    }
}

async fn prune_requests(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    loop {
        let pruned = requests::prune(&work.pool, before, CHUNK_ROWS).await?;
        *count += pruned as u64;
        if pruned < CHUNK_ROWS {
            return Ok(());
        }
    }
}
