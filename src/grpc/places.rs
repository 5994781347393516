//! Places of calls and streams, and the bytes of their answers: per connection, per caller and in all.

use super::waiting::Waiting;
use crate::auth::Caller;
use crate::error::Error;
use crate::net::{Counted, Counts, Peer, Taken};
use crate::proto::{ActorKind, ErrorReason};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One caller, and one connection, may take at most this share (one part in so many) of the places of all.
const SHARE: usize = 4;
/// One connection may take at most this share of the answer bytes of all.
const CONNECTION_BYTES_SHARE: usize = 8;
/// Calls without credentials at once. Each connection may have one beyond them, so that nobody can use them up for others.
const PUBLIC_CALLS_MAX: usize = 1_000;
const PUBLIC_CALLS_OF_CONNECTION_MAX: usize = 64;
/// Streams without credentials at once, which are health watches; counted as the calls are.
const PUBLIC_STREAMS_MAX: usize = 1_000;
const PUBLIC_STREAMS_OF_CONNECTION_MAX: usize = 16;
/// Calls without credentials whose message has not arrived. One more ends the one that has waited longest.
const PUBLIC_WAITING_MAX: usize = 1_000;
/// The same of one caller with credentials: as many as its calls, and at least so many.
const WAITING_MIN: usize = 100;
/// When to ask again for one of the places.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Callers that are remembered before those without a call are forgotten.
const CALLERS_SWEPT_FROM: usize = 1_024;

/// The server has as much to do as it may, for this caller, this connection, or in all.
pub(super) fn busy(what: &'static str) -> Error {
    metrics::counter!("meterd_calls_shed_total", "limit" => what).increment(1);
    let message = format!("too many {what} at once; retry later, or on another replica");
    Error::exhausted(ErrorReason::ServerBusy, message, RETRY_DELAY).with("limit", what)
}

/// Most of each kind in all.
#[derive(Clone, Copy, Debug)]
pub struct PlaceLimits {
    pub calls_max: usize,
    pub streams_max: usize,
    pub answer_bytes_max: usize,
}

/// What one caller has in hand.
#[derive(Debug)]
struct Held {
    counts: Arc<Counts>,
    waiting: Arc<Waiting>,
}

impl Held {
    fn new(waiting_max: usize) -> Arc<Self> {
        Arc::new(Self { counts: Arc::default(), waiting: Arc::new(Waiting::new(waiting_max)) })
    }
}

/// The callers with a key or token that have called lately.
struct Callers {
    by_hash: HashMap<u64, Arc<Held>>,
    swept_from: usize,
}

/// All places.
pub(super) struct Places {
    limits: PlaceLimits,
    all: Arc<Counts>,
    public: Arc<Held>,
    /// Everybody, on a server that asks for no credentials.
    anybody: Arc<Held>,
    callers: Mutex<Callers>,
    hasher: RandomState,
}

/// A quarter, or one.
fn share(max: usize) -> usize {
    max.div_ceil(SHARE)
}

impl Places {
    pub fn new(limits: PlaceLimits) -> Self {
        let callers = Callers { by_hash: HashMap::new(), swept_from: CALLERS_SWEPT_FROM };
        Self {
            limits,
            all: Arc::default(),
            public: Held::new(PUBLIC_WAITING_MAX),
            anybody: Held::new(limits.calls_max.max(WAITING_MIN)),
            callers: Mutex::new(callers),
            hasher: RandomState::default(),
        }
    }

    /// Whose places a call takes. `is_public` says that it needs no credentials.
    pub fn of(self: &Arc<Self>, caller: &Caller, peer: Option<&Peer>, is_public: bool) -> Room {
        let connection = peer.map(|peer| peer.counts.clone()).unwrap_or_default();
        let (held, group) = match (caller.kind, is_public) {
            (ActorKind::Anybody, true) => (self.public.clone(), Group::Public),
            (ActorKind::Anybody, false) => (self.anybody.clone(), Group::Anybody),
            _ => {
                let hash = self.hasher.hash_one((caller.kind as i32, &caller.id));
                (self.caller(hash), Group::Caller)
            }
        };
        Room { places: self.clone(), connection, held, group }
    }

