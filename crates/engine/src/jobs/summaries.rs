//! Refreshes the summaries of client-months that changed.

use super::{Work, counted};
use meterd_domain::period::Month;
use meterd_store::{connect, summaries, summary_totals};
use sqlx::PgPool;

/// Client-months of one transaction: few, because it holds their rows.
const BATCH_MONTHS: i64 = 200;

/// Refreshes everything that is stale.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let written = refresh(&work.pool, None, None).await?;
    Ok(format!("{} refreshed", counted(written as u64, "client-month")))
}

/// Refreshes what is stale, of one client or month or of all; gives how many summaries were written.
pub async fn refresh(pool: &PgPool, client_id: Option<&str>, month: Option<Month>) -> meterd_store::Result<usize> {
    // What becomes stale meanwhile is the next run's, so that this one ends.
    let before = connect::now(pool).await?;
    let mut written = 0;
    loop {
        let stale = summaries::stale(pool, client_id, month, before, BATCH_MONTHS).await?;
        if stale.is_empty() {
            break;
        }
        written += stale.len();
        let last = stale.len() < BATCH_MONTHS as usize;
        refresh_batch(pool, stale).await?;
        if last {
            break;
        }
    }
    // Whoever left some behind: a run that was cut, or another month's change.
    for month in summary_totals::months_to_total(pool).await? {
        summary_totals::write_totals(&mut *pool.acquire().await?, month).await?;
    }
    Ok(written)
}

/// Refreshes a batch; where that takes too long, in halves, so that a few months of very many services are not in the way
/// for ever.
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
