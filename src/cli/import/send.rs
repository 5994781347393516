//! The sending half of an import: a batch until all of it is settled, or time is up.

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

/// How batches are sent.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The server.
    pub client: UsageServiceClient<Connection>,
    /// Holds the time limit of a call.
    pub connect: ConnectArgs,
    /// Old events are welcome.
    pub backfill: bool,
    /// Let the server check and record nothing.
    pub dry_run: bool,
    /// How long to go on without any progress.
    pub retry_budget: Duration,
    /// What is known of the clients.
    pub clients: Arc<Clients>,
}

impl Sender {
    /// Connects as the flags say.
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

    /// Sends until each event has a final result, always with the same keys. Results are in the order of the events.
    pub async fn settle(&mut self, batch: &Batch, printer: &Printer) -> anyhow::Result<Vec<UsageResult>> {
        let mut settling = Settling::new(batch.events.len());
        let mut waiting = self.waiting(batch);
        while !settling.open.is_empty() {
            let events: Vec<UsageEvent> = settling.open.iter().map(|at| batch.events[*at].clone()).collect();
            let (hint, why) = match self.call(events, self.dry_run).await {
                Ok(response) => {
                    let round = settling.take(response.results)?;
                    if round.any_final {
                        waiting.backoff.reset();
                    }
                    (round.retry_delay, round.last_error)
                }
                Err(status) => retryable(&status)?,
            };
            if !settling.open.is_empty() {
                waiting.wait(hint, &why, printer).await?;
            }
        }
        Ok(settling.results)
    }

    /// Asks the server about events, without recording them, until it answers.
    pub async fn ask(
        &mut self,
        events: &[UsageEvent],
        batch: &Batch,
        printer: &Printer,
    ) -> anyhow::Result<BatchTrackUsageResponse> {
        let mut waiting = self.waiting(batch);
        loop {
            let (hint, why) = match self.call(events.to_vec(), true).await {
                Ok(response) => return Ok(response),
                Err(status) => retryable(&status)?,
            };
            waiting.wait(hint, &why, printer).await?;
        }
    }

    async fn call(&mut self, events: Vec<UsageEvent>, validate_only: bool) -> Result<BatchTrackUsageResponse, Status> {
        let request = BatchTrackUsageRequest { events, backfill: self.backfill, validate_only };
        let answer = self.client.batch_track_usage(self.connect.request(request, CALL_SECONDS)).await?;
        Ok(answer.into_inner())
    }

    fn waiting(&self, batch: &Batch) -> Waiting {
        Waiting {
            backoff: Backoff::new(self.retry_budget),
            budget: self.retry_budget,
            line: batch.origins.first().map_or(0, |origin| origin.line),
        }
    }
}

/// Pause and reason of a call that may succeed later; others are errors.
fn retryable(status: &Status) -> anyhow::Result<(Option<Duration>, String)> {
    match connect::is_retryable(status) {
        true => Ok((connect::retry_delay(status), connect::status_text(status))),
        false => Err(connect::status_error(status)),
    }
}

/// The tries of one batch.
struct Waiting {
    backoff: Backoff,
    budget: Duration,
    line: u64,
}

impl Waiting {
    /// Waits before the next try, or gives up.
    async fn wait(&mut self, hint: Option<Duration>, why: &str, printer: &Printer) -> anyhow::Result<()> {
        let is_first = !self.backoff.is_waiting();
        let Some(wait) = self.backoff.next_wait(Instant::now(), hint) else {
            anyhow::bail!("gave up after {} s of trying: {why}", self.budget.as_secs());
        };
        if is_first {
            printer.print(&format!(
                "rows from line {}: {why}; trying again for {} s",
                self.line,
                self.budget.as_secs()
            ));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Which events of a batch have no final result yet.
struct Settling {
    open: Vec<usize>,
    results: Vec<UsageResult>,
}

/// What one answer brought.
#[derive(Debug, Default)]
struct Round {
    any_final: bool,
    retry_delay: Option<Duration>,
    last_error: String,
}

impl Settling {
    fn new(count: usize) -> Settling {
        Settling { open: (0..count).collect(), results: vec![UsageResult::default(); count] }
    }

    /// Takes the answer to the open events.
    fn take(&mut self, results: Vec<UsageResult>) -> anyhow::Result<Round> {
        anyhow::ensure!(
            results.len() == self.open.len(),
            "the server answered {} results to {} events",
            results.len(),
            self.open.len()
        );
        let mut round = Round::default();
        let asked = std::mem::take(&mut self.open);
        for (at, result) in asked.into_iter().zip(results) {
            if is_open(&result) {
                let error = result.error.unwrap_or_default();
                let delay = u64::try_from(error.retry_delay_ms).unwrap_or(0);
                round.retry_delay = round.retry_delay.max(Some(Duration::from_millis(delay)));
                round.last_error = format!("{}: {}", error.reason, connect::event_error_text(&error));
                self.open.push(at);
            } else {
                round.any_final = true;
                self.results[at] = result;
            }
        }
        Ok(round)
    }
}

/// Not known to be recorded, or to be sent again.
fn is_open(result: &UsageResult) -> bool {
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
    fn only_what_is_open_is_asked_again_and_results_keep_their_order() {
        let mut settling = Settling::new(4);
        let first = vec![
            result(EventOutcome::Accepted, 0),
            result(EventOutcome::Unavailable, 250),
            result(EventOutcome::Rejected, 0),
            result(EventOutcome::Rejected, 100),
        ];
        let round = settling.take(first).unwrap();
        assert_eq!(settling.open, [1, 3]);
        assert!(round.any_final);
        assert_eq!(round.retry_delay, Some(Duration::from_millis(250)));
        assert_eq!(round.last_error, "QUEUE_FULL: full");
        let round = settling.take(vec![result(EventOutcome::Duplicate, 0), result(EventOutcome::Accepted, 0)]).unwrap();
        assert!(round.any_final && settling.open.is_empty());
        let outcomes: Vec<_> = settling.results.iter().map(UsageResult::outcome).collect();
        use EventOutcome::{Accepted, Duplicate, Rejected};
        assert_eq!(outcomes, [Accepted, Duplicate, Rejected, Accepted]);
    }

    #[test]
    fn an_answer_of_another_length_is_not_guessed_at() {
        assert!(Settling::new(2).take(vec![UsageResult::default()]).is_err());
    }
}