    fn caller(&self, hash: u64) -> Arc<Held> {
        let mut callers = self.callers.lock().expect("not poisoned");
        if let Some(held) = callers.by_hash.get(&hash) {
            return held.clone();
        }
        if callers.by_hash.len() >= callers.swept_from {
            callers.by_hash.retain(|_, held| Arc::strong_count(held) > 1);
            callers.swept_from = (2 * callers.by_hash.len()).max(CALLERS_SWEPT_FROM);
        }
        let held = Held::new(share(self.limits.calls_max).max(WAITING_MIN));
        callers.by_hash.insert(hash, held.clone());
        held
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Public,
    Anybody,
    Caller,
}

/// Where one call takes its places.
#[derive(Clone)]
pub(super) struct Room {
    places: Arc<Places>,
    connection: Arc<Counts>,
    held: Arc<Held>,
    group: Group,
}

/// What a call has taken, given back when it is dropped.
pub type Place = Vec<Taken>;

/// A bound: who is counted, the most that it may have, and its name in `ErrorInfo`.
type Bound<'a> = (&'a Arc<Counts>, usize, &'static str);

impl Room {
    /// Whether the caller has shown credentials, or the server asks for none.
    pub fn is_vouched_for(&self) -> bool {
        self.group != Group::Public
    }

    /// Calls of the caller whose message has not arrived.
    pub fn waiting(&self) -> &Arc<Waiting> {
        &self.held.waiting
    }

    /// A place for a call or a stream.
    pub fn place(&self, is_stream: bool) -> Result<Place, Error> {
        let limits = &self.places.limits;
        let all = &self.places.all;
        if self.group == Group::Public {
            let (counted, max, of_connection, names) = match is_stream {
                true => (
                    Counted::PublicStreams,
                    PUBLIC_STREAMS_MAX,
                    PUBLIC_STREAMS_OF_CONNECTION_MAX,
                    ["public streams of the connection", "public streams"],
                ),
                false => (
                    Counted::PublicCalls,
                    PUBLIC_CALLS_MAX,
                    PUBLIC_CALLS_OF_CONNECTION_MAX,
                    ["public calls of the connection", "public calls"],
                ),
            };
            // The first of each connection finds room whatever the others have.
            let max = if self.connection.get(counted) == 0 { usize::MAX } else { max };
            return take(counted, 1, &[(&self.connection, of_connection, names[0]), (all, max, names[1])]);
        }
        let (counted, max, names) = match is_stream {
            true => {
                (Counted::Streams, limits.streams_max, ["streams of the connection", "streams of the key", "streams"])
            }
            false => (Counted::Calls, limits.calls_max, ["calls of the connection", "calls of the key", "calls"]),
        };
        let of_connection = (&self.connection, share(max), names[0]);
        let of_caller = match self.group {
            Group::Caller => (&self.held.counts, share(max), names[1]),
            _ => (&self.held.counts, max, names[2]),
        };
        take(counted, 1, &[of_connection, of_caller, (all, max, names[2])])
    }

    /// One of the `most` that a caller with credentials may have.
    pub fn of_caller(&self, counted: Counted, most: usize) -> Option<Place> {
        let most = if self.group == Group::Caller { most } else { usize::MAX };
        Some(vec![self.held.counts.take(counted, 1, most)?])
    }

    fn byte_bounds(&self) -> [Bound<'_>; 3] {
        let max = self.places.limits.answer_bytes_max;
        let of_caller = match self.group {
            Group::Anybody => (&self.held.counts, max, "answer bytes"),
            // Those without credentials together have as much as one key.
            _ => (&self.held.counts, share(max), "answer bytes of the key"),
        };
        let of_connection = (&self.connection, max / CONNECTION_BYTES_SHARE, "answer bytes of the connection");
        [of_connection, of_caller, (&self.places.all, max, "answer bytes")]
    }

