//! Runs the scheduled jobs: polls the table of jobs every second, claims a lease of each due job, runs it, and stores the outcome.
//!
//! All replicas use the schedules in the table. They are from the settings of the replica that started last.

use super::lease::{LEASE, Lease};
use super::schedule::Schedule;
use super::{JOBS, Job, Work};
use anyhow::Context as _;
use chrono::TimeDelta;
use futures_util::FutureExt;
use meterd_store::StoreError;
use meterd_store::admin::jobs;
use meterd_store::admin::jobs::JobState;
use meterd_store::database::{cause, connect};
use sqlx::PgPool;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often a replica looks for due jobs.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How far the clock of the database may be set back without an effect on due times. A due time is only brought forward if it is
/// later than the next due time would be by a clock that is this far ahead.
const CLOCK_STEP_MAX: TimeDelta = TimeDelta::seconds(60);
/// Timeout of a poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// A failed job runs again after this time, or at its next due time if that is earlier.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of attempts to store the outcome of a run, and the pause between them. After that, the lease expires and the job
/// runs again.
const FINISH_ATTEMPTS_MAX: usize = 3;
const FINISH_PAUSE: Duration = Duration::from_secs(1);
/// How long runs may continue when the server stops. Then they are dropped, and another replica runs the jobs again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connections may take to close when the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum length of a stored error.
const ERROR_CHARS_MAX: usize = 1_000;

/// Returns the names of all jobs.
pub fn names() -> Vec<String> {
    JOBS.iter().map(|job| job.name.into()).collect()
}

/// The scheduler of a replica.
#[derive(Clone)]
pub struct Scheduler {
    /// The pool for leases. It is not the pool of the work, which may be busy.
    pool: PgPool,
    work: Arc<Work>,
}

impl Scheduler {
    /// Registers all jobs in the database, with the schedules of the settings.
    pub async fn start(pool: PgPool, work: Work) -> meterd_store::Result<Self> {
        let now = connect::now(&pool).await?;
        for job in &JOBS {
            let schedule = (job.schedule)(&work.config.schedules);
            jobs::register(&pool, job.name, &schedule.to_string(), schedule.next_after(now)).await?;
        }
        Ok(Self { pool, work: Arc::new(work) })
    }

    /// Runs due jobs until `stopping` is true.
    pub async fn run(self, wanted: Arc<Notify>, mut stopping: watch::Receiver<bool>) {
        let names = names();
        let mut runs = JoinSet::new();
        let mut is_failing = false;
        while !*stopping.borrow() {
            let polled = tokio::time::timeout(POLL_TIMEOUT, self.start_due(&names, &mut runs)).await;
            match polled.unwrap_or(Err(StoreError::Timeout)) {
                Ok(()) => is_failing = false,
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(%error, "due jobs cannot be read from the database; they wait");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = wanted.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
                _ = stopping.changed() => {}
                Some(_) = runs.join_next(), if !runs.is_empty() => {}
            }
        }
        drop(tokio::time::timeout(STOP_TIMEOUT, async { while runs.join_next().await.is_some() {} }).await);
        runs.shutdown().await;
        let close = async { tokio::join!(self.pool.close(), self.work.pool.close()) };
        drop(tokio::time::timeout(CLOSE_TIMEOUT, close).await);
    }

    /// Claims every due job that no other replica runs. Starts each as soon as it is claimed, because claiming the next may fail.
    async fn start_due(&self, names: &[String], runs: &mut JoinSet<()>) -> meterd_store::Result<()> {
        for state in jobs::states(&self.pool, names, LEASE).await? {
            if let Some(time) = state.last_success_time {
                let labels = [("job", state.job.clone())];
                metrics::gauge!("meterd_job_last_success_timestamp_seconds", &labels).set(time.timestamp() as f64);
            }
            let Some(job) = JOBS.iter().find(|job| job.name == state.job) else { continue };
            // Another version of meterd wrote a schedule that this one cannot parse. That version runs the job.
            let Ok(schedule) = state.schedule.parse::<Schedule>() else { continue };
            if !state.due {
                self.bring_forward(&state, &schedule).await?;
                continue;
            }
            let next = schedule.next_after(state.now);
            let holder = holder();
            let claimed_at = Instant::now();
            if jobs::claim(&self.pool, job.name, &holder, LEASE, next).await? {
                runs.spawn(self.clone().run_job(job, Lease { job: state.job, holder, claimed_at }));
            }
        }
        Ok(())
    }

