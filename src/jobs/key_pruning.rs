//! Deletes idempotency keys, and first answers of creates, that are older than their retention.

use super::{Work, counted};
use crate::store::{deployment, keys, requests};

/// Rows of one transaction.
const CHUNK_ROWS: i64 = 10_000;

/// Deletes the keys of events that would be refused as too old, those of backfills when their month is closed too. What
/// fails stops nothing else, and fails the run.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let (mut key_count, mut request_count) = (0, 0);
    let failures = [
        ("keys", prune_live(work, &mut key_count).await),
        ("keys of backfills", prune_backfill(work, &mut key_count).await),
        ("request ids", prune_requests(work, &mut request_count).await),
    ];
    let done = format!("{} and {} deleted", counted(key_count, "key"), counted(request_count, "request id"));
    let failures: Vec<String> = failures
        .into_iter()
        .filter_map(|(what, pruned)| Some(format!("{what} could not all be deleted: {}", pruned.err()?)))
        .collect();
    anyhow::ensure!(failures.is_empty(), "{done}; {}", failures.join("; "));
    Ok(done)
}

async fn prune_live(work: &Work, count: &mut u64) -> sqlx::Result<()> {
    let mut after = None;
    loop {
        let pruned = keys::prune_live(&work.pool, work.settings.jobs.key_retention_days, after, CHUNK_ROWS).await?;
        *count += pruned.count as u64;
        if pruned.count < CHUNK_ROWS {
            return Ok(());
        }
        after = pruned.last_time;
    }
}

async fn prune_backfill(work: &Work, count: &mut u64) -> sqlx::Result<()> {
    let closed = deployment::closed_through(&mut *work.pool.acquire().await?).await?;
    let Some(closed) = closed else { return Ok(()) };
    let mut after = None;
    loop {
        let days = work.settings.jobs.key_retention_days;
        let pruned = keys::prune_backfill(&work.pool, days, closed, after, CHUNK_ROWS).await?;
        *count += pruned.count as u64;
        if pruned.count < CHUNK_ROWS {
            return Ok(());
        }
        after = pruned.last_time;
    }
}

async fn prune_requests(work: &Work, count: &mut u64) -> sqlx::Result<()> {
    loop {
        let pruned = requests::prune(&work.pool, work.settings.jobs.key_retention_days, CHUNK_ROWS).await?;
        *count += pruned as u64;
        if pruned < CHUNK_ROWS {
            return Ok(());
        }
    }
}
