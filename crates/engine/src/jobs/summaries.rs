//! Refreshes the summaries of client-months whose usage has changed.

use super::{Work, counted};
use meterd_domain::period::Month;
use meterd_store::database::connect;
use meterd_store::usage::{summaries, summary_totals};
use sqlx::PgPool;

/// Maximum number of client-months of one transaction. It is small, because the transaction locks their rows.
const BATCH_MONTHS: i64 = 200;

/// Refreshes all stale summaries.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let written = refresh(&work.pool, None, None).await?;
    Ok(format!("{} refreshed", counted(written as u64, "client-month")))
}

/// Refreshes the stale summaries of one client or month, or of all. Returns the number of summaries that were written.
pub async fn refresh(pool: &PgPool, client_id: Option<&str>, month: Option<Month>) -> meterd_store::Result<usize> {
    // Summaries that become stale during this run are left to the next run. Otherwise this run might never end.
    let before = connect::now(pool).await?;
    let mut written = 0;
    loop {
        let stale = summaries::stale(pool, client_id, month, before, BATCH_MONTHS).await?;
        if stale.is_empty() {
            break;
        }
        written += stale.len();
        let is_last = stale.len() < BATCH_MONTHS as usize;
        refresh_batch(pool, stale).await?;
        if is_last {
            break;
        }
    }
    // Totals can also be out of date after a run that was dropped, or after a change of another month.
    for month in summary_totals::months_to_total(pool).await? {
        summary_totals::write_totals(&mut *pool.acquire().await?, month).await?;
    }
    Ok(written)
}

/// Refreshes a batch. If the statement times out, halves the batch, so that a few months with many services do not block the
/// others forever.
async fn refresh_batch(pool: &PgPool, batch: Vec<(String, Month)>) -> meterd_store::Result<()> {
    let mut batches = vec![batch];
    while let Some(mut batch) = batches.pop() {
        match summaries::refresh(&mut *pool.acquire().await?, batch.clone()).await {
            Err(error) if error.is_statement_timeout() && batch.len() > 1 => {
                let second_half = batch.split_off(batch.len() / 2);
                batches.extend([second_half, batch]);
            }
            done => done?,
        }
    }
    Ok(())
}
