//! Deletes idempotency keys, and first answers of creates, that are older than their retention.

use super::{Work, counted};
use crate::store::{deployment, keys, requests};

/// Rows of one transaction.
const CHUNK_ROWS: i64 = 10_000;

/// Deletes the keys of events that would be refused as too old, those of backfills when their month is closed too.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let days = work.settings.jobs.key_retention_days;
    let (mut live_count, mut after) = (0, None);
    loop {
        let pruned = keys::prune_live(&work.pool, days, after, CHUNK_ROWS).await?;
        live_count += pruned.count;
        // Back to the beginning at the end, for older ones that stand behind younger ones.
        match (pruned.count == CHUNK_ROWS, after) {
            (true, _) => after = pruned.last_claim_time,
            (false, Some(_)) => after = None,
            (false, None) => break,
        }
    }
    let mut backfill_count = 0;
    if let Some(closed) = deployment::closed_through(&mut *work.pool.acquire().await?).await? {
        loop {
            let count = keys::prune_backfill(&work.pool, days, closed, CHUNK_ROWS).await?;
            backfill_count += count;
            if count < CHUNK_ROWS {
                break;
            }
        }
    }
    let mut request_count = 0;
    loop {
        let count = requests::prune(&work.pool, days, CHUNK_ROWS).await?;
        request_count += count;
        if count < CHUNK_ROWS {
            break;
        }
    }
    let keys = counted((live_count + backfill_count) as u64, "key");
    Ok(format!("{keys} and {} deleted", counted(request_count as u64, "request id")))
}