    /// Counts bytes of an answer, if there is room for them.
    pub fn answer_bytes(&self, bytes: usize) -> Result<Place, Error> {
        take(Counted::AnswerBytes, bytes, &self.byte_bounds())
    }

    /// Counts bytes of an answer that exist already.
    pub fn answer_bytes_anyway(&self, bytes: usize) -> Place {
        let bounds = self.byte_bounds().map(|(counts, _, name)| (counts, usize::MAX, name));
        take(Counted::AnswerBytes, bytes, &bounds).unwrap_or_default()
    }

    /// Whether another byte of an answer finds room.
    pub fn has_answer_bytes(&self) -> bool {
        self.byte_bounds().iter().all(|(counts, max, _)| counts.get(Counted::AnswerBytes) < *max)
    }
}

fn take(counted: Counted, amount: usize, bounds: &[Bound<'_>]) -> Result<Place, Error> {
    let taken = bounds.iter().map(|(counts, max, name)| counts.take(counted, amount, *max).ok_or(*name));
    taken.collect::<Result<Place, _>>().map_err(busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meterd_domain::access::Grants;

    fn places() -> Arc<Places> {
        Arc::new(Places::new(PlaceLimits { calls_max: 8, streams_max: 8, answer_bytes_max: 800 }))
    }

    fn key(id: &str) -> Caller {
        let (id, name) = (id.into(), String::new());
        Caller { kind: ActorKind::ApiKey, id, name, grants: Grants::everything(), good_until: None }
    }

    fn limit<T>(refused: Result<T, Error>) -> String {
        refused.err().expect("refused").metadata[0].1.clone()
    }

    #[test]
    fn a_key_has_a_quarter_of_the_places_whatever_its_connections() {
        let places = places();
        let hot = || places.of(&key("hot"), None, false);
        let _first = [hot().place(false).unwrap(), hot().place(false).unwrap()];
        assert_eq!(limit(hot().place(false)), "calls of the key");
        let others: Vec<_> = ["a", "b", "c"].map(|id| places.of(&key(id), None, false)).into();
        let _others: Vec<_> =
            others.iter().flat_map(|room| [room.place(false).unwrap(), room.place(false).unwrap()]).collect();
        assert_eq!(limit(places.of(&key("d"), None, false).place(false)), "calls");
    }

    #[test]
    fn a_connection_has_a_quarter_of_the_places_also_without_keys() {
        let room = places().of(&Caller::anybody(), None, false);
        let _two = [room.place(true).unwrap(), room.place(true).unwrap()];
        assert_eq!(limit(room.place(true)), "streams of the connection");
    }

    #[test]
    fn each_connection_has_a_public_place_whatever_the_others_have() {
        let places = places();
        let mut taken = vec![];
        for _ in 0..100 {
            let room = places.of(&Caller::anybody(), None, true);
            taken.extend((0..PUBLIC_STREAMS_OF_CONNECTION_MAX).map_while(|_| room.place(true).ok()));
        }
        assert!(taken.len() >= PUBLIC_STREAMS_MAX);
        let room = places.of(&Caller::anybody(), None, true);
        let _first = room.place(true).unwrap();
        assert_eq!(limit(room.place(true)), "public streams");
        assert!(room.place(false).is_ok(), "calls have places of their own");
    }

    #[test]
    fn answer_bytes_are_shared_as_places_are() {
        let places = places();
        let of = |id| places.of(&key(id), None, false);
        let first = of("hot").answer_bytes(100).unwrap();
        let _second = of("hot").answer_bytes(100).unwrap();
        assert_eq!(limit(of("hot").answer_bytes(1)), "answer bytes of the key");
        assert!(!of("hot").has_answer_bytes() && of("other").has_answer_bytes());
        assert_eq!(limit(of("other").answer_bytes(101)), "answer bytes of the connection");
        drop(first);
        assert!(of("hot").has_answer_bytes());
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let places = places();
        let room = places.of(&key("hot"), None, false);
        assert!(room.answer_bytes(1_000).is_err());
        assert_eq!(room.connection.get(Counted::AnswerBytes), 0);
    }
}
