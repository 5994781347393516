//! Applies the usage that is pending, of all clients: that of clients with few events, and that of replicas that have ended.

use super::{Work, counted};
use crate::ledger::apply_pending_usage;

/// Applies what is pending.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let row_count = apply_pending_usage(&work.pool).await?;
    Ok(format!("{} applied", counted(row_count as u64, "pending row")))
}
