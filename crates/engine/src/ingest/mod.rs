//! The write path, the only one: bounded queues of events, and writers that commit them in batches.

mod batch;
mod key_filters;
mod queue;
mod raw_event;
mod split;
mod unpriced;
mod validate;
mod writer;

pub use batch::preview;
pub use key_filters::{FILTER_FORMAT, KeyFilters, build_filter};
pub use raw_event::{RawEvent, RawMeasures, Rounded, measures};
pub use validate::{Checked, Echo, EventChecks, Refused, SharedTexts};

use crate::alerts::raise::AlertSettings;
use crate::catalog::CatalogCache;
use crate::ledger::PendingUsage;
use crate::refusal::{Reason, Refusal};
use chrono_tz::Tz;
use foldhash::fast::RandomState;
use meterd_domain::event::{Charge, EventId, PayloadHash, UsageEvent};
use queue::{Item, WriteQueue};
use sqlx::postgres::PgConnectOptions;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// The retry delay for a caller of a single event if the queue is full. A few commits take about this time.
const QUEUE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The limits and settings of the write path.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// Number of writers of this process. Each client is assigned to one writer. Others help if many events wait.
    pub writers: usize,
    /// Maximum number of events of one transaction.
    pub batch_events_max: usize,
    /// Maximum number of events that wait for one writer.
    pub queue_events_max: usize,
    /// How long an event is retried. After this time, its outcome is [`Outcome::Unavailable`].
    pub retry_for: Duration,
    /// Whether the first event of a client creates the client.
    pub create_clients: bool,
    /// Time zone of a client that is created by its first event.
    pub default_zone: Tz,
    /// Maximum number of bytes of all key filters.
    pub key_filter_bytes_max: usize,
}

/// The state in memory that all writers share.
#[derive(Clone)]
pub struct SharedState {
    pub catalog: Arc<CatalogCache>,
    pub key_filters: Arc<KeyFilters>,
    pub pending_usage: Arc<PendingUsage>,
    pub alert_settings: AlertSettings,
}

/// An event to record.
#[derive(Clone, Debug)]
pub struct Submission {
    pub event: UsageEvent,
    /// Created before the first attempt, so that a retry recognises its own event.
    pub id: EventId,
    pub payload_hash: PayloadHash,
    /// Whether the event is part of a backfill. It may have any age, even if older keys were pruned. Its own key is kept until its
    /// month is closed. Its alerts do not send notifications.
    pub backfill: bool,
    /// Set if the event is only accepted as a repeat: the refusal if its key is new.
    pub refuse_if_new: Option<Refusal>,
}

/// The outcome of an event.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Recorded and durable.
    Accepted(Recorded),
    /// Recorded before.
    Duplicate(Recorded),
    /// Not recorded, because its key belongs to an event with another payload.
    Conflict(Conflict),
    /// Not recorded, because it is not valid.
    Rejected(Refusal),
    /// It is not known whether it was recorded.
    Unavailable(Refusal),
}

/// An event that is in the database.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    pub id: EventId,
    /// `None` if the event itself is no longer kept.
    pub charge: Option<Charge>,
}

/// The outcomes that events would have.
#[derive(Debug)]
pub struct Preview {
    /// One for each event. The id of an accepted event is not valid, because the event is not recorded.
    pub outcomes: Vec<Outcome>,
    /// The clients whose ids were passed.
    pub clients: Vec<PreviewedClient>,
}

/// A client of previewed events.
#[derive(Debug)]
pub struct PreviewedClient {
    pub client_id: Arc<str>,
    /// Its time zone, or the time zone that it would be created with.
    pub zone: Tz,
    pub exists: bool,
}

/// The idempotency key of an event belongs to an event with another payload.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// The event that has the key.
    pub holder: EventId,
    /// Names of the fields that differ. Empty if that event is no longer kept.
    pub fields: Vec<&'static str>,
}

/// Sends an outcome to the caller.
#[derive(Debug)]
pub enum Reply {
    /// To the caller of a single event.
    One(oneshot::Sender<Outcome>),
    /// To a batch or stream, with the number of the event in it.
    Numbered(usize, Outcomes),
}

/// Outcomes with the numbers of their events.
pub type Numbered = Vec<(usize, Outcome)>;

