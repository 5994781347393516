//! Sends batches of an import, and retries until all events are settled or the time is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::ImportArgs;
use super::batches::Batch;
use super::clients::Clients;
use super::progress::Printer;
use crate::cli::connect::Connection;
use crate::cli::connect::{self, ConnectArgs};
use crate::cli::retry::Backoff;
use crate::proto::usage_service_client::UsageServiceClient;
use crate::proto::{BatchTrackUsageRequest, BatchTrackUsageResponse, EventOutcome, UsageEvent, UsageResult};

const CALL_SECONDS: u64 = 60;

/// Sends batches.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The client of the server.
    pub client: UsageServiceClient<Connection>,
    /// Contains the timeout of calls.
    pub connect: ConnectArgs,
    /// Whether events can have any age.
    pub backfill: bool,
    /// Whether the server only checks the events.
    pub dry_run: bool,
    /// Maximum time for retries without progress.
    pub retry_budget: Duration,
    /// Cache of clients.
    pub clients: Arc<Clients>,
}

impl Sender {
    /// Connects to the server of the flags.
    pub async fn connect(args: &ImportArgs) -> anyhow::Result<Sender> {
        Ok(Sender {
            client: connect::usage_client(args.connect.channel().await?),
            connect: args.connect.clone(),
            backfill: args.backfill,
            dry_run: args.dry_run,
            retry_budget: Duration::from_secs(args.retry_seconds),
            clients: Arc::new(Clients::new(args.no_new_clients)),
        })
    }

    /// Sends a batch, always with the same keys, until each event has a final result. Results are in the order of the events.
    pub async fn settle(&mut self, batch: &Batch, printer: &Printer) -> anyhow::Result<Vec<UsageResult>> {
        let mut settling = Settling::new(batch.events.len());
        let mut retry = self.retry(batch);
        while !settling.pending.is_empty() {
            let events: Vec<UsageEvent> = settling.pending.iter().map(|at| batch.events[*at].clone()).collect();
            let (hint, why) = match self.call(events, self.dry_run).await {
                Ok(response) => {
                    let round = settling.add(response.results)?;
                    if round.any_final {
                        retry.backoff.reset();
                    }
                    (round.retry_delay, round.last_error)
                }
                Err(status) => retryable(&status)?,
            };
            if !settling.pending.is_empty() {
                retry.wait(hint, &why, printer).await?;
            }
        }
        Ok(settling.results)
    }

    /// Validates events without recording them. Retries until the server answers.
    pub async fn validate(
        &mut self,
        events: &[UsageEvent],
        batch: &Batch,
        printer: &Printer,
    ) -> anyhow::Result<BatchTrackUsageResponse> {
        let mut retry = self.retry(batch);
        loop {
            let (hint, why) = match self.call(events.to_vec(), true).await {
                Ok(response) => return Ok(response),
                Err(status) => retryable(&status)?,
            };
            retry.wait(hint, &why, printer).await?;
        }
    }

    async fn call(&mut self, events: Vec<UsageEvent>, validate_only: bool) -> Result<BatchTrackUsageResponse, Status> {
        let request = BatchTrackUsageRequest { events, backfill: self.backfill, validate_only };
        let answer = self.client.batch_track_usage(self.connect.request(request, CALL_SECONDS)).await?;
        Ok(answer.into_inner())
    }

    fn retry(&self, batch: &Batch) -> RetryState {
        RetryState {
            backoff: Backoff::new(self.retry_budget),
            budget: self.retry_budget,
            line: batch.origins.first().map_or(0, |origin| origin.line),
        }
    }
}

/// Returns the delay and the reason for a retry, or an error if a retry is useless.
fn retryable(status: &Status) -> anyhow::Result<(Option<Duration>, String)> {
    match connect::is_retryable(status) {
        true => Ok((connect::retry_delay(status), connect::status_text(status))),
        false => Err(connect::status_error(status)),
    }
}

/// The state of the retries of one batch.
struct RetryState {
    backoff: Backoff,
    budget: Duration,
    line: u64,
}

