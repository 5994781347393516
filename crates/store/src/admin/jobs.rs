//! Scheduled jobs: their due times, leases and results. All times are the database's.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use std::time::Duration;

/// A job and its last run.
pub struct JobRow {
    pub job: String,
    /// Cron expression; empty if the job is never due.
    pub schedule: String,
    pub next_run_time: Option<DateTime<Utc>>,
    pub running: bool,
    pub last_start_time: Option<DateTime<Utc>>,
    pub last_finish_time: Option<DateTime<Utc>>,
    /// Start time of the run that finished last.
    pub ended_start_time: Option<DateTime<Utc>>,
    pub last_error: String,
    pub last_result: String,
    pub run_count: i64,
    pub failure_count: i64,
}

/// The fields of a job that a replica needs to find due jobs.
pub struct JobState {
    pub job: String,
    pub schedule: String,
    pub next_run_time: Option<DateTime<Utc>>,
    pub last_success_time: Option<DateTime<Utc>>,
    /// Whether the job can be claimed: no lease is in force, and either its time has come or its last holder has not
    /// finished.
    pub due: bool,
    /// Whether its lease ends later than a lease that is taken now.
    pub lease_too_long: bool,
    pub now: DateTime<Utc>,
}

/// Creates a job that is due at once, or updates a changed schedule and the next time. A missed run stays due.
pub async fn register(pool: &PgPool, job: &str, schedule: &str, next: Option<DateTime<Utc>>) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO jobs AS t (job, schedule, next_run_time)
         VALUES ($1, $2, CASE WHEN $3::timestamptz IS NOT NULL THEN now() END)
         ON CONFLICT (job) DO UPDATE SET schedule = excluded.schedule,
             next_run_time = CASE WHEN t.next_run_time <= now() AND $3 IS NOT NULL THEN t.next_run_time ELSE $3 END
         WHERE t.schedule <> excluded.schedule",
        job,
        schedule,
        next
    )
    .execute(pool)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the state of these jobs, ordered by name. Jobs that do not exist are left out.
pub async fn states(pool: &PgPool, jobs: &[String], lease: Duration) -> crate::Result<Vec<JobState>> {
    sqlx::query_as!(
        JobState,
        r#"SELECT job, schedule, next_run_time, last_success_time, now() AS "now!",
               COALESCE((holder IS NOT NULL OR next_run_time <= now()) AND COALESCE(lease_expire_time <= now(), true), false)
                   AS "due!",
               COALESCE(lease_expire_time > now() + make_interval(secs => $2), false) AS "lease_too_long!"
           FROM jobs WHERE job = ANY($1) ORDER BY job"#,
        jobs,
        lease.as_secs_f64()
    )
    .fetch_all(pool)
    .await.map_err(Into::into)
}

/// Corrects the times that were set while the database's clock was ahead. Changes the due time from `seen` to `next`,
/// unless it is no longer `seen`. Shortens the lease to that of one taken now; a holder that still runs renews it.
pub async fn bring_forward(
    pool: &PgPool,
    job: &str,
    seen: Option<DateTime<Utc>>,
    next: Option<DateTime<Utc>>,
    lease: Duration,
) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE jobs SET next_run_time = CASE WHEN next_run_time = $2 THEN $3 ELSE next_run_time END,
             lease_expire_time = CASE WHEN lease_expire_time > now() + make_interval(secs => $4)
                 THEN now() + make_interval(secs => $4) ELSE lease_expire_time END
         WHERE job = $1",
        job,
        seen,
        next,
        lease.as_secs_f64()
    )
    .execute(pool)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Claims a due job with a lease and sets its next time. Returns `false` if another replica was faster.
pub async fn claim(
    pool: &PgPool,
    job: &str,
    holder: &str,
    lease: Duration,
    next: Option<DateTime<Utc>>,
) -> crate::Result<bool> {
    let claimed = sqlx::query!(
        "UPDATE jobs SET holder = $2, lease_expire_time = now() + make_interval(secs => $3), last_start_time = now(),
             next_run_time = $4
         WHERE job = $1 AND (holder IS NOT NULL OR next_run_time <= now()) AND COALESCE(lease_expire_time <= now(), true)",
        job,
        holder,
        lease.as_secs_f64(),
        next
    );
    Ok(claimed.execute(pool).await?.rows_affected() == 1)
}

/// Renews a lease. Returns `false` if it has expired or belongs to another holder.
pub async fn renew(pool: &PgPool, job: &str, holder: &str, lease: Duration) -> crate::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE jobs SET lease_expire_time = now() + make_interval(secs => $3)
         WHERE job = $1 AND holder = $2 AND lease_expire_time > now()",
        job,
        holder,
        lease.as_secs_f64()
    );
    Ok(renewed.execute(pool).await?.rows_affected() == 1)
}

/// Stores the outcome of a run and releases the job. Returns `false` if another holder has taken over.
///
/// With `keep_lease`, the lease stays in force because statements of the run may still be running; no replica claims
/// the job before it expires. A failed run is due again after `retry_after`, unless its next time is earlier or it has
/// none.
pub async fn finish(
    pool: &PgPool,
    job: &str,
    holder: &str,
    outcome: Result<&str, &str>,
    retry_after: Duration,
    keep_lease: bool,
) -> crate::Result<bool> {
    let finished = sqlx::query!(
        "UPDATE jobs SET holder = NULL, lease_expire_time = CASE WHEN $6 THEN lease_expire_time END,
             last_finish_time = now(), ended_start_time = last_start_time, last_result = COALESCE($3, ''), last_error = COALESCE($4, ''),
             last_success_time = CASE WHEN $4::text IS NULL THEN now() ELSE last_success_time END,
             next_run_time = CASE WHEN $4::text IS NULL OR next_run_time IS NULL THEN next_run_time
                 ELSE LEAST(next_run_time, now() + make_interval(secs => $5)) END,
             run_count = run_count + 1, failure_count = failure_count + CASE WHEN $4::text IS NULL THEN 0 ELSE 1 END
         WHERE job = $1 AND holder = $2",
        job,
        holder,
        outcome.ok(),
        outcome.err(),
        retry_after.as_secs_f64(),
        keep_lease
    );
    Ok(finished.execute(pool).await?.rows_affected() == 1)
}

/// Makes a job due now and returns the time of the request. `None` if the job does not exist.
pub async fn want(pool: &PgPool, job: &str) -> crate::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(r#"UPDATE jobs SET next_run_time = now() WHERE job = $1 RETURNING now() AS "now!""#, job)
        .fetch_optional(pool)
        .await
        .map_err(Into::into)
}

/// Returns these jobs, ordered by name.
pub async fn list(pool: &PgPool, jobs: &[String]) -> crate::Result<Vec<JobRow>> {
    sqlx::query_as!(
        JobRow,
        r#"SELECT job, schedule, next_run_time, holder IS NOT NULL AND lease_expire_time > now() AS "running!",
               last_start_time, last_finish_time, ended_start_time, last_error, last_result, run_count, failure_count
           FROM jobs WHERE job = ANY($1) ORDER BY job"#,
        jobs
    )
    .fetch_all(pool)
    .await
    .map_err(Into::into)
}
