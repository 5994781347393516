//! Makes the partitions of the coming months ahead of time, so that no writer has to at the turn of a month.

use super::{Work, counted};
use meterd_domain::period::Month;
use meterd_store::partitions;

/// Months after the present one.
const MONTHS_AHEAD: usize = 2;

/// Makes those of the present month and the next two that are not there.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let mut month = Month::of(work.clock.now().date_naive());
    let mut conn = work.pool.acquire().await?;
    let mut made = u64::from(partitions::ensure(&mut conn, month).await?);
    for _ in 0..MONTHS_AHEAD {
        month = month.next();
        made += u64::from(partitions::ensure(&mut conn, month).await?);
    }
    Ok(format!("{} made; there are all through {month}", counted(made, "partition")))
}