impl RetryState {
    /// Waits before the next attempt. An error if the time is over.
    async fn wait(&mut self, hint: Option<Duration>, why: &str, printer: &Printer) -> anyhow::Result<()> {
        let is_first = !self.backoff.is_waiting();
        let Some(wait) = self.backoff.next_wait(Instant::now(), hint) else {
            anyhow::bail!("gave up after {} s of retries: {why}", self.budget.as_secs());
        };
        if is_first {
            printer.print(&format!("rows from line {}: {why}; retrying for {} s", self.line, self.budget.as_secs()));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The results of a batch, and the events without a final result.
struct Settling {
    pending: Vec<usize>,
    results: Vec<UsageResult>,
}

/// Summary of one response.
#[derive(Debug, Default)]
struct Round {
    any_final: bool,
    retry_delay: Option<Duration>,
    last_error: String,
}

impl Settling {
    fn new(count: usize) -> Settling {
        Settling { pending: (0..count).collect(), results: vec![UsageResult::default(); count] }
    }

    /// Adds the results of the pending events.
    fn add(&mut self, results: Vec<UsageResult>) -> anyhow::Result<Round> {
        anyhow::ensure!(
            results.len() == self.pending.len(),
            "the server returned {} results for {} events",
            results.len(),
            self.pending.len()
        );
        let mut round = Round::default();
        let sent = std::mem::take(&mut self.pending);
        for (at, result) in sent.into_iter().zip(results) {
            if is_pending(&result) {
                let error = result.error.unwrap_or_default();
                let delay = u64::try_from(error.retry_delay_ms).unwrap_or(0);
                round.retry_delay = round.retry_delay.max(Some(Duration::from_millis(delay)));
                round.last_error = format!("{}: {}", error.reason, connect::event_error_text(&error));
                self.pending.push(at);
            } else {
                round.any_final = true;
                self.results[at] = result;
            }
        }
        Ok(round)
    }
}

/// Whether an event must be sent again: its outcome is unknown, or the server requests a retry.
fn is_pending(result: &UsageResult) -> bool {
    let retry_delay_ms = result.error.as_ref().map_or(0, |error| error.retry_delay_ms);
    match result.outcome() {
        EventOutcome::Unavailable | EventOutcome::Unspecified => true,
        EventOutcome::Accepted | EventOutcome::Duplicate => false,
        EventOutcome::Conflict | EventOutcome::Rejected => retry_delay_ms > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::EventError;

    fn result(outcome: EventOutcome, retry_delay_ms: i64) -> UsageResult {
        let error =
            EventError { reason: "QUEUE_FULL".into(), message: "full".into(), retry_delay_ms, ..Default::default() };
        UsageResult { outcome: outcome.into(), error: Some(error), ..Default::default() }
    }

    #[test]
    fn only_pending_events_are_sent_again_and_results_keep_their_order() {
        let mut settling = Settling::new(4);
        let first = vec![
            result(EventOutcome::Accepted, 0),
            result(EventOutcome::Unavailable, 250),
            result(EventOutcome::Rejected, 0),
            result(EventOutcome::Rejected, 100),
        ];
        let round = settling.add(first).unwrap();
        assert_eq!(settling.pending, [1, 3]);
        assert!(round.any_final);
        assert_eq!(round.retry_delay, Some(Duration::from_millis(250)));
        assert_eq!(round.last_error, "QUEUE_FULL: full");
        let round = settling.add(vec![result(EventOutcome::Duplicate, 0), result(EventOutcome::Accepted, 0)]).unwrap();
        assert!(round.any_final && settling.pending.is_empty());
        let outcomes: Vec<_> = settling.results.iter().map(UsageResult::outcome).collect();
        use EventOutcome::{Accepted, Duplicate, Rejected};
        assert_eq!(outcomes, [Accepted, Duplicate, Rejected, Accepted]);
    }

    #[test]
    fn a_response_with_another_number_of_results_is_an_error() {
        assert!(Settling::new(2).add(vec![UsageResult::default()]).is_err());
    }
}
