//! The load: single events, batches and streams.

use super::events::Events;
use super::repeats::Repeats;
use super::window::{Tally, Window};
use crate::connection::Connection;
use crate::product::proto::{
    BatchTrackUsageRequest, EventOutcome, StreamUsageRequest, StreamUsageResponse, TrackUsageRequest, UsageEvent,
    UsageResult,
};
use crate::product::status_error;
use futures_util::stream;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Semaphore;

/// Events of a call that creates the clients.
const PREPARE_EVENTS: usize = 10_000;
/// Bytes of metadata in such a call, well below the limit of a message.
const PREPARE_PAYLOAD_BYTES: usize = 8 << 20;

/// The events of a worker.
#[derive(Clone)]
pub struct Load {
    pub events: Events,
    /// Percent of the events that are sent again.
    pub duplicates: u32,
}

/// All events are new.
impl From<Events> for Load {
    fn from(events: Events) -> Self {
        Self { events, duplicates: 0 }
    }
}

/// Records one event of each client and kind, so that all rows exist. Returns the number of events.
pub async fn prepare(channel: Connection, events: &Events) -> anyhow::Result<u64> {
    let size = PREPARE_EVENTS.min(PREPARE_PAYLOAD_BYTES / events.payload_bytes().max(1)).max(1);
    prepare_with(&channel, &events.all().collect::<Vec<_>>(), size).await
}

/// Records one event of each of these clients.
pub async fn prepare_clients(channel: &Connection, ids: Vec<String>) -> anyhow::Result<u64> {
    prepare_with(channel, &ids.into_iter().map(Events::of).collect::<Vec<_>>(), PREPARE_EVENTS).await
}

async fn prepare_with(channel: &Connection, events: &[UsageEvent], size: usize) -> anyhow::Result<u64> {
    for events in events.chunks(size) {
        batch(channel, events.to_vec()).await?;
    }
    Ok(events.len() as u64)
}

/// TrackUsage.
pub async fn lone_events(channel: Connection, load: impl Into<Load>, window: Arc<Window>) -> anyhow::Result<Tally> {
    let (load, mut client) = (load.into(), channel.usage());
    let (mut tally, mut repeats) = (Tally::default(), Repeats::new(load.duplicates));
    loop {
        let (event, again) = repeats.choose(|| load.events.next());
        let sent = repeats.copy(&event);
        let request = TrackUsageRequest { event: Some(event) };
        let Some(begin) = window.begin(1).await else { break };
        let response = client.track_usage(request).await.map_err(|status| status_error(&status))?;
        check_outcome(response.into_inner().result.as_ref(), again)?;
        tally.add(&window, begin, 1, again.into());
        repeats.remember(sent.filter(|_| !again));
    }
    Ok(tally)
}

/// BatchTrackUsage.
pub async fn batches(
    channel: Connection,
    load: impl Into<Load>,
    size: usize,
    window: Arc<Window>,
) -> anyhow::Result<Tally> {
    let load = load.into();
    let (mut tally, mut repeats) = (Tally::default(), Repeats::new(load.duplicates));
    loop {
        let chosen = (0..size).map(|_| repeats.choose(|| load.events.next()));
        let (events, again): (Vec<UsageEvent>, Vec<bool>) = chosen.unzip();
        let first = events.iter().zip(&again).find(|(_, again)| !**again).and_then(|(event, _)| repeats.copy(event));
        let Some(begin) = window.begin(size as u32).await else { break };
        batch_again(&channel, events, &again).await?;
        let duplicates = again.iter().filter(|again| **again).count() as u64;
        tally.add(&window, begin, size as u64, duplicates);
        repeats.remember(first);
    }
    Ok(tally)
}

/// One call of BatchTrackUsage, all of whose events are new.
pub async fn batch(channel: &Connection, events: Vec<UsageEvent>) -> anyhow::Result<()> {
    let again = vec![false; events.len()];
    batch_again(channel, events, &again).await
}

