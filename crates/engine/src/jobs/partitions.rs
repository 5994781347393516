//! Creates the partitions of the next months ahead of time, so that no writer has to create one when a month begins.

use super::{Work, counted};
use meterd_domain::period::Month;
use meterd_store::usage::partitions;

/// Number of months after the current one.
const MONTHS_AHEAD: usize = 2;

/// Creates the missing partitions of the current month and the next two.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let mut month = Month::of(work.clock.now().date_naive());
    let mut conn = work.pool.acquire().await?;
    let mut created = u64::from(partitions::ensure(&mut conn, month).await?);
    for _ in 0..MONTHS_AHEAD {
        month = month.next();
        created += u64::from(partitions::ensure(&mut conn, month).await?);
    }
    Ok(format!("{} made; there are all through {month}", counted(created, "partition")))
}
