//! The one write path: bounded queues, and writers that commit what has gathered.

mod batch;
mod queue;
mod raw_event;
mod split;
mod unpriced;
mod validate;
mod writer;

pub use batch::preview;
pub use raw_event::{RawEvent, RawMeasures, Rounded, measures};
pub use validate::{Checked, Echo, EventChecks, Refused, Texts};

use crate::alerts::raise::AlertSettings;
use crate::catalog::CatalogCache;
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

/// How long a lone caller is told to wait when the queue has no room: a few commits.
const QUEUE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Bounds and policies of the write path.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// Writers of this process; a client has its own one, and others help where much waits.
    pub writers: usize,
    /// Most events of one transaction.
    pub batch_events_max: usize,
    /// Most events that wait for one writer.
    pub queue_events_max: usize,
    /// How long an event is tried before its caller is told that the outcome is not known.
    pub retry_for: Duration,
    /// Whether a client comes into being with its first event.
    pub create_clients: bool,
    /// Zone of a client that does.
    pub default_zone: Tz,
}

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct Submission {
    pub event: UsageEvent,
    /// Made before the first try, so that a retry finds its own event.
    pub id: EventId,
    pub payload_hash: PayloadHash,
    /// It came in a backfill: of any age, also where a key from before may be pruned; its own is kept until its month is
    /// closed, and its alerts notify nobody.
    pub backfill: bool,
    /// Set for what may only be a repeat: the answer where its key is new.
    pub refuse_if_new: Option<Refusal>,
}

/// What became of an event.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Recorded and durable.
    Accepted(Recorded),
    /// Recorded before.
    Duplicate(Recorded),
    /// Its key belongs to another payload.
    Conflict(Conflict),
    /// Wrong, not recorded.
    Rejected(Refusal),
    /// Not known to be recorded.
    Unavailable(Refusal),
}

/// An event that is in the database.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    pub id: EventId,
    /// Nothing, where the event itself is no longer kept.
    pub charge: Option<Charge>,
}

/// What would become of events.
#[derive(Debug)]
pub struct Preview {
    /// One for each event. An accepted one has an id that no event will have.
    pub outcomes: Vec<Outcome>,
    /// Those that were asked for.
    pub clients: Vec<PreviewedClient>,
}

/// A client that events name.
#[derive(Debug)]
pub struct PreviewedClient {
    pub client_id: Arc<str>,
    /// Its own, or the one that it would be created with.
    pub zone: Tz,
    pub exists: bool,
}

/// The key of an event belongs to another payload.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// The event that has the key.
    pub holder: EventId,
    /// Names of the fields that differ. Empty if that event is no longer kept.
    pub fields: Vec<&'static str>,
}

/// Where an outcome goes.
#[derive(Debug)]
pub enum Reply {
    /// To a lone caller.
    One(oneshot::Sender<Outcome>),
    /// To a batch or stream, with the number that the event has there.
    Numbered(usize, Outcomes),
}

/// Outcomes with the numbers of their events.
pub type Numbered = Vec<(usize, Outcome)>;

/// Takes outcomes to a batch or stream: those that are known at once, at once.
pub type Outcomes = Arc<mpsc::UnboundedSender<Numbered>>;

impl Reply {
    /// Nobody waits any more.
    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Numbered(_, sender) => sender.is_closed(),
        }
    }
}

/// Answers all; a caller that has gone is no error.
fn reply(answers: impl IntoIterator<Item = (Reply, Outcome)>) {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    // By the address of the way there, which is one's own as long as the reply has it: where it is in `numbered`.
    let mut places: HashMap<*const (), usize, RandomState> = HashMap::default();
    let mut numbered: Vec<(Outcomes, Numbered)> = vec![];
    for (reply, outcome) in answers {
        *counts.entry(outcome.label()).or_default() += 1;
        match reply {
            Reply::One(sender) => drop(sender.send(outcome)),
            Reply::Numbered(number, outcomes) => {
                let place = *places.entry(Arc::as_ptr(&outcomes).cast()).or_insert(numbered.len());
                if place == numbered.len() {
                    numbered.push((outcomes, vec![]));
                }
                numbered[place].1.push((number, outcome));
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

/// Counts an event that was rejected before it came here.
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

/// The way in.
#[derive(Clone, Debug)]
pub struct Ingest {
    queue: Arc<WriteQueue>,
}

impl Ingest {
    /// Starts the writers. They end when the ingest is closed and everything queued is settled.
    pub fn start(
        settings: &IngestConfig,
        database: &PgConnectOptions,
        catalog: &Arc<CatalogCache>,
        alert_settings: &AlertSettings,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let queue = Arc::new(WriteQueue::new(settings.writers.max(1), settings.queue_events_max));
        let writer = |number| {
            let (queue, settings, database) = (queue.clone(), settings.clone(), database.clone());
            tokio::spawn(writer::run(queue, number, settings, database, catalog.clone(), alert_settings.clone()))
        };
        let writers = (0..queue.writer_count()).map(writer).collect();
        (Self { queue }, writers)
    }

    /// Queues a lone event, and settles when it is durable. A full queue is an error at once: a lone caller is told, not
    /// kept. A caller that hangs up cancels nothing half-way: the event is recorded whole, or dropped before its turn.
    pub async fn record(&self, submission: Submission) -> Result<Outcome, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let item = Item { submission: Box::new(submission), reply: Reply::One(sender), queued_at: Instant::now() };
        self.queue.push(item)?;
        receiver.await.map_err(|_| Refusal::shutting_down())
    }

    /// Queues events in order, waiting for room as long as it takes. The outcome of each goes to `outcomes` with its number.
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

    /// Takes nothing more. What is queued is still settled.
    pub fn close(&self) {
        self.queue.close();
    }

    /// How many events wait.
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