async fn batch_again(channel: &Connection, events: Vec<UsageEvent>, again: &[bool]) -> anyhow::Result<()> {
    let request = BatchTrackUsageRequest { events, backfill: false, ..Default::default() };
    let call = channel.usage().batch_track_usage(request).await;
    let results = call.map_err(|status| status_error(&status))?.into_inner().results;
    anyhow::ensure!(results.len() == again.len(), "a batch of {} has {} results", again.len(), results.len());
    results.iter().zip(again).try_for_each(|(result, &again)| check_outcome(Some(result), again))
}

/// StreamUsage with at most `unsettled_max` unsettled events.
pub async fn stream(channel: Connection, load: Load, unsettled_max: u32, window: Arc<Window>) -> anyhow::Result<Tally> {
    let room = Arc::new(Semaphore::new(unsettled_max as usize));
    let unsettled = Arc::new(Mutex::new(Unsettled::new(load.duplicates)));
    let sender = (load.events, window.clone(), room.clone(), unsettled.clone());
    let messages = stream::unfold(sender, |(events, window, room, unsettled)| async {
        room.acquire().await.ok()?.forget();
        let begin = window.begin(1).await?;
        let event = unsettled.lock().expect("nobody panics with it").next(&events, begin);
        Some((StreamUsageRequest { event: Some(event) }, (events, window, room, unsettled)))
    });
    let call = channel.usage().stream_usage(messages).await;
    let mut acks = call.map_err(|status| status_error(&status))?.into_inner();
    let (mut tally, mut settled) = (Tally::default(), 0);
    while let Some(ack) = acks.message().await.map_err(|status| status_error(&status))? {
        let count = usize::try_from(ack.settled_count - settled)?;
        unsettled.lock().expect("nobody panics with it").settle(&window, &mut tally, settled, &ack)?;
        settled = ack.settled_count;
        room.add_permits(count);
    }
    let left = unsettled.lock().expect("nobody panics with it").sent.len();
    anyhow::ensure!(left == 0, "a stream ended with {left} events unsettled");
    Ok(tally)
}

/// The unsettled events of a stream, in order.
struct Unsettled {
    sent: VecDeque<Sent>,
    repeats: Repeats<UsageEvent>,
}

struct Sent {
    begin: Instant,
    again: bool,
    /// The event, if it may be sent again.
    event: Option<UsageEvent>,
}

impl Unsettled {
    fn new(duplicates: u32) -> Self {
        Self { sent: VecDeque::new(), repeats: Repeats::new(duplicates) }
    }

    fn next(&mut self, events: &Events, begin: Instant) -> UsageEvent {
        let (event, again) = self.repeats.choose(|| events.next());
        let copy = self.repeats.copy(&event).filter(|_| !again);
        self.sent.push_back(Sent { begin, again, event: copy });
        event
    }

    fn settle(
        &mut self,
        window: &Window,
        tally: &mut Tally,
        settled: i64,
        ack: &StreamUsageResponse,
    ) -> anyhow::Result<()> {
        let mut results = ack.results.iter().peekable();
        for number in settled + 1..=ack.settled_count {
            let sent = self.sent.pop_front().ok_or_else(|| anyhow::anyhow!("settled before it was sent"))?;
            // An accepted event has no result.
            match results.next_if(|result| result.message_number == number) {
                Some(result) => check_outcome(result.result.as_ref(), sent.again)?,
                None => anyhow::ensure!(!sent.again, "an event that was sent again was accepted as new"),
            }
            tally.add(window, sent.begin, 1, sent.again.into());
            self.repeats.remember(sent.event);
        }
        anyhow::ensure!(results.next().is_none(), "a result of a message that is not settled");
        Ok(())
    }
}

/// Checks the outcome of a new event.
pub fn check(result: Option<&UsageResult>) -> anyhow::Result<()> {
    check_outcome(result, false)
}

/// Checks that exactly the events that were sent again are duplicates.
fn check_outcome(result: Option<&UsageResult>, again: bool) -> anyhow::Result<()> {
    let expected = if again { EventOutcome::Duplicate } else { EventOutcome::Accepted };
    let outcome = result.map(UsageResult::outcome);
    anyhow::ensure!(outcome == Some(expected), "an event's outcome was not {}: {result:?}", expected.as_str_name());
    Ok(())
}
