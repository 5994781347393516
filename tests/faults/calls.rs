//! Sends events with each kind of call and collects the results.

use crate::events::{conflicting_event, numbered_event};
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

/// Reasons for which a caller must retry.
const RETRYABLE: [&str; 4] = ["DATABASE_UNAVAILABLE", "SHUTTING_DOWN", "QUEUE_FULL", "DEADLINE_EXCEEDED"];
/// The deadline of each call.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// A call that does not return within this time after its deadline counts as hung.
const GRACE: Duration = Duration::from_secs(2);
/// A stream has no deadline. It counts as hung if it is silent for longer than the server retries an event.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(25);
/// A connection that does not answer within this time is considered dead.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The results of a call.
#[derive(Default)]
pub struct Answer {
    pub acknowledged: Vec<Acknowledged>,
    /// How many of the acknowledged events were new.
    pub accepted: usize,
    /// Why the other events must be sent again.
    pub refusals: Vec<String>,
    /// Results that are not allowed.
    pub wrong: Vec<String>,
    pub hung: bool,
}

/// Creates a client with its own connection, which is opened when it is first used.
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

/// Returns the reason of a status, or `None` if the client library created the status.
pub fn reason(status: &Status) -> Option<String> {
    Some(status.get_error_details().error_info()?.reason.clone())
}

impl Answer {
    fn rejected(&mut self, status: &Status) {
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

    /// Adds the result of an event.
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
    pub async fn send_unary(&mut self, client: &mut Client, number: u64) {
        match self.bounded(track(client, numbered_event(number))).await {
            Some(Ok(result)) => self.take(number, &result),
            Some(Err(status)) => self.rejected(&status),
            None => {}
        }
    }

    /// Sends a batch.
    pub async fn send_batch(&mut self, client: &mut Client, numbers: &[u64]) {
        let events = numbers.iter().map(|number| numbered_event(*number)).collect();
        let mut request = Request::new(BatchTrackUsageRequest { events, backfill: false, ..Default::default() });
        request.set_timeout(DEADLINE);
        match self.bounded(client.batch_track_usage(request)).await {
            Some(Ok(response)) => {
                let results = response.into_inner().results;
                assert_eq!(results.len(), numbers.len(), "not one result per event");
                numbers.iter().zip(&results).for_each(|(number, result)| self.take(*number, result));
            }
            Some(Err(status)) => self.rejected(&status),
            None => {}
        }
    }

    /// Sends a stream. Events that were acknowledged before the stream broke count as acknowledged.
    pub async fn send_stream(&mut self, client: &mut Client, numbers: &[u64]) {
        let events: Vec<_> =
            numbers.iter().map(|number| StreamUsageRequest { event: Some(numbered_event(*number)) }).collect();
        let started = self.bounded(client.stream_usage(tokio_stream::iter(events))).await;
        let mut acks = match started {
            Some(Ok(response)) => response.into_inner(),
            Some(Err(status)) => return self.rejected(&status),
            None => return,
        };
        let mut settled = 0;
        loop {
            match tokio::time::timeout(STREAM_SILENCE_MAX, acks.next()).await {
                Err(_) => return self.hung = true,
                Ok(Some(Err(status))) => return self.rejected(&status),
                Ok(None) if settled == numbers.len() => return,
                Ok(None) => return self.wrong.push(format!("a stream ended after {settled} of {}", numbers.len())),
                Ok(Some(Ok(ack))) => {
                    let mut results = ack.results.iter().peekable();
                    for message in settled + 1..=ack.settled_count as usize {
                        let number = numbers[message - 1];
                        match results.next_if(|result| result.message_number == message as i64) {
                            Some(result) => self.take(number, result.result.as_ref().expect("a result is set")),
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

    /// Sends a different event with a used key. The only allowed results are a conflict and an error that can be
    /// retried.
    pub async fn send_conflicting(&mut self, client: &mut Client, number: u64) {
        match self.bounded(track(client, conflicting_event(number))).await {
            Some(Ok(result)) => self.wrong.push(format!("a conflicting event got the result {:?}", result.outcome())),
            Some(Err(status)) if reason(&status).as_deref() == Some("IDEMPOTENCY_CONFLICT") => {}
            Some(Err(status)) => self.rejected(&status),
            None => {}
        }
    }

    /// Awaits a call for at most its deadline and the grace period.
    async fn bounded<T>(&mut self, call: impl Future<Output = Result<T, Status>>) -> Option<Result<T, Status>> {
        let done = tokio::time::timeout(DEADLINE + GRACE, call).await;
        self.hung |= done.is_err();
        done.ok()
    }
}

/// Sends one event with the usual deadline.
pub async fn track(client: &mut Client, event: UsageEvent) -> Result<UsageResult, Status> {
    let mut request = Request::new(TrackUsageRequest { event: Some(event) });
    request.set_timeout(DEADLINE);
    Ok(client.track_usage(request).await?.into_inner().result.expect("a result is set"))
}
