//! Applies pending usage to the rows of days and of the services of months.
//!
//! A batch only appends what it adds to these rows, because a row that is changed once for many events costs much less than a row
//! that is changed by each event. Readers add up what is pending. So each replica applies the usage of a client soon after it has
//! appended a number of rows, and the job `pending_usage` regularly applies what is left. Whoever applies takes no lock of a
//! month: the sums that readers see do not change.

use foldhash::fast::RandomState;
use meterd_store::usage::pending;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Number of pending rows of a client after which they are applied. A read of the client adds up about as many rows.
const ROWS_MAX: u32 = 32;
/// Pause between two rounds, so that a round finds many rows of a client with much usage.
const ROUND_EVERY: Duration = Duration::from_millis(250);
/// Maximum number of clients of one transaction.
const CHUNK_CLIENTS: usize = 1_000;
/// Maximum duration of one transaction, because its connection may be dead.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of applied rows after which the table is vacuumed.
const VACUUM_ROWS: i64 = 100_000;
/// Maximum number of clients whose rows are counted. If there are more, all are forgotten, and the job applies their usage.
const COUNTED_CLIENTS_MAX: usize = 1_000_000;

/// The number of pending rows that a transaction has appended for each of its clients.
pub type PendingRows = Vec<(Arc<str>, u32)>;

/// Counts the pending rows that this replica has appended.
#[derive(Debug, Default)]
pub struct PendingUsage {
    counts: Mutex<Counts>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    /// Clients with fewer than [`ROWS_MAX`] rows.
    few: HashMap<Arc<str>, u32, RandomState>,
    /// The other clients.
    many: Vec<Arc<str>>,
}

impl PendingUsage {
    /// Counts the rows of a transaction after its commit.
    pub fn note(&self, rows: PendingRows) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { few, many } = &mut *counts;
        if few.len() > COUNTED_CLIENTS_MAX {
            few.clear();
        }
        for (client, row_count) in rows {
            let count = few.entry(client.clone()).or_default();
            let before = std::mem::replace(count, *count + row_count);
            if before < ROWS_MAX && *count >= ROWS_MAX {
                many.push(client);
            }
        }
        if !many.is_empty() {
            self.wanted.notify_one();
        }
    }

    /// Returns the clients with many rows, and begins to count their rows again.
    fn take(&self) -> Vec<String> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { few, many } = &mut *counts;
        many.sort_unstable();
        for client in many.iter() {
            few.remove(client);
        }
        many.drain(..).map(|client| client.to_string()).collect()
    }

    /// Starts the task that applies the usage of clients with many rows, until `stopping` is true. After an error, the usage stays
    /// pending until there are as many rows again, or the job applies it.
    pub fn start(self: &Arc<Self>, pool: &PgPool, mut stopping: watch::Receiver<bool>) -> JoinHandle<()> {
        let (pending, pool) = (self.clone(), pool.clone());
        tokio::spawn(async move {
            let mut applied = Applied::default();
            while !*stopping.borrow() {
                tokio::select! {
                    () = pending.wanted.notified() => {}
                    _ = stopping.changed() => return,
                }
                for clients in pending.take().chunks(CHUNK_CLIENTS) {
                    if let Err(error) = applied.apply(&pool, clients).await {
                        tracing::warn!(%error, clients = clients.len(), "usage could not be applied and stays pending");
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(ROUND_EVERY) => {}
                    _ = stopping.changed() => {}
                }
            }
        })
    }
}

/// Applies the usage of all clients. Returns the number of pending rows.
pub async fn apply_pending_usage(pool: &PgPool) -> meterd_store::Result<i64> {
    let (mut applied, mut row_count, mut after) = (Applied::default(), 0, String::new());
    loop {
        let clients = pending::clients(pool, &after, CHUNK_CLIENTS as i64).await?;
        let Some(last) = clients.last() else { return Ok(row_count) };
        after.clone_from(last);
        row_count += applied.apply(pool, &clients).await?;
    }
}

/// The rows that were applied since the last vacuum.
#[derive(Default)]
struct Applied {
    row_count: i64,
}

impl Applied {
    async fn apply(&mut self, pool: &PgPool, clients: &[String]) -> meterd_store::Result<i64> {
        let applied = tokio::time::timeout(APPLY_TIMEOUT, pending::apply_later_durable(pool, clients)).await;
        let row_count = applied.unwrap_or(Err(meterd_store::StoreError::Timeout))?;
        metrics::counter!("meterd_pending_rows_applied_total").increment(row_count as u64);
        self.row_count += row_count;
        if self.row_count >= VACUUM_ROWS {
            pending::vacuum(pool).await?;
            self.row_count = 0;
        }
        Ok(row_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_taken_once_when_it_has_many_rows() {
        let pending = PendingUsage::default();
        let rows = |client: &str, count| vec![(client.into(), count)];
        pending.note([rows("often", ROWS_MAX - 1), rows("rarely", 1)].concat());
        assert_eq!(pending.take(), [""; 0]);
        pending.note(rows("often", 2));
        pending.note(rows("often", 2 * ROWS_MAX));
        assert_eq!(pending.take(), ["often"]);
        assert_eq!(pending.take(), [""; 0]);
        pending.note(rows("rarely", ROWS_MAX));
        assert_eq!(pending.take(), ["rarely"]);
    }
}
