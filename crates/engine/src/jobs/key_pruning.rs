//! Deletes idempotency keys, and stored answers of create requests, that are older than their retention.
//!
//! A deleted key does not make a live event count twice: before keys are deleted, the deployment stores the time up to which they
//! are deleted, and every batch then rejects new events that are so old that their key may be deleted. A backfill accepts events
//! of any age. So a backfill that repeats a live event whose key is deleted counts the event again. The keys of backfills
//! themselves are kept until their months are closed.

use super::{Work, counted};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_store::admin::requests;
use meterd_store::database::deployment;
use meterd_store::locks;
use meterd_store::usage::generations::{self, Generations};
use meterd_store::usage::keys;

/// Maximum number of rows that one transaction deletes.
const CHUNK_ROWS: i64 = 10_000;

/// Deletes the keys past their retention. Keys of backfills are only deleted if their month is closed too. If one kind of rows
/// cannot be deleted, the others still are, and the run fails.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let before = work.data_time().await? - TimeDelta::days(work.config.key_retention_days.into());
    let (mut key_count, mut request_count) = (0, 0);
    let failures = [
        ("generations of keys", drop_generations(work, before, &mut key_count).await),
        ("keys", prune_live(work, before, &mut key_count).await),
        ("keys of backfills", prune_backfill(work, before, &mut key_count).await),
        ("request ids", prune_requests(work, before, &mut request_count).await),
    ];
    let done = format!("{} and {} deleted", counted(key_count, "key"), counted(request_count, "request id"));
    let failures: Vec<String> = failures
        .into_iter()
        .filter_map(|(rows, pruned)| Some(format!("{rows} could not all be deleted: {}", pruned.err()?)))
        .collect();
    anyhow::ensure!(failures.is_empty(), "{done}; {}", failures.join("; "));
    Ok(done)
}

/// Drops the closed generations that have no key to keep.
async fn drop_generations(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    let mut conn = work.pool.acquire().await?;
    let closed_through = deployment::closed_through(&mut conn).await?;
    for closed in generations::list(&work.pool).await?.closed {
        let generation = closed.generation;
        if closed.close_time >= before
            || generations::has_keys_to_keep(&work.pool, generation, before, closed_through).await?
        {
            continue;
        }
        reject_events_before(work, before).await?;
        let keys = generations::count(&mut conn, generation).await?;
        generations::drop_closed(&mut conn, generation).await?;
        *count += keys as u64;
    }
    Ok(())
}

/// Returns all generations, oldest first.
async fn all_generations(work: &Work) -> meterd_store::Result<Vec<i32>> {
    let Generations { current, closed } = generations::list(&work.pool).await?;
    Ok(closed.into_iter().map(|closed| closed.generation).chain([current]).collect())
}

async fn prune_live(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    if !keys::is_any_live_before(&work.pool, before).await? {
        return Ok(());
    }
    reject_events_before(work, before).await?;
    for generation in all_generations(work).await? {
        let mut after = None;
        loop {
            let pruned = keys::prune_live(&work.pool, generation, before, after, CHUNK_ROWS).await?;
            *count += pruned.count as u64;
            if pruned.count < CHUNK_ROWS {
                break;
            }
            after = pruned.last_time;
        }
    }
    Ok(())
}

/// Makes batches reject new events whose key may be from before this time.
async fn reject_events_before(work: &Work, before: DateTime<Utc>) -> meterd_store::Result<()> {
    let mut tx = work.pool.begin().await?;
    // Every batch shares this lock from before it claims its keys until its commit. So no batch that knows only the old time is
    // running when the keys are deleted.
    locks::change_versions(&mut tx).await?;
    deployment::prune_keys_through(&mut tx, before).await?;
    tx.commit().await.map_err(Into::into)
}

async fn prune_backfill(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    let closed = deployment::closed_through(&mut *work.pool.acquire().await?).await?;
    let Some(closed) = closed else { return Ok(()) };
    for generation in all_generations(work).await? {
        let mut after = None;
        loop {
            let pruned = keys::prune_backfill(&work.pool, generation, before, closed, after, CHUNK_ROWS).await?;
            *count += pruned.count as u64;
            if pruned.count < CHUNK_ROWS {
                break;
            }
            after = pruned.last_time;
        }
    }
    Ok(())
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
