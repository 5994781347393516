//! Applies pending usage to the rows of days and of the services of months.
//!
//! A batch only appends pending rows, because a row of a day that is changed once for many events costs much less than one that each
//! event changes. Readers add up pending rows. Therefore each replica applies the rows of a client soon after it has appended a number
//! of them, and the job `pending_usage` regularly applies all others. A transaction that only applies takes no lock of a month: the
//! sums that readers see do not change.

use foldhash::fast::RandomState;
use meterd_store::StoreError;
use meterd_store::usage::pending;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Number of pending rows of a client after which they are applied. A read of the client adds up about as many rows.
const ROWS_MAX: u32 = 32;
/// Pause between two rounds, so that a round finds many rows of a client with much usage.
const ROUND_EVERY: Duration = Duration::from_millis(250);
/// Maximum number of clients of one transaction.
const CHUNK_CLIENTS: usize = 1_000;
/// Number of rows at which a transaction of the job takes no further client. The job then needs about 0.2 s for it.
const CHUNK_ROWS: i64 = 30_000;
/// Maximum duration of one transaction or vacuum, because its connection may be dead.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of applied rows after which the table is vacuumed.
const VACUUM_ROWS: i64 = 100_000;
/// Maximum number of clients whose rows are counted. If there are more, all are forgotten, and the job applies their usage.
const COUNTED_CLIENTS_MAX: usize = 200_000;

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
    rows: HashMap<Arc<str>, u32, RandomState>,
    /// The clients with at least [`ROWS_MAX`] rows.
    many: Vec<Arc<str>>,
}

impl PendingUsage {
    /// Counts the rows of a transaction after its commit.
    pub fn note(&self, rows: PendingRows) {
        let mut forgotten = HashMap::default();
        let mut counts = self.counts.lock().expect("no holder of the lock panics");
        if counts.rows.len() > COUNTED_CLIENTS_MAX {
            std::mem::swap(&mut counts.rows, &mut forgotten);
        }
        for (client, row_count) in rows {
            let count = counts.rows.entry(client.clone()).or_default();
            let before = std::mem::replace(count, *count + row_count);
            if before < ROWS_MAX && before + row_count >= ROWS_MAX {
                counts.many.push(client);
            }
        }
        if !counts.many.is_empty() {
            self.wanted.notify_one();
        }
        // Others do not wait until a large map is freed.
        drop(counts);
        drop(forgotten);
    }

    /// Returns the clients with many rows, and begins to count their rows again.
    fn take(&self) -> Vec<String> {
        let mut counts = self.counts.lock().expect("no holder of the lock panics");
        let many = std::mem::take(&mut counts.many);
        for client in &many {
            counts.rows.remove(client);
        }
        drop(counts);
        many.into_iter().map(|client| client.to_string()).collect()
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
                    match applied.apply(&pool, clients).await {
                        Ok(_) => {}
                        // The pool is being closed.
                        Err(_) if *stopping.borrow() => return,
                        Err(error) => {
                            let clients = clients.len();
                            tracing::warn!(%error, clients, "usage could not be applied and stays pending");
                        }
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

/// Applies the usage of all clients. Returns the number of pending rows. After an error, it goes on with the next clients, and then
/// returns the error.
pub async fn apply_pending_usage(pool: &PgPool) -> meterd_store::Result<i64> {
    let (mut applied, mut row_count, mut after, mut failed) = (Applied::default(), 0, String::new(), None);
    loop {
        let chunk = chunk(pending::clients(pool, &after, CHUNK_CLIENTS as i64).await?);
        let Some(last) = chunk.last() else { break };
        after.clone_from(last);
        match applied.apply(pool, &chunk).await {
            Ok(rows) => row_count += rows,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(row_count),
    }
}

/// Returns the first clients, up to the one that reaches [`CHUNK_ROWS`].
fn chunk(found: Vec<(String, i64)>) -> Vec<String> {
    let (mut chunk, mut rows) = (vec![], 0);
    for (client, count) in found {
        if rows >= CHUNK_ROWS {
            break;
        }
        rows += count;
        chunk.push(client);
    }
    chunk
}

/// The rows that were applied since the last vacuum.
#[derive(Default)]
struct Applied {
    row_count: i64,
}

impl Applied {
    async fn apply(&mut self, pool: &PgPool, clients: &[String]) -> meterd_store::Result<i64> {
        let applied = tokio::time::timeout(APPLY_TIMEOUT, pending::apply_later_durable(pool, clients)).await;
        let row_count = applied.unwrap_or(Err(StoreError::Timeout))?;
        metrics::counter!("meterd_pending_rows_applied_total").increment(row_count as u64);
        self.row_count += row_count;
        if self.row_count >= VACUUM_ROWS {
            self.row_count = 0;
            let vacuumed = tokio::time::timeout(APPLY_TIMEOUT, pending::vacuum(pool)).await;
            if let Err(error) = vacuumed.unwrap_or(Err(StoreError::Timeout)) {
                tracing::warn!(%error, "the table of pending usage could not be vacuumed");
            }
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

    #[test]
    fn counts_of_too_many_clients_are_forgotten() {
        let pending = PendingUsage::default();
        pending.note((0..=COUNTED_CLIENTS_MAX).map(|number| (number.to_string().into(), ROWS_MAX - 1)).collect());
        pending.note(vec![("0".into(), 1)]);
        assert_eq!(pending.take(), [""; 0]);
        pending.note(vec![("0".into(), ROWS_MAX - 1)]);
        assert_eq!(pending.take(), ["0"]);
    }

    #[test]
    fn a_chunk_ends_with_the_client_that_reaches_its_rows() {
        let found = |counts: &[i64]| counts.iter().map(|count| (count.to_string(), *count)).collect();
        assert_eq!(chunk(found(&[1, CHUNK_ROWS - 1, 2])), ["1", &(CHUNK_ROWS - 1).to_string()]);
        assert_eq!(chunk(found(&[2 * CHUNK_ROWS, 1])), [(2 * CHUNK_ROWS).to_string()]);
        assert_eq!(chunk(vec![]), [""; 0]);
    }
}
