//! Applies the pending usage of all clients. Replicas only apply the rows of clients with many rows, as long as they run.

use super::{Work, counted};
use crate::ledger::apply_pending_usage;

/// Applies all pending rows.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let row_count = apply_pending_usage(&work.pool).await?;
    Ok(format!("{} applied", counted(row_count as u64, "pending row")))
}
