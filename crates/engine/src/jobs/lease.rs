//! The lease of a run. It expires by the clock of the database. The holder gives up earlier, by its own clock.
//!
//! A holder that cannot renew its lease may still be running, and a statement that it has sent may be too. Neither may overlap
//! with the run of the next holder, even if the process of the holder is suspended and continues later. Three timeouts ensure
//! this, and their sum is at most the time of a lease:
//!
//! 1. The holder drops a run that was not renewed for [`DROP_AFTER`].
//! 2. The server closes a connection that was idle for [`connect::JOB_IDLE_TIMEOUT_MS`], so that a holder that continues late
//!    cannot send another statement.
//! 3. The server cancels a statement after [`connect::JOB_STATEMENT_TIMEOUT_MS`].

use meterd_store::admin::jobs;
use meterd_store::database::connect;
use sqlx::PgPool;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How long a lease is valid after it was claimed or renewed. Another replica takes over within 25 seconds, including its poll.
pub const LEASE: Duration = Duration::from_secs(20);
/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// Timeout of one attempt to renew, and the pause after a failed attempt.
const RENEW_TIMEOUT: Duration = Duration::from_secs(2);
const RENEW_PAUSE: Duration = Duration::from_millis(500);
/// A run whose lease was not renewed for this time is dropped.
const DROP_AFTER: Duration = Duration::from_secs(6);
/// Time for a statement to reach the server.
const MARGIN: Duration = Duration::from_secs(2);

const _: () = assert!(
    DROP_AFTER.as_millis() as u64
        + connect::JOB_IDLE_TIMEOUT_MS
        + connect::JOB_STATEMENT_TIMEOUT_MS
        + MARGIN.as_millis() as u64
        <= LEASE.as_millis() as u64,
    "the last statement of a run that lost its lease must end before the lease expires"
);

/// The lease of a run of this replica.
pub struct Lease {
    pub job: String,
    /// Identifies this run among all runs of all replicas.
    pub holder: String,
    /// The time before the statement that claimed the lease was sent.
    pub claimed_at: Instant,
}

impl Lease {
    /// Runs the work and renews the lease meanwhile. If the lease cannot be renewed in time, drops the work and returns `None`.
    pub async fn run<T>(&self, pool: &PgPool, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut valid_until = self.claimed_at + DROP_AFTER;
        let mut renewal = pin!(self.renew(pool));
        loop {
            // The lease is checked before each step of the work: in a process that was suspended, the work may be polled before
            // the timer.
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

    /// Waits until the lease has to be renewed, and renews it. Retries after errors. Returns the time before the renewal was
    /// sent, or `None` if the lease has expired or another replica has it.
    async fn renew(&self, pool: &PgPool) -> Option<Instant> {
        tokio::time::sleep(RENEW_EVERY).await;
        loop {
            let sent_at = Instant::now();
            match tokio::time::timeout(RENEW_TIMEOUT, jobs::renew(pool, &self.job, &self.holder, LEASE)).await {
                Ok(Ok(true)) => return Some(sent_at),
                Ok(Ok(false)) => return None,
                Ok(Err(error)) => tracing::warn!(job = self.job, %error, "the lease of a job could not be renewed"),
                Err(_) => tracing::warn!(job = self.job, "the lease of a job could not be renewed in time"),
            }
            tokio::time::sleep(RENEW_PAUSE).await;
        }
    }
}
