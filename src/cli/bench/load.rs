//! The load: lone events, batches and streams, as callers send them.

use super::events::Events;
use super::window::{Tally, Window};
use crate::cli::connect::Connection;
use crate::cli::connect::{status_error, usage_client};
use crate::proto::{
    BatchTrackUsageRequest, EventOutcome, StreamUsageRequest, StreamUsageResponse, TrackUsageRequest, UsageResult,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Most events of a stream that are sent and not settled yet.
pub const STREAM_WINDOW_EVENTS: usize = 1_000;
/// Events that wait for the stream's connection.
const STREAM_BUFFER_EVENTS: usize = 64;
/// Events of a call that makes the clients.
const PREPARE_EVENTS: usize = 10_000;

/// Records one event of each client, so that all rows are there. Gives how many.
pub async fn prepare(channel: Connection, events: &Events) -> anyhow::Result<u64> {
    prepare_clients(&channel, events.client_ids()).await
}

/// The same of these clients.
pub async fn prepare_clients(channel: &Connection, ids: Vec<String>) -> anyhow::Result<u64> {
    for ids in ids.chunks(PREPARE_EVENTS) {
        batch(channel, ids.iter().cloned().map(Events::of).collect()).await?;
    }
    Ok(ids.len() as u64)
}

/// TrackUsage.
pub async fn lone_events(channel: Connection, events: Events, window: Arc<Window>) -> anyhow::Result<Tally> {
    let mut client = usage_client(channel);
    let mut tally = Tally::default();
    while !window.is_over() {
        let request = TrackUsageRequest { event: Some(events.next()) };
        let begin = Instant::now();
        let response = client.track_usage(request).await.map_err(|status| status_error(&status))?;
        check(response.into_inner().result.as_ref())?;
        tally.add(&window, begin, 1);
    }
    Ok(tally)
}

/// BatchTrackUsage.
pub async fn batches(channel: Connection, events: Events, size: usize, window: Arc<Window>) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    while !window.is_over() {
        let batch_events = (0..size).map(|_| events.next()).collect();
        let begin = Instant::now();
        batch(&channel, batch_events).await?;
        tally.add(&window, begin, size as u64);
    }
    Ok(tally)
}

/// One call of BatchTrackUsage, all of whose events are new.
pub async fn batch(channel: &Connection, events: Vec<crate::proto::UsageEvent>) -> anyhow::Result<()> {
    let count = events.len();
    let request = BatchTrackUsageRequest { events, backfill: false };
    let call = usage_client(channel.clone()).batch_track_usage(request).await;
    let response = call.map_err(|status| status_error(&status))?.into_inner();
    response.results.iter().try_for_each(|result| check(Some(result)))?;
    anyhow::ensure!(response.accepted_count as usize == count, "a batch of {count} was not accepted whole");
    Ok(())
}

/// StreamUsage: keeps a window of events under way.
pub async fn stream(channel: Connection, events: Events, window: Arc<Window>) -> anyhow::Result<Tally> {
    let (sender, messages) = mpsc::channel(STREAM_BUFFER_EVENTS);
    let call = usage_client(channel).stream_usage(ReceiverStream::new(messages)).await;
    let mut acks = call.map_err(|status| status_error(&status))?.into_inner();
    let mut stream = Unsettled::default();
    while !window.is_over() {
        tokio::select! {
            biased;
            room = sender.reserve(), if stream.sent.len() < STREAM_WINDOW_EVENTS => {
                room?.send(StreamUsageRequest { event: Some(events.next()) });
                stream.sent.push_back(Instant::now());
            }
            ack = acks.message() => {
                let ack = ack.map_err(|status| status_error(&status))?;
                stream.settle(&window, ack.ok_or_else(|| anyhow::anyhow!("the stream ended"))?)?;
            }
        }
    }
    drop(sender);
    while let Some(ack) = acks.message().await.map_err(|status| status_error(&status))? {
        stream.settle(&window, ack)?;
    }
    anyhow::ensure!(stream.sent.is_empty(), "a stream ended with {} events unsettled", stream.sent.len());
    Ok(stream.tally)
}

/// When each event was sent that is not settled yet.
#[derive(Default)]
struct Unsettled {
    sent: VecDeque<Instant>,
    settled: i64,
    tally: Tally,
}

impl Unsettled {
    fn settle(&mut self, window: &Window, ack: StreamUsageResponse) -> anyhow::Result<()> {
        for result in &ack.results {
            check(result.result.as_ref())?;
        }
        for _ in self.settled..ack.settled_count {
            let sent = self.sent.pop_front().ok_or_else(|| anyhow::anyhow!("settled before it was sent"))?;
            self.tally.add(window, sent, 1);
        }
        self.settled = ack.settled_count;
        Ok(())
    }
}

/// Each key is new: anything but ACCEPTED is wrong.
pub fn check(result: Option<&UsageResult>) -> anyhow::Result<()> {
    let outcome = result.map(UsageResult::outcome);
    anyhow::ensure!(outcome == Some(EventOutcome::Accepted), "an event was not accepted: {result:?}");
    Ok(())
}
