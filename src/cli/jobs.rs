//! `meterd jobs`: shows scheduled jobs with their last runs, or runs a job now.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use prost_types::Timestamp;

use super::chart::table;
use super::connect::{self, ConnectArgs};
use crate::proto::job_service_client::JobServiceClient;
use crate::proto::{Job, ListJobsRequest, RunJobRequest};

const LIST_SECONDS: u64 = 30;
/// A job may have to wait for the lease of a dead replica, and can run for long.
const RUN_SECONDS: u64 = 1_800;

/// Show scheduled jobs and their last runs, or run a job now
#[derive(Args, Clone, Debug)]
pub struct JobsArgs {
    #[command(subcommand)]
    pub action: Option<JobsAction>,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Subcommands of `jobs`.
#[derive(Subcommand, Clone, Debug)]
pub enum JobsAction {
    /// Run a job now and wait until it ends
    Run(RunArgs),
}

/// Arguments of `jobs run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of the job, such as key_pruning
    #[arg(value_name = "JOB")]
    pub job: String,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the jobs, or runs one. The exit code is 1 if the run fails.
pub async fn run(args: JobsArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        None => {
            let mut client = JobServiceClient::new(args.connect.channel().await?);
            let answer = client.list_jobs(args.connect.request(ListJobsRequest {}, LIST_SECONDS)).await;
            let jobs = answer.map_err(|status| connect::status_error(&status))?.into_inner().jobs;
            jobs_lines(&jobs).iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
        Some(JobsAction::Run(RunArgs { job, connect })) => {
            let mut client = JobServiceClient::new(connect.channel().await?);
            let answer = client.run_job(connect.request(RunJobRequest { job }, RUN_SECONDS)).await;
            let job = answer.map_err(|status| connect::status_error(&status))?.into_inner().job.unwrap_or_default();
            println!("{}: {}", job.job, outcome(&job));
            Ok(if job.last_error.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn outcome(job: &Job) -> String {
    match (job.last_finish_time.is_some(), job.last_error.is_empty()) {
        (false, _) => String::new(),
        (true, true) => job.last_result.clone(),
        (true, false) => format!("FAILED: {}", job.last_error),
    }
}

/// Formats a time in UTC, to the second.
fn time_text(time: Option<&Timestamp>) -> String {
    let time = time.and_then(|time| chrono::DateTime::from_timestamp(time.seconds, 0));
    time.map(|time| time.format("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}

/// Formats the duration of the last run. Empty if a run is in progress or did not finish.
fn duration_text(job: &Job) -> String {
    let (Some(start), Some(finish)) = (&job.last_start_time, &job.last_finish_time) else { return String::new() };
    let millis = (finish.seconds - start.seconds) * 1_000 + i64::from(finish.nanos - start.nanos) / 1_000_000;
    if millis < 0 { String::new() } else { format!("{}.{:03} s", millis / 1_000, millis % 1_000) }
}

fn jobs_lines(jobs: &[Job]) -> Vec<String> {
    let mut rows =
        vec![["JOB", "SCHEDULE (UTC)", "LAST RUN", "TOOK", "NEXT RUN", "RESULT"].map(str::to_owned).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        let next = time_text(job.next_run_time.as_ref());
        vec![
            job.job.clone(),
            if job.schedule.is_empty() { "off".to_owned() } else { job.schedule.clone() },
            time_text(job.last_start_time.as_ref()),
            duration_text(job),
            if job.running { "running".to_owned() } else { next },
            outcome(job),
        ]
    }));
    table(&rows, &[false, false, false, true, false, false])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            job: "retention".into(),
            schedule: "0 20 0 * * *".into(),
            next_run_time: Some(Timestamp { seconds: 1_795_306_800, nanos: 0 }),
            last_start_time: Some(Timestamp { seconds: 1_795_220_400, nanos: 900_000_000 }),
            last_finish_time: Some(Timestamp { seconds: 1_795_220_402, nanos: 150_000_000 }),
            last_result: "every month is kept".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_job_is_shown_as_a_line_with_its_last_run() {
        let lines = jobs_lines(&[job()]);
        let expected =
            "retention  0 20 0 * * *    2026-11-21 00:20:00  1.250 s  2026-11-22 00:20:00  every month is kept";
        assert_eq!(lines[1], expected);
    }

    #[test]
    fn a_failed_run_and_a_run_in_progress_are_marked() {
        let failed = Job { last_error: "canceling statement".into(), ..job() };
        assert!(jobs_lines(&[failed])[1].ends_with("FAILED: canceling statement"));
        let later = Some(Timestamp { seconds: 1_795_220_500, nanos: 0 });
        let running = Job { running: true, last_start_time: later, schedule: String::new(), ..job() };
        let line = &jobs_lines(&[running])[1];
        assert!(line.contains("  off  ") && line.contains("  running  ") && !line.contains(" s  "), "{line}");
    }
}