/// Sends outcomes to a batch or stream. Outcomes of the same transaction are sent together.
pub type Outcomes = Arc<mpsc::UnboundedSender<Numbered>>;

impl Reply {
    /// Returns whether the caller no longer waits for the outcome.
    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Numbered(_, sender) => sender.is_closed(),
        }
    }
}

/// Sends outcomes to their callers. Callers that no longer wait are ignored.
fn reply(answers: impl IntoIterator<Item = (Reply, Outcome)>) {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    // The index in `numbered` of each batch or stream, by the address of its sender. The address is unique while a reply has the
    // sender.
    let mut indexes: HashMap<*const (), usize, RandomState> = HashMap::default();
    let mut numbered: Vec<(Outcomes, Numbered)> = vec![];
    for (reply, outcome) in answers {
        *counts.entry(outcome.label()).or_default() += 1;
        match reply {
            Reply::One(sender) => drop(sender.send(outcome)),
            Reply::Numbered(number, outcomes) => {
                let index = *indexes.entry(Arc::as_ptr(&outcomes).cast()).or_insert(numbered.len());
                if index == numbered.len() {
                    numbered.push((outcomes, vec![]));
                }
                numbered[index].1.push((number, outcome));
            }
        }
    }
    for (outcomes, settled) in numbered {
        drop(outcomes.send(settled));
    }
    for (label, events) in counts {
        count(label, events);
    }
}

fn count(outcome: &'static str, events: u64) {
    metrics::counter!("meterd_events_total", "outcome" => outcome).increment(events);
}

/// Counts an event that was rejected before it was queued.
pub fn count_rejected() {
    count("rejected", 1);
}

impl Outcome {
    fn label(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Duplicate(_) => "duplicate",
            Self::Conflict(_) => "conflict",
            Self::Rejected(_) => "rejected",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// The entry of the write path.
#[derive(Clone, Debug)]
pub struct Ingest {
    queue: Arc<WriteQueue>,
}

impl Ingest {
    /// Starts the writers. They end when the ingest is closed and every queued event has an outcome.
    pub fn start(
        settings: &IngestConfig,
        database: &PgConnectOptions,
        shared: &SharedState,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let queue = Arc::new(WriteQueue::new(settings.writers.max(1), settings.queue_events_max));
        let writer = |number| {
            tokio::spawn(writer::run(queue.clone(), number, settings.clone(), database.clone(), shared.clone()))
        };
        let writers = (0..queue.writer_count()).map(writer).collect();
        (Self { queue }, writers)
    }

    /// Queues a single event, and returns its outcome when it is durable. If the future is dropped, the event is either recorded
    /// completely, or removed from the queue before a writer takes it.
    ///
    /// # Errors
    /// `QUEUE_FULL` at once if the client has no room in the queue, `SHUTTING_DOWN` if the ingest is closed.
    pub async fn record(&self, submission: Submission) -> Result<Outcome, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let item = Item { submission: Box::new(submission), reply: Reply::One(sender), queued_at: Instant::now() };
        self.queue.push(item)?;
        receiver.await.map_err(|_| Refusal::shutting_down())
    }

    /// Queues events in order, and waits for room without a time limit. The outcome of each event is sent to `outcomes` with its
    /// number.
    ///
    /// # Errors
    /// `SHUTTING_DOWN` if the ingest is closed.
    pub async fn record_numbered(
        &self,
        submissions: Vec<(usize, Box<Submission>)>,
        outcomes: &Outcomes,
    ) -> Result<(), Refusal> {
        let queued_at = Instant::now();
        let item = |(number, submission)| {
            let reply = Reply::Numbered(number, outcomes.clone());
            Item { submission, reply, queued_at }
        };
        self.queue.push_when_room(submissions.into_iter().map(item)).await
    }

    /// Accepts no more events. Queued events still get their outcomes.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Returns the number of events that wait.
    pub fn depth(&self) -> usize {
        self.queue.len()
    }
}

fn queue_full() -> Refusal {
    Refusal::exhausted(
        Reason::QueueFull,
        "the write queue has no room for this client; send again with the same idempotency key",
        QUEUE_RETRY_DELAY,
    )
}
