//! Deletes idempotency keys, and stored answers of create requests, that are older than their retention. Keys are deleted
//! by whole generations.
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
use meterd_store::usage::generations::{self, ClosedGeneration, KeyRetention};

/// Maximum number of requests that one transaction deletes.
const CHUNK_ROWS: i64 = 10_000;

/// Deletes the keys past their retention. Keys of backfills are only deleted if their month is closed too. If one kind of rows
/// cannot be deleted, the others still are, and the run fails.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let before = work.data_time().await? - TimeDelta::days(work.config.key_retention_days.into());
    let (mut key_count, mut request_count) = (0, 0);
    let failures = [
        ("keys", prune_keys(work, before, &mut key_count).await),
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

/// Drops the closed generations that have no key to keep, and rewrites those of which at least half can be deleted. So the
/// keys of backfills of open months do not keep the keys of live events.
async fn prune_keys(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    let closed_through = deployment::closed_through(&mut *work.pool.acquire().await?).await?;
    let retention = KeyRetention { before, closed_through };
    let mut begin_time = None;
    for ClosedGeneration { generation, close_time, .. } in generations::list(&work.pool).await?.closed {
        if begin_time.replace(close_time).is_some_and(|begin_time| begin_time >= before) {
            break;
        }
        let keys = generations::count_kept(&work.pool, generation, retention).await?;
        if keys.kept == 0 && close_time < before {
            reject_events_before(work, before).await?;
            generations::drop_closed(&work.pool, generation).await?;
        } else if keys.kept < keys.all && keys.kept <= keys.all / 2 {
            reject_events_before(work, before).await?;
            generations::rewrite_closed(&work.pool, generation, retention).await?;
        } else {
            continue;
        }
        *count += (keys.all - keys.kept) as u64;
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

async fn prune_requests(work: &Work, before: DateTime<Utc>, count: &mut u64) -> meterd_store::Result<()> {
    loop {
        let pruned = requests::prune(&work.pool, before, CHUNK_ROWS).await?;
        *count += pruned as u64;
        if pruned < CHUNK_ROWS {
            return Ok(());
        }
    }
}
