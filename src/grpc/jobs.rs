//! JobService.

use crate::grpc::wire::convert::timestamp;
use crate::grpc::{Context, Handlers};
use crate::proto::job_service_server::JobService;
use crate::proto::{Job, ListJobsRequest, ListJobsResponse, RunJobRequest, RunJobResponse};
use meterd_engine::jobs;
use meterd_engine::refusal::Refusal;
use meterd_store::admin::jobs::JobRow;
use std::sync::Arc;
use tonic::{Request, Response, Status};

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
    let jobs = jobs::list(&context.engine).await?;
    Ok(ListJobsResponse { jobs: jobs.into_iter().map(Job::from).collect() })
}

async fn run(context: Arc<Context>, request: RunJobRequest) -> Result<RunJobResponse, Refusal> {
    let job = jobs::run(&context.engine, &request.job).await?;
    Ok(RunJobResponse { job: Some(job.into()) })
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
