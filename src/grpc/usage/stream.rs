//! StreamUsage: events in, acknowledgements out in order and after the commit.

use crate::auth::Caller;
use crate::error::Error;
use crate::grpc::Context;
use crate::grpc::layers::panics::stream_from_task;
use crate::grpc::usage::events::{Checked, Echo, EventChecks, Refused, Texts};
use crate::grpc::wire::fields::Path;
use crate::ingest::{Numbered, Outcome, Outcomes};
use crate::proto::{StreamUsageRequest, StreamUsageResponse, StreamUsageResult};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Most events of a stream that are read and not settled yet.
const UNSETTLED_EVENTS_MAX: usize = 10_000;
/// Acknowledgements that wait for a sender that does not read them; then nothing more is settled or read.
const ACKS_WAITING_MAX: usize = 16;

/// What a message's acknowledgement needs: what it repeats, and the room that it gives back.
type InFlight = Arc<Mutex<HashMap<usize, (Echo, OwnedSemaphorePermit)>>>;

/// Runs a stream in a task of its own until the sender has closed its side, hangs up, or the server stops.
pub fn run(
    context: Arc<Context>,
    caller: Arc<Caller>,
    messages: Streaming<StreamUsageRequest>,
) -> ReceiverStream<Result<StreamUsageResponse, Status>> {
    stream_from_task(ACKS_WAITING_MAX, |acks| async move {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let in_flight = InFlight::default();
        let reading = read(&context, &caller, messages, Arc::new(sender), &in_flight);
        let settling = settle(&context, outcomes, &acks, &in_flight);
        let (read, ()) = tokio::join!(reading, settling);
        read
    })
}

/// Queues what comes in. Ends with the sender's side, or with the status that ends the stream.
async fn read(
    context: &Context,
    caller: &Arc<Caller>,
    mut messages: Streaming<StreamUsageRequest>,
    outcomes: Outcomes,
    in_flight: &InFlight,
) -> Result<(), Status> {
    let room = Arc::new(Semaphore::new(UNSETTLED_EVENTS_MAX));
    let mut stopping = context.stopping.clone();
    // Here too: of a sender that takes no acknowledgements nothing more may be recorded either.
    let mut ended = std::pin::pin!(context.auth.ended(caller));
    let mut texts = Texts::default();
    for number in 1.. {
        // The order matters: a message is taken only when there is room for it.
        let next = async {
            let permit = room.clone().acquire_owned().await.expect("the semaphore stays open");
            (messages.message().await, permit)
        };
        let (message, permit) = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Err(Error::shutting_down().into()),
            // The acknowledging half has gone: so has the caller.
            _ = outcomes.closed() => return Ok(()),
            error = &mut ended => return Err(error.into()),
            next = next => next,
        };
        let Some(StreamUsageRequest { event }) = message? else { return Ok(()) };
        let event = event.unwrap_or_default();
        let checks = EventChecks::new(context, caller, std::iter::once(event.service.as_str()), false).await?;
        match checks.check(&mut texts, Path::Named("event"), Some(event)) {
            Err(Refused { key, error }) => {
                let echo = Echo { key, ..Echo::default() };
                in_flight.lock().expect("not poisoned").insert(number, (echo, permit));
                drop(outcomes.send(vec![(number, Outcome::Rejected(error))]));
            }
            Ok(Checked { submission, echo }) => {
                in_flight.lock().expect("not poisoned").insert(number, (echo, permit));
                context.ingest.record_numbered(vec![(number, Box::new(submission))], &outcomes).await?;
            }
        }
    }
    Ok(())
}

/// Acknowledges what is settled, in order, until all is or the caller has hung up.
async fn settle(
    context: &Context,
    mut outcomes: mpsc::UnboundedReceiver<Numbered>,
    acks: &mpsc::Sender<Result<StreamUsageResponse, Status>>,
    in_flight: &InFlight,
) {
    let mut settled: usize = 0;
    // Outcomes of the messages after the last settled one, as far as they are known.
    let mut known: VecDeque<Option<Outcome>> = VecDeque::new();
    loop {
        let first = tokio::select! {
            first = outcomes.recv() => first,
            () = acks.closed() => return,
        };
        let Some(first) = first else { return };
        let mut next = Some(first);
        while let Some(together) = next {
            for (number, outcome) in together {
                let at = number - settled - 1;
                if known.len() <= at {
                    known.resize_with(at + 1, || None);
                }
                known[at] = Some(outcome);
            }
            next = outcomes.try_recv().ok();
        }
        let mut results = Vec::new();
        let before = settled;
        while let Some(Some(_)) = known.front() {
            let outcome = known.pop_front().flatten().expect("just seen");
            settled += 1;
            let message = in_flight.lock().expect("not poisoned").remove(&settled);
            let echo = message.map(|(echo, _)| echo).unwrap_or_default();
            if !matches!(outcome, Outcome::Accepted(_)) || !echo.rounded.is_empty() {
                let result = Some(context.result(outcome, echo));
                results.push(StreamUsageResult { message_number: settled as i64, result });
            }
        }
        if settled > before {
            let ack = StreamUsageResponse { settled_count: settled as i64, results };
            if acks.send(Ok(ack)).await.is_err() {
                return;
            }
        }
    }
}
