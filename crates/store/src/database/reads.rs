//! Connections for reads of one statement each.

use super::connect::{ACQUIRE_TIMEOUT, is_connection_lost};
use crate::StoreError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Connection, Postgres};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};
use tokio::time::timeout;

/// A connection that was used within this time is assumed to be alive, so it is not checked before its next use.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Longest duration of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection that was idle for this time is closed when the pool is next used.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A connection that was used for this time returns to sqlx, which closes it when it is old.
const KEPT_MAX: Duration = Duration::from_secs(60);
/// A connection that was lost before the read fails within this time. After a later failure the read is not repeated,
/// because the read itself may be the cause.
const LOST_BEFORE_MAX: Duration = Duration::from_millis(500);

/// Connections for reads of one statement each. No transaction ever begins on them, so there is nothing to roll back after
/// each use. A read that follows another one at once gets the same connection, with its plans and caches.
///
/// The pool of sqlx checks each connection with a round trip when it returns, before the next caller gets it. This costs a
/// fifth of a short read. Therefore a connection returns to sqlx only if a read failed or was cancelled, or after
/// [`KEPT_MAX`]. The statement of a cancelled read runs on, and another read may wait for its connection. So do not cancel
/// reads.
#[derive(Debug)]
pub struct ReadPool {
    pool: PgPool,
    /// One for each connection.
    permits: Semaphore,
    /// The free connections, last used last. `None` if the pool is closed.
    free: Mutex<Option<Vec<Kept>>>,
}

/// A connection for one read.
pub type ReadConnection = PoolConnection<Postgres>;

#[derive(Debug)]
struct Kept {
    conn: ReadConnection,
    /// When the connection was taken from sqlx.
    since: Instant,
    last_used: Instant,
}

impl ReadPool {
    /// Returns a pool that connects on first use.
    pub fn new(options: PgConnectOptions, connections_max: u32) -> Self {
        let pool = PgPoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_TIMEOUT);
        Self {
            pool: pool.connect_lazy_with(options.application_name("meterd reads")),
            permits: Semaphore::new(connections_max as usize),
            free: Mutex::new(Some(vec![])),
        }
    }

    /// Runs a read, which returns its connection with the result. Repeats it if the connection was already lost, at most once
    /// per connection of the pool, because all of them may be lost.
    pub async fn read<T, F>(&self, read: impl Fn(ReadConnection) -> F) -> crate::Result<T>
    where
        F: Future<Output = (ReadConnection, crate::Result<T>)>,
    {
        let _permit = self.permit().await?;
        let mut left = self.pool.options().get_max_connections();
        loop {
            let begun = Instant::now();
            let error = match self.take().await {
                Ok(Kept { conn, since, .. }) => match read(conn).await {
                    (conn, Ok(done)) => {
                        self.put(conn, since);
                        return Ok(done);
                    }
                    (conn, Err(error)) if is_connection_lost(&error) => {
                        drop(conn.detach());
                        error
                    }
                    (_, Err(error)) => error,
                },
                Err(error) => error,
            };
            if left == 0 || !is_connection_lost(&error) || begun.elapsed() >= LOST_BEFORE_MAX {
                return Err(error);
            }
            left -= 1;
        }
    }

    /// Closes the connections. Waits for reads.
    pub async fn close(&self) {
        drop(self.free().take());
        self.permits.close();
        self.pool.close().await;
    }

    /// Waits until another read may begin.
    async fn permit(&self) -> crate::Result<SemaphorePermit<'_>> {
        let permit = match self.permits.try_acquire() {
            Ok(permit) => Ok(permit),
            Err(TryAcquireError::Closed) => Err(sqlx::Error::PoolClosed),
            Err(TryAcquireError::NoPermits) => match timeout(ACQUIRE_TIMEOUT, self.permits.acquire()).await {
                Ok(Ok(permit)) => Ok(permit),
                Ok(Err(_)) => Err(sqlx::Error::PoolClosed),
                Err(_) => Err(sqlx::Error::PoolTimedOut),
            },
        };
        permit.map_err(StoreError::from)
    }

    /// Takes the connection that was used last, or one of sqlx.
    async fn take(&self) -> crate::Result<Kept> {
        while let Some(mut kept) = self.pop() {
            if kept.last_used.elapsed() < TRUSTED_IDLE
                || matches!(timeout(CHECK_TIMEOUT, kept.conn.ping()).await, Ok(Ok(())))
            {
                return Ok(kept);
            }
            drop(kept.conn.detach());
        }
        let conn = self.pool.acquire().await?;
        let now = Instant::now();
        Ok(Kept { conn, since: now, last_used: now })
    }

    /// Takes the connection that was used last, and closes connections that were idle for long.
    fn pop(&self) -> Option<Kept> {
        let mut free = self.free();
        let free = free.as_mut()?;
        let idle_count = free.partition_point(|kept| kept.last_used.elapsed() >= IDLE_MAX);
        free.drain(..idle_count).for_each(|kept| drop(kept.conn.detach()));
        free.pop()
    }

    /// Keeps a connection for the next read.
    fn put(&self, conn: ReadConnection, since: Instant) {
        let last_used = Instant::now();
        if last_used - since < KEPT_MAX
            && let Some(free) = self.free().as_mut()
        {
            free.push(Kept { conn, since, last_used });
        }
    }

    fn free(&self) -> MutexGuard<'_, Option<Vec<Kept>>> {
        self.free.lock().expect("no holder of the lock panics")
    }
}
