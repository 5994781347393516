//! Closes months past their retention: their sums stay, their events go.

use super::{RetentionAction, Work, counted};
use crate::domain::period::Month;
use crate::store::{deployment, locks, partitions};

/// Closes every month but the present one and the `retention_months` before it, then takes away the partitions that only
/// closed months have events in.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let mut conn = work.pool.acquire().await?;
    if work.settings.retention_months > 0 {
        let mut last = Month::of(work.clock.now().date_naive()).previous();
        for _ in 0..work.settings.retention_months {
            last = last.previous();
        }
        if deployment::closed_through(&mut conn).await?.is_none_or(|closed| closed < last) {
            let mut tx = sqlx::Connection::begin(&mut *conn).await?;
            // Every batch shares it from before it asks whether a month is closed until its commit.
            locks::change_versions(&mut tx).await?;
            deployment::close_through(&mut tx, last).await?;
            tx.commit().await?;
            tracing::info!(closed_through = %last, "months are closed");
        }
    }
    let Some(closed) = deployment::closed_through(&mut conn).await? else {
        return Ok("every month is kept".into());
    };
    let drop_table = work.settings.retention_action == RetentionAction::Drop;
    let gone = partitions::before(&mut conn, closed).await?;
    for &month in &gone {
        partitions::detach(&mut conn, month, drop_table).await?;
        tracing::info!(%month, drop_table, "a partition of closed months was taken away");
    }
    let what = if drop_table { "dropped" } else { "detached" };
    Ok(format!("months through {closed} are closed; {} {what}", counted(gone.len() as u64, "partition")))
}
