//! The lease of a run: held by the database's clock, and given up by our own long before it is over.
//!
//! A holder that cannot renew may be alive, and so may a statement that it has sent. Three bounds, each shorter than what
//! is left, keep both from reaching into the next holder's time, also where the process was stopped and goes on later:
//! the run is dropped after [`DROP_AFTER`] without a renewal; a connection that was idle for longer is cut by the server,
//! so that a holder that wakes up late sends nothing more; and a statement that is under way ends within its timeout.

use meterd_store::{connect, jobs};
use sqlx::PgPool;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How long a lease holds after it was taken or renewed. With the poll, another replica takes over within 25 seconds.
pub const LEASE: Duration = Duration::from_secs(20);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How long one try to renew may take, and the pause after one that failed.
const RENEW_TIMEOUT: Duration = Duration::from_secs(2);
const RENEW_PAUSE: Duration = Duration::from_millis(500);
/// A run that was not renewed for so long is dropped.
const DROP_AFTER: Duration = Duration::from_secs(6);
/// What may pass besides: a statement that travels.
const MARGIN: Duration = Duration::from_secs(2);

const _: () = assert!(
    DROP_AFTER.as_millis() as u64
        + connect::JOB_IDLE_TIMEOUT_MS
        + connect::JOB_STATEMENT_TIMEOUT_MS
        + MARGIN.as_millis() as u64
        <= LEASE.as_millis() as u64,
    "the last statement of a lost run ends before the lease does"
);

/// A run that this replica holds.
pub struct Lease {
    pub job: String,
    /// Names this run and nobody else's.
    pub holder: String,
    /// Before the statement that took it was sent.
    pub taken_at: Instant,
}

impl Lease {
    /// Does the work and renews meanwhile. Nothing, when the lease could not be renewed in time: the work is dropped.
    pub async fn keep<T>(&self, pool: &PgPool, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut valid_until = self.taken_at + DROP_AFTER;
        let mut renewal = pin!(self.renew(pool));
        loop {
            // Asked before each step of the work: timers may fire after what a process that was stopped finds done.
            let step = poll_fn(|context| match Instant::now() < valid_until {
                true => work.as_mut().poll(context).map(Some),
                false => Poll::Ready(None),
            });
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(valid_until.into()) => return None,
                renewed = &mut renewal => {
                    valid_until = renewed? + DROP_AFTER;
                    renewal.set(self.renew(pool));
                }
                done = step => return done,
            }
        }
    }

    /// Renews when it is time, and tries until it is done. Gives the time before the renewal was sent; nothing, where the
    /// lease is over or somebody else's.
    async fn renew(&self, pool: &PgPool) -> Option<Instant> {
        tokio::time::sleep(RENEW_EVERY).await;
        loop {
            let sent_at = Instant::now();
            match tokio::time::timeout(RENEW_TIMEOUT, jobs::renew(pool, &self.job, &self.holder, LEASE)).await {
                Ok(Ok(true)) => return Some(sent_at),
                Ok(Ok(false)) => return None,
                Ok(Err(error)) => tracing::warn!(job = self.job, %error, "a lease could not be renewed"),
                Err(_) => tracing::warn!(job = self.job, "a lease could not be renewed in time"),
            }
            tokio::time::sleep(RENEW_PAUSE).await;
        }
    }
}
