//! Scheduled jobs: when they are due, who runs them, and what became of it. All times are the database's.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use std::time::Duration;

/// A job and its last run.
pub struct JobRow {
    pub job: String,
    /// Cron expression; empty: never.
    pub schedule: String,
    pub next_run_time: Option<DateTime<Utc>>,
    pub running: bool,
    pub last_start_time: Option<DateTime<Utc>>,
    pub last_finish_time: Option<DateTime<Utc>>,
    /// When the run began that ended last.
    pub ended_start_time: Option<DateTime<Utc>>,
    pub last_error: String,
    pub last_result: String,
    pub run_count: i64,
    pub failure_count: i64,
}

/// What a replica looks at when it looks for work.
pub struct Glance {
    pub job: String,
    pub schedule: String,
    pub next_run_time: Option<DateTime<Utc>>,
    pub last_success_time: Option<DateTime<Utc>>,
    /// Nobody runs it and its time has come, or whoever ran it has let the lease run out; and no lease is in force.
    pub due: bool,
    /// Its lease ends later than one that is taken now would.
    pub lease_too_long: bool,
    pub now: DateTime<Utc>,
}

/// Makes a job, due at once, or gives it a changed schedule with its next time. A run that was missed stays due.
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

/// These jobs, as far as they are there.
pub async fn glance(pool: &PgPool, jobs: &[String], lease: Duration) -> crate::Result<Vec<Glance>> {
    sqlx::query_as!(
        Glance,
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

/// Brings forward what a database clock that was ahead has left: a due time, unless it is not `seen` any more, to `next`, and
/// the end of a lease to that of one that is taken now. Whoever still holds such a lease renews it meanwhile.
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

/// Takes a due job under a lease, unless somebody else was faster, and moves its next time on.
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

/// Renews a lease. False, where it is over or somebody else's.
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

/// Notes what became of a run and lets go of it; not of its lease, where statements of it may still run: then nobody runs it
/// until that has run out. A run that failed is due again after `retry_after`, unless its next time comes before, or it has
/// none. False, where somebody else has taken it over.
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

/// Asks for a run, and gives the time of asking; nothing where there is no such job.
pub async fn want(pool: &PgPool, job: &str) -> crate::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(r#"UPDATE jobs SET next_run_time = now() WHERE job = $1 RETURNING now() AS "now!""#, job)
        .fetch_optional(pool)
        .await
        .map_err(Into::into)
}

/// These jobs, by name.
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
