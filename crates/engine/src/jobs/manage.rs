//! Lists jobs and runs one on request.

use super::names;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::{Reason, Refusal};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::admin::jobs::{self as store, JobRow};
use std::time::Duration;

/// How often a waiting call checks whether the run has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Lists all jobs.
pub async fn list(engine: &Engine) -> Result<Vec<JobRow>, Refusal> {
    Ok(store::list(&engine.pool, &names()).await?)
}

/// Requests a run of a job and waits until it has ended.
pub async fn run(engine: &Engine, job: &str) -> Result<JobRow, Refusal> {
    let mut fields = Fields::default();
    fields.required("job", job, ID_BYTES_MAX);
    fields.finish()?;
    let not_found = || Refusal::new(Reason::JobNotFound, format!("no job {job:?}; there are {}", names().join(", ")));
    let name = names().into_iter().find(|name| *name == job).ok_or_else(not_found)?;
    let request_time = store::want(&engine.pool, &name).await?.ok_or_else(not_found)?;
    engine.jobs_wanted.notify_one();
    loop {
        let row = store::list(&engine.pool, std::slice::from_ref(&name)).await?.pop().ok_or_else(not_found)?;
        if row.ended_start_time.is_some_and(|started| started >= request_time) {
            return Ok(row);
        }
        if engine.is_stopping() {
            return Err(Refusal::shutting_down());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
