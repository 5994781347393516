//! JobService.

use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::Fields;
use crate::grpc::{Context, Handlers};
use crate::proto::job_service_server::JobService;
use crate::proto::{Job, ListJobsRequest, ListJobsResponse, RunJobRequest, RunJobResponse};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_engine::jobs;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::jobs::{self as rows, JobRow};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How often a waiting call looks whether the run has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        Self {
            job: row.job,
            schedule: row.schedule,
            next_run_time: row.next_run_time.map(timestamp),
            running: row.running,
            last_start_time: row.last_start_time.map(timestamp),
            last_finish_time: row.last_finish_time.map(timestamp),
            last_error: row.last_error,
            last_result: row.last_result,
            run_count: row.run_count,
            failure_count: row.failure_count,
        }
    }
}

async fn list(context: Arc<Context>, ListJobsRequest {}: ListJobsRequest) -> Result<ListJobsResponse, Refusal> {
    let jobs = rows::list(&context.engine.pool, &jobs::names()).await?;
    Ok(ListJobsResponse { jobs: jobs.into_iter().map(Job::from).collect() })
}

/// Runs a job: asks for it, and waits until it has run.
async fn run(context: Arc<Context>, request: RunJobRequest) -> Result<RunJobResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("job", &request.job, ID_BYTES_MAX);
    fields.finish()?;
    let not_found = || {
        let message = format!("no job {:?}; there are {}", request.job, jobs::names().join(", "));
        Refusal::new(Reason::JobNotFound, message)
    };
    let name = jobs::names().into_iter().find(|name| *name == request.job).ok_or_else(not_found)?;
    let asked_time = rows::want(&context.engine.pool, &name).await?.ok_or_else(not_found)?;
    context.engine.jobs_wanted.notify_one();
    loop {
        let row = rows::list(&context.engine.pool, std::slice::from_ref(&name)).await?.pop().ok_or_else(not_found)?;
        if row.ended_start_time.is_some_and(|began| began >= asked_time) {
            return Ok(RunJobResponse { job: Some(row.into()) });
        }
        if *context.stopping.borrow() {
            return Err(Refusal::shutting_down());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tonic::async_trait]
impl JobService for Handlers {
    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        self.run(request, list).await
    }

    async fn run_job(&self, request: Request<RunJobRequest>) -> Result<Response<RunJobResponse>, Status> {
        self.run(request, run).await
    }
}
