//! One call of each kind, and what it says of each event.

use crate::events::{contradicting, numbered};
use crate::journal::Acknowledged;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{
    BatchTrackUsageRequest, EventOutcome, StreamUsageRequest, TrackUsageRequest, UsageEvent, UsageResult,
};
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt;

pub type Client = UsageServiceClient<Channel>;

/// What callers may be told to try again for.
const RETRYABLE: [&str; 4] = ["DATABASE_UNAVAILABLE", "SHUTTING_DOWN", "QUEUE_FULL", "DEADLINE_EXCEEDED"];
/// What a caller gives a call.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// A call that has not returned so long after its deadline hangs.
const GRACE: Duration = Duration::from_secs(2);
/// A stream has no deadline as a whole: it hangs when it is silent for longer than the server tries an event.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(25);
/// A connection that does not answer for so long is dead.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What a call brought.
#[derive(Default)]
pub struct Answer {
    pub acknowledged: Vec<Acknowledged>,
    /// Those of them that were new.
    pub accepted: usize,
    /// Why the rest is to be sent again, if there is one.
    pub refusals: Vec<String>,
    /// What nobody should be told.
    pub wrong: Vec<String>,
    pub hung: bool,
}

/// A connection of its own, made when it is used.
pub fn client(address: &str) -> Client {
    let endpoint = Channel::from_shared(address.to_string())
        .unwrap()
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    UsageServiceClient::new(endpoint.connect_lazy())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Code and reason of a status; nothing, where the connection made it.
pub fn reason(status: &Status) -> Option<String> {
    Some(status.get_error_details().error_info()?.reason.clone())
}

impl Answer {
    fn refused(&mut self, status: &Status) {
        match reason(status) {
            None if status.message().contains("Timeout expired") => {
                self.refusals.push("the caller's own deadline".into())
            }
            None => self.refusals.push("the connection".into()),
            Some(reason) if RETRYABLE.contains(&&*reason) => {
                self.refusals.push(format!("{:?} {reason}", status.code()))
            }
            Some(_) => self.wrong.push(status.to_string()),
        }
    }

    /// Takes what an event was answered.
    fn take(&mut self, number: u64, result: &UsageResult) {
        match result.outcome() {
            EventOutcome::Accepted => {
                self.accepted += 1;
                self.acknowledged.push(Acknowledged::new(number, result));
            }
            EventOutcome::Duplicate => self.acknowledged.push(Acknowledged::new(number, result)),
            outcome => {
                let error = result.error.clone().unwrap_or_default();
                let again = outcome == EventOutcome::Unavailable && RETRYABLE.contains(&&*error.reason);
                let list = if again { &mut self.refusals } else { &mut self.wrong };
                list.push(format!("{outcome:?} {}", error.reason));
            }
        }
    }

    /// Sends one event.
    pub async fn of_unary(&mut self, client: &mut Client, number: u64) {
        match self.bounded(track(client, numbered(number))).await {
            Some(Ok(result)) => self.take(number, &result),
            Some(Err(status)) => self.refused(&status),
            None => {}
        }
    }

    /// Sends a batch.
    pub async fn of_batch(&mut self, client: &mut Client, numbers: &[u64]) {
        let events = numbers.iter().map(|number| numbered(*number)).collect();
        let mut request = Request::new(BatchTrackUsageRequest { events, backfill: false, ..Default::default() });
        request.set_timeout(DEADLINE);
        match self.bounded(client.batch_track_usage(request)).await {
            Some(Ok(response)) => {
                let results = response.into_inner().results;
                assert_eq!(results.len(), numbers.len(), "a result for each event");
                numbers.iter().zip(&results).for_each(|(number, result)| self.take(*number, result));
            }
            Some(Err(status)) => self.refused(&status),
            None => {}
        }
    }

    /// Sends a stream. What was acknowledged before a break is taken.
    pub async fn of_stream(&mut self, client: &mut Client, numbers: &[u64]) {
        let events: Vec<_> =
            numbers.iter().map(|number| StreamUsageRequest { event: Some(numbered(*number)) }).collect();
        let begun = self.bounded(client.stream_usage(tokio_stream::iter(events))).await;
        let mut acks = match begun {
            Some(Ok(response)) => response.into_inner(),
            Some(Err(status)) => return self.refused(&status),
            None => return,
        };
        let mut settled = 0;
        loop {
            match tokio::time::timeout(STREAM_SILENCE_MAX, acks.next()).await {
                Err(_) => return self.hung = true,
                Ok(Some(Err(status))) => return self.refused(&status),
                Ok(None) if settled == numbers.len() => return,
                Ok(None) => return self.wrong.push(format!("a stream ended after {settled} of {}", numbers.len())),
                Ok(Some(Ok(ack))) => {
                    let mut results = ack.results.iter().peekable();
                    for message in settled + 1..=ack.settled_count as usize {
                        let number = numbers[message - 1];
                        match results.next_if(|result| result.message_number == message as i64) {
                            Some(result) => self.take(number, result.result.as_ref().expect("a result")),
                            None => {
                                self.accepted += 1;
                                self.acknowledged.push(Acknowledged::unnamed(number));
                            }
                        }
                    }
                    settled = ack.settled_count as usize;
                }
            }
        }
    }

    /// Sends another event with a key that is taken: it must be told so, or not be answered at all.
    pub async fn of_contradiction(&mut self, client: &mut Client, number: u64) {
        match self.bounded(track(client, contradicting(number))).await {
            Some(Ok(result)) => self.wrong.push(format!("a contradiction was answered with {:?}", result.outcome())),
            Some(Err(status)) if reason(&status).as_deref() == Some("IDEMPOTENCY_CONFLICT") => {}
            Some(Err(status)) => self.refused(&status),
            None => {}
        }
    }

    /// Waits for a call as long as it may take.
    async fn bounded<T>(&mut self, call: impl Future<Output = Result<T, Status>>) -> Option<Result<T, Status>> {
        let done = tokio::time::timeout(DEADLINE + GRACE, call).await;
        self.hung |= done.is_err();
        done.ok()
    }
}

/// Sends one event, with the deadline of all calls.
pub async fn track(client: &mut Client, event: UsageEvent) -> Result<UsageResult, Status> {
    let mut request = Request::new(TrackUsageRequest { event: Some(event) });
    request.set_timeout(DEADLINE);
    Ok(client.track_usage(request).await?.into_inner().result.expect("a result"))
}
