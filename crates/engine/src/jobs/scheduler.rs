//! Runs the scheduled jobs: looks each second what is due, takes it under a lease, and notes what became of it.
//!
//! The table is the truth for all replicas: a schedule is what the replica that started last was told.

use super::lease::{LEASE, Lease};
use super::schedule::Schedule;
use super::{JOBS, Job, Work};
use anyhow::Context as _;
use chrono::TimeDelta;
use futures_util::FutureExt;
use meterd_store::StoreError;
use meterd_store::jobs::Glance;
use meterd_store::{cause, connect, jobs};
use sqlx::PgPool;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often a replica looks for what is due.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// A due time is brought forward only if it lies beyond the next one even by a clock that is so much ahead: the database's
/// clock may be set back a little.
const CLOCK_STEP_MAX: TimeDelta = TimeDelta::seconds(60);
/// How long a look may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// A run that failed is tried again after so long, unless it is due before.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How often the end of a run is noted before it is left to whoever takes the lease over, and the pause between.
const FINISH_TRIES: usize = 3;
const FINISH_PAUSE: Duration = Duration::from_secs(1);
/// How long runs may go on when the server stops. Another replica does again what is cut off.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connections may take to close at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest text of an error that is kept.
const ERROR_CHARS_MAX: usize = 1_000;

/// Names of all jobs.
pub fn names() -> Vec<String> {
    JOBS.iter().map(|job| job.name.into()).collect()
}

/// The scheduler of a replica.
#[derive(Clone)]
pub struct Scheduler {
    /// For leases: not the one that the work is done on, which may be busy.
    pool: PgPool,
    work: Arc<Work>,
}

impl Scheduler {
    /// Makes the jobs known, with the schedules of the settings.
    pub async fn start(pool: PgPool, work: Work) -> meterd_store::Result<Self> {
        let now = connect::now(&pool).await?;
        for job in &JOBS {
            let schedule = (job.schedule)(&work.config.schedules);
            jobs::register(&pool, job.name, &schedule.to_string(), schedule.next_after(now)).await?;
        }
        Ok(Self { pool, work: Arc::new(work) })
    }

    /// Runs what is due until `stopping` turns true.
    pub async fn run(self, wanted: Arc<Notify>, mut stopping: watch::Receiver<bool>) {
        let names = names();
        let mut runs = JoinSet::new();
        let mut away = false;
        while !*stopping.borrow() {
            let looked = tokio::time::timeout(POLL_TIMEOUT, self.start_due(&names, &mut runs)).await;
            match looked.unwrap_or(Err(StoreError::Timeout)) {
                Ok(()) => away = false,
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(%error, "jobs cannot be looked at and wait until they can");
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

    /// Takes every job that is due and that nobody else takes, and starts each as it is taken: the look may fail at another.
    async fn start_due(&self, names: &[String], runs: &mut JoinSet<()>) -> meterd_store::Result<()> {
        for glance in jobs::glance(&self.pool, names, LEASE).await? {
            if let Some(time) = glance.last_success_time {
                let labels = [("job", glance.job.clone())];
                metrics::gauge!("meterd_job_last_success_timestamp_seconds", &labels).set(time.timestamp() as f64);
            }
            let Some(job) = JOBS.iter().find(|job| job.name == glance.job) else { continue };
            // Another version of meterd wrote what this one cannot read, and runs it.
            let Ok(schedule) = glance.schedule.parse::<Schedule>() else { continue };
            if !glance.due {
                self.bring_forward(&glance, &schedule).await?;
                continue;
            }
            let next = schedule.next_after(glance.now);
            let holder = holder();
            let taken_at = Instant::now();
            if jobs::claim(&self.pool, job.name, &holder, LEASE, next).await? {
                runs.spawn(self.clone().run_job(job, Lease { job: glance.job, holder, taken_at }));
            }
        }
        Ok(())
    }

    /// Brings a job forward that would wait beyond its next time by the schedule, or for the end of a lease that is longer
    /// than any: the database's clock was ahead and was set back.
    async fn bring_forward(&self, glance: &Glance, schedule: &Schedule) -> meterd_store::Result<()> {
        let next = schedule.next_after(glance.now);
        let latest = schedule.next_after(glance.now + CLOCK_STEP_MAX);
        let too_late = glance.next_run_time.filter(|time| latest.is_some_and(|latest| *time > latest));
        if too_late.is_none() && !glance.lease_too_long {
            return Ok(());
        }
        tracing::warn!(
            job = glance.job,
            next_run_time = too_late.map(|time| time.to_rfc3339()),
            "the database's clock was set back: the job is brought forward"
        );
        jobs::bring_forward(&self.pool, &glance.job, too_late, next, LEASE).await
    }

    /// Runs a job under its lease, and notes what became of it.
    async fn run_job(self, job: &'static Job, lease: Lease) {
        let started = Instant::now();
        let run_timeout = self.work.config.run_timeout;
        let work = tokio::time::timeout(run_timeout, AssertUnwindSafe((job.run)(self.work.clone())).catch_unwind());
        let mut dropped = false;
        let outcome = match lease.keep(&self.pool, work).await {
            None => {
                tracing::warn!(job = job.name, holder = lease.holder, "a job lost its lease and is left to others");
                metrics::counter!("meterd_job_runs_total", "job" => job.name, "result" => "lost").increment(1);
                return;
            }
            Some(Err(_)) => {
                dropped = true;
                Err(format!("took longer than {} s", run_timeout.as_secs()))
            }
            Some(Ok(Err(_))) => {
                dropped = true;
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
            // Some run every few seconds: who wants to see them asks for it, or for `meterd jobs`.
            Ok(result) => tracing::debug!(job = name, holder, elapsed_ms, result, "job done"),
            Err(error) => tracing::warn!(job = name, holder, elapsed_ms, error, "a job failed and is tried again"),
        }
        if let Err(error) = self.finish(&lease, outcome.as_deref().map_err(|error| error.as_str()), dropped).await {
            tracing::warn!(job = name, holder, "the end of a job could not be noted, so it is done again: {error:#}");
        }
    }

    /// Notes the end of a run. One that was dropped may have left a statement under way, which its lease outlives.
    async fn finish(&self, lease: &Lease, outcome: Result<&str, &str>, dropped: bool) -> anyhow::Result<()> {
        let mut tries = 1;
        loop {
            match jobs::finish(&self.pool, &lease.job, &lease.holder, outcome, RETRY_AFTER, dropped).await {
                Ok(noted) => return noted.then_some(()).context("another replica has taken it over"),
                Err(error) if tries == FINISH_TRIES => return Err(error.into()),
                Err(_) => tokio::time::sleep(FINISH_PAUSE).await,
            }
            tries += 1;
        }
    }
}

/// A name for one run: which process, and that it is no other run.
fn holder() -> String {
    format!("{}-{:016x}", std::process::id(), rand::random::<u64>())
}
