//! Closes the current generation of idempotency keys when it has become large or old, and builds the filters of closed
//! generations.
//!
//! Keys are added to the index of the current generation at random places. While this index fits into the memory of PostgreSQL,
//! adding a key costs the same, however many keys the closed generations have. Keys are deleted by whole generations, so
//! one must not last long compared with the retention of keys.

use super::{Work, counted};
use crate::ingest::{FILTER_FORMAT, build_filter};
use chrono::TimeDelta;
use meterd_store::usage::generations::{self, Generations};

/// Without a setting, a generation is closed at one eighth of `shared_buffers`, within these bounds.
const SHARED_BUFFERS_DIVISOR: i64 = 8;
const BYTES_MIN: i64 = 256 * 1024 * 1024;
const BYTES_MAX: i64 = 1024 * 1024 * 1024;

/// A generation is closed after this part of the retention of keys.
const RETENTION_DIVISOR: i32 = 8;

/// Closes the current generation if it is large or old, and builds missing filters.
pub(super) async fn run_once(work: &Work) -> anyhow::Result<String> {
    let Generations { current, begin_time, .. } = generations::list(&work.pool).await?;
    let age_max = TimeDelta::days(work.config.key_retention_days.into()) / RETENTION_DIVISOR;
    let is_old = work.data_time().await? - begin_time >= age_max;
    let bytes_max = match work.config.key_generation_bytes {
        0 => (generations::shared_buffers(&work.pool).await? / SHARED_BUFFERS_DIVISOR).clamp(BYTES_MIN, BYTES_MAX),
        bytes => i64::try_from(bytes)?,
    };
    let mut closed_count = 0;
    if generations::disk_bytes(&work.pool, current).await? >= bytes_max
        || (is_old && !generations::is_empty(&work.pool, current).await?)
    {
        generations::prepare(&work.pool, current + 1).await?;
        closed_count += u64::from(generations::close(&work.pool, current).await?);
    }
    let mut filter_count = 0;
    for closed in generations::list(&work.pool).await?.closed {
        if closed.filter_format != Some(FILTER_FORMAT) {
            build_filter(&work.pool, closed.generation).await?;
            filter_count += 1;
        }
    }
    Ok(format!("{} closed and {} built", counted(closed_count, "generation"), counted(filter_count, "filter")))
}
