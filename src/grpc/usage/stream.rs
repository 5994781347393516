//! StreamUsage: events in, acknowledgements out in order and after the commit.

use crate::grpc::Context;
use crate::grpc::layers::panics::stream_from_task;
use crate::grpc::usage::events::raw_event;
use crate::grpc::wire::status::status;
use crate::proto::{StreamUsageRequest, StreamUsageResponse, StreamUsageResult};
use meterd_engine::auth::Caller;
use meterd_engine::ingest::{Echo, Numbered, Outcome};
use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{EventStream, InOrder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Maximum number of events of a stream that are read but not settled.
const UNSETTLED_EVENTS_MAX: usize = 10_000;
/// Maximum number of acknowledgements that wait for a caller that does not read them. Then no more events are settled or read.
const ACKS_WAITING_MAX: usize = 16;

/// What the acknowledgement of each event needs: what it repeats, and the permit that it returns.
type InFlight = Arc<Mutex<HashMap<usize, (Echo, OwnedSemaphorePermit)>>>;

/// Runs a stream in its own task until the caller has closed its side or disconnects, or the server stops.
pub fn run(
    context: Arc<Context>,
    caller: Arc<Caller>,
    messages: Streaming<StreamUsageRequest>,
) -> ReceiverStream<Result<StreamUsageResponse, Status>> {
    stream_from_task(ACKS_WAITING_MAX, |acks| async move {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let in_flight = InFlight::default();
        let events = EventStream::new(&context.engine, &caller, Arc::new(sender));
        let reading = read(&context, &caller, messages, events, &in_flight);
        let settling = settle(&context, outcomes, &acks, &in_flight);
        let (read, ()) = tokio::join!(reading, settling);
        read
    })
}

/// Queues the events that arrive. Ends when the caller closes its side, or with the status that ends the stream.
async fn read(
    context: &Context,
    caller: &Arc<Caller>,
    mut messages: Streaming<StreamUsageRequest>,
    mut events: EventStream<'_>,
    in_flight: &InFlight,
) -> Result<(), Status> {
    let room = Arc::new(Semaphore::new(UNSETTLED_EVENTS_MAX));
    let mut stopping = context.stopping.clone();
    // Checked here as well, because a caller that reads no acknowledgements must not record more either.
    let mut ended = std::pin::pin!(context.auth.ended(caller));
    loop {
        // The order matters: a message is read only if there is room for it.
        let next = async {
            let permit = room.clone().acquire_owned().await.expect("the semaphore stays open");
            (messages.message().await, permit)
        };
        let (message, permit) = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Err(status(Refusal::shutting_down())),
            // The acknowledging half ends only if the caller has disconnected.
            () = events.closed() => return Ok(()),
            error = &mut ended => return Err(status(error)),
            next = next => next,
        };
        let Some(StreamUsageRequest { event }) = message? else { return Ok(()) };
        let keep = |number, echo| drop(in_flight.lock().expect("not poisoned").insert(number, (echo, permit)));
        events.record(raw_event(event.unwrap_or_default()), keep).await.map_err(status)?;
    }
}

/// Acknowledges settled events in order, until all are settled or the caller has disconnected.
async fn settle(
    context: &Context,
    mut outcomes: mpsc::UnboundedReceiver<Numbered>,
    acks: &mpsc::Sender<Result<StreamUsageResponse, Status>>,
    in_flight: &InFlight,
) {
    let mut in_order = InOrder::default();
    loop {
        let first = tokio::select! {
            first = outcomes.recv() => first,
            () = acks.closed() => return,
        };
        let Some(first) = first else { return };
        in_order.add(first);
        while let Ok(more) = outcomes.try_recv() {
            in_order.add(more);
        }
        if let Some(ack) = acknowledgement(context, &mut in_order, in_flight)
            && acks.send(Ok(ack)).await.is_err()
        {
            return;
        }
    }
}

/// Acknowledges the events that are settled, with results of those that were not simply accepted. `None` if none is settled.
fn acknowledgement(context: &Context, in_order: &mut InOrder, in_flight: &InFlight) -> Option<StreamUsageResponse> {
    let before = in_order.settled();
    let mut results = vec![];
    while let Some((number, outcome)) = in_order.pop() {
        let message = in_flight.lock().expect("not poisoned").remove(&number);
        let echo = message.map(|(echo, _)| echo).unwrap_or_default();
        if !matches!(outcome, Outcome::Accepted(_)) || !echo.rounded.is_empty() {
            let result = Some(context.result(outcome, echo));
            results.push(StreamUsageResult { message_number: number as i64, result });
        }
    }
    let settled = in_order.settled();
    (settled > before).then_some(StreamUsageResponse { settled_count: settled as i64, results })
}