    /// Brings a job forward after the clock of the database was set back: if its due time is later than the schedule says, or if
    /// its lease ends later than a new lease would.
    async fn bring_forward(&self, state: &JobState, schedule: &Schedule) -> meterd_store::Result<()> {
        let next = schedule.next_after(state.now);
        let latest = schedule.next_after(state.now + CLOCK_STEP_MAX);
        let too_late = state.next_run_time.filter(|time| latest.is_some_and(|latest| *time > latest));
        if too_late.is_none() && !state.lease_too_long {
            return Ok(());
        }
        tracing::warn!(
            job = state.job,
            next_run_time = too_late.map(|time| time.to_rfc3339()),
            "the clock of the database was set back; the job is brought forward"
        );
        jobs::bring_forward(&self.pool, &state.job, too_late, next, LEASE).await
    }

    /// Runs a job under its lease, and stores the outcome.
    async fn run_job(self, job: &'static Job, lease: Lease) {
        let started = Instant::now();
        let run_timeout = self.work.config.run_timeout;
        let work = tokio::time::timeout(run_timeout, AssertUnwindSafe((job.run)(self.work.clone())).catch_unwind());
        let mut was_dropped = false;
        let outcome = match lease.run(&self.pool, work).await {
            None => {
                tracing::warn!(
                    job = job.name,
                    holder = lease.holder,
                    "a job lost its lease; another replica will run it"
                );
                metrics::counter!("meterd_job_runs_total", "job" => job.name, "result" => "lost").increment(1);
                return;
            }
            Some(Err(_)) => {
                was_dropped = true;
                Err(format!("took longer than {} s", run_timeout.as_secs()))
            }
            Some(Ok(Err(_))) => {
                was_dropped = true;
                Err("panicked; the log has why".to_string())
            }
            Some(Ok(Ok(Err(error)))) => Err(cause::text(&error).chars().take(ERROR_CHARS_MAX).collect()),
            Some(Ok(Ok(Ok(result)))) => Ok(result),
        };
        let took = started.elapsed();
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        metrics::counter!("meterd_job_runs_total", "job" => job.name, "result" => result).increment(1);
        metrics::histogram!("meterd_job_seconds", "job" => job.name).record(took);
        let (name, holder, elapsed_ms) = (job.name, lease.holder.as_str(), took.as_millis() as u64);
        match &outcome {
            // Not at the level info, because a job may run every few seconds. `meterd jobs` shows the last run of each.
            Ok(result) => tracing::debug!(job = name, holder, elapsed_ms, result, "job done"),
            Err(error) => tracing::warn!(job = name, holder, elapsed_ms, error, "a job failed and will be retried"),
        }
        if let Err(error) = self.finish(&lease, outcome.as_deref().map_err(|error| error.as_str()), was_dropped).await {
            tracing::warn!(
                job = name,
                holder,
                "the outcome of a job could not be stored, so the job runs again: {error:#}"
            );
        }
    }

    /// Stores the outcome of a run. A dropped run keeps its lease, because a statement of it may still be running.
    async fn finish(&self, lease: &Lease, outcome: Result<&str, &str>, was_dropped: bool) -> anyhow::Result<()> {
        let mut attempts = 1;
        loop {
            match jobs::finish(&self.pool, &lease.job, &lease.holder, outcome, RETRY_AFTER, was_dropped).await {
                Ok(is_stored) => return is_stored.then_some(()).context("another replica has taken it over"),
                Err(error) if attempts == FINISH_ATTEMPTS_MAX => return Err(error.into()),
                Err(_) => tokio::time::sleep(FINISH_PAUSE).await,
            }
            attempts += 1;
        }
    }
}

/// Returns a new name for a run: the id of the process and a random number.
fn holder() -> String {
    format!("{}-{:016x}", std::process::id(), rand::random::<u64>())
}
