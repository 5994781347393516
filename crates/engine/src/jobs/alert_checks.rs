//! Evaluates the alert rules of all active clients, because alerts also depend on the time.

use super::{Work, counted};
use crate::alerts::check;

/// Checks all clients. If a client cannot be checked, the others are still checked, and the result names one that failed.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let report = check::all(&work.pool, &work.alert_settings, || true).await?;
    let mut done = format!(
        "{} checked, {} raised, {} resolved",
        counted(report.checked_count, "client"),
        counted(report.raised_count, "alert"),
        report.resolved_count
    );
    if let Some((client_id, error)) = report.failed.first() {
        done += &format!("; {} could not be checked, such as {client_id:?}: {error}", report.failed_count);
    }
    Ok(done)
}
