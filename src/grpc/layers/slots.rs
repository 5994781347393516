//! Counts and limits calls, streams and the bytes of their answers: per connection, per caller and in total.

use crate::grpc::layers::request_body::Budget;
use crate::grpc::layers::waiting::Waiting;
use crate::net::Peer;
use foldhash::fast::RandomState;
use meterd_domain::access::ActorKind;
use meterd_engine::auth::Caller;
use meterd_engine::counts::{Counted, Counts, Taken};
use meterd_engine::refusal::{Reason, Refusal};
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One caller, and one connection, may take at most this share (one part in so many) of the slots and answer bytes of all,
/// while no other has any.
const SHARE: usize = 4;
/// The same for the answer bytes of one connection.
const CONNECTION_BYTES_SHARE: usize = 8;
/// Calls without credentials at once. Each connection may have one beyond them, so that nobody can use them up for others.
const PUBLIC_CALLS_MAX: usize = 1_000;
/// Twice what a client has in flight that checks health as fast as it can: a slot comes back a little after its answer.
const PUBLIC_CALLS_OF_CONNECTION_MAX: usize = 128;
/// Streams without credentials at once, which are health watches; counted as the calls are.
const PUBLIC_STREAMS_MAX: usize = 1_000;
const PUBLIC_STREAMS_OF_CONNECTION_MAX: usize = 16;
/// Calls without credentials whose message has not arrived. One more ends the one that has waited longest.
const PUBLIC_WAITING_MAX: usize = 1_000;
/// The same of one caller with credentials: as many as its calls, and at least so many.
const WAITING_MIN: usize = 100;
/// When to ask again for one of the slots.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Callers that are remembered before those without a call are forgotten.
const CALLERS_SWEPT_FROM: usize = 1_024;

/// The error of a call at a limit: of its caller, its connection or the server.
pub(in crate::grpc) fn busy(what: &'static str) -> Refusal {
    metrics::counter!("meterd_calls_shed_total", "limit" => what).increment(1);
    let message = format!("too many {what} at once; retry later, or on another replica");
    Refusal::exhausted(Reason::ServerBusy, message, RETRY_DELAY).with("limit", what)
}

/// Most of each kind in all.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    pub calls_max: usize,
    pub streams_max: usize,
    pub answer_bytes_max: usize,
}

/// What one caller has in hand.
#[derive(Debug)]
struct Held {
    counts: Arc<Counts>,
    waiting: Arc<Waiting>,
    request_bytes: Arc<Budget>,
}

impl Held {
    fn new(waiting_max: usize, request_bytes: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { counts: Arc::default(), waiting: Arc::new(Waiting::new(waiting_max)), request_bytes })
    }
}

/// The callers with a key or token that have called lately.
struct Callers {
    by_hash: HashMap<u64, Arc<Held>>,
    swept_from: usize,
}

/// All slots.
pub(in crate::grpc) struct Slots {
    limits: SlotLimits,
    all: Arc<Counts>,
    request_bytes: Arc<Budget>,
    public: Arc<Held>,
    /// Everybody, on a server that asks for no credentials.
    anybody: Arc<Held>,
    callers: Mutex<Callers>,
    hasher: RandomState,
}

/// The most that somebody may take of `max` while others have `others` of it: one part in `parts` of the rest, and of that
/// as much as there is of the rest. With a quarter, the first may take 250 of 1,000, and a newcomer after 4, 8 and 20 who
/// have all that they may take 51, 23 and 6. At least one: where there is no rest, it is the bound of all that is reached.
pub(in crate::grpc) fn share(max: usize, others: usize, parts: usize) -> usize {
    let rest = max.saturating_sub(others) as u128;
    (rest.pow(2).div_ceil((parts * max.max(1)) as u128) as usize).max(1)
}

impl Slots {
    pub fn new(limits: SlotLimits, request_bytes_max: usize) -> Self {
        let request_bytes = Arc::new(Budget::new(request_bytes_max));
        let callers = Callers { by_hash: HashMap::new(), swept_from: CALLERS_SWEPT_FROM };
        Self {
            limits,
            all: Arc::default(),
            public: Held::new(PUBLIC_WAITING_MAX, Arc::new(Budget::share_of(&request_bytes))),
            anybody: Held::new(limits.calls_max.max(WAITING_MIN), request_bytes.clone()),
            request_bytes,
            callers: Mutex::new(callers),
            hasher: RandomState::default(),
        }
    }

    /// Whose slots a call takes. `is_public` says that it needs no credentials.
    pub fn of(self: &Arc<Self>, caller: &Caller, peer: Option<&Peer>, is_public: bool) -> Quota {
        let connection = peer.map(|peer| peer.counts.clone()).unwrap_or_default();
        let (held, group) = match (caller.kind, is_public) {
            (ActorKind::Anybody, true) => (self.public.clone(), Group::Public),
            (ActorKind::Anybody, false) => (self.anybody.clone(), Group::Anybody),
            _ => {
                let hash = self.hasher.hash_one((caller.kind as i32, &caller.id));
                (self.caller(hash), Group::Caller)
            }
        };
        Quota { slots: self.clone(), connection, held, group }
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
        let waiting_max = share(self.limits.calls_max, 0, SHARE).max(WAITING_MIN);
        let held = Held::new(waiting_max, Arc::new(Budget::share_of(&self.request_bytes)));
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

/// Where one call takes its slots.
#[derive(Clone)]
pub(in crate::grpc) struct Quota {
    slots: Arc<Slots>,
    connection: Arc<Counts>,
    held: Arc<Held>,
    group: Group,
}

/// What a call has taken, given back when it is dropped.
pub type Slot = Vec<Taken>;

/// A bound: who is counted, the most that it may have, and its name in `ErrorInfo`.
type Bound<'a> = (&'a Arc<Counts>, usize, &'static str);

impl Quota {
    /// Whether the caller has shown credentials, or the server asks for none.
    pub fn is_vouched_for(&self) -> bool {
        self.group != Group::Public
    }

    /// Calls of the caller whose message has not arrived.
    pub fn waiting(&self) -> &Arc<Waiting> {
        &self.held.waiting
    }

    /// What the caller's requests take.
    pub fn request_bytes(&self) -> &Arc<Budget> {
        &self.held.request_bytes
    }

    /// A slot for a call or a stream.
    pub fn slot(&self, is_stream: bool) -> Result<Slot, Refusal> {
        let limits = &self.slots.limits;
        let all = &self.slots.all;
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
        let of_connection = (&self.connection, self.share_of_connection(counted, max, SHARE), names[0]);
        let of_caller = match self.group {
            Group::Caller => (&self.held.counts, self.share(&self.held.counts, counted, max, SHARE), names[1]),
            _ => (&self.held.counts, max, names[2]),
        };
        take(counted, 1, &[of_connection, of_caller, (all, max, names[2])])
    }

    /// The most that one of those who are counted may have, by what the others have.
    fn share(&self, own: &Counts, counted: Counted, max: usize, parts: usize) -> usize {
        share(max, self.slots.all.get(counted).saturating_sub(own.get(counted)), parts)
    }

    /// The same for the connection. Those of a key share what the key may have.
    fn share_of_connection(&self, counted: Counted, max: usize, parts: usize) -> usize {
        match self.group {
            Group::Anybody => self.share(&self.connection, counted, max, parts),
            _ => max.div_ceil(parts),
        }
    }

    /// One of `max` in all, of which a caller with credentials may have one part in `parts` while no other has any.
    pub fn of_caller(&self, counted: Counted, max: usize, parts: usize) -> Option<Slot> {
        let own = &self.held.counts;
        let most = if self.group == Group::Caller { self.share(own, counted, max, parts) } else { usize::MAX };
        Some(vec![own.take(counted, 1, most)?, self.slots.all.take(counted, 1, usize::MAX)?])
    }

    fn byte_bounds(&self) -> [Bound<'_>; 3] {
        let max = self.slots.limits.answer_bytes_max;
        let of_caller = match self.group {
            Group::Anybody => (&self.held.counts, max, "answer bytes"),
            // Those without credentials together have as much as one key.
            _ => {
                let most = self.share(&self.held.counts, Counted::AnswerBytes, max, SHARE);
                (&self.held.counts, most, "answer bytes of the key")
            }
        };
        let of_connection = self.share_of_connection(Counted::AnswerBytes, max, CONNECTION_BYTES_SHARE);
        let of_connection = (&self.connection, of_connection, "answer bytes of the connection");
        [of_connection, of_caller, (&self.slots.all, max, "answer bytes")]
    }

    /// Counts bytes of an answer, if there is room for them.
    pub fn answer_bytes(&self, bytes: usize) -> Result<Slot, Refusal> {
        take(Counted::AnswerBytes, bytes, &self.byte_bounds())
    }

    /// Counts bytes of an answer that exist already.
    pub fn answer_bytes_anyway(&self, bytes: usize) -> Slot {
        let bounds = self.byte_bounds().map(|(counts, _, name)| (counts, usize::MAX, name));
        take(Counted::AnswerBytes, bytes, &bounds).unwrap_or_default()
    }

    /// Whether another byte of an answer finds room.
    pub fn has_answer_bytes(&self) -> bool {
        self.byte_bounds().iter().all(|(counts, max, _)| counts.get(Counted::AnswerBytes) < *max)
    }
}

fn take(counted: Counted, amount: usize, bounds: &[Bound<'_>]) -> Result<Slot, Refusal> {
    let taken = bounds.iter().map(|(counts, max, name)| counts.take(counted, amount, *max).ok_or(*name));
    taken.collect::<Result<Slot, _>>().map_err(busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meterd_domain::access::Grants;

    fn slots() -> Arc<Slots> {
        Arc::new(Slots::new(SlotLimits { calls_max: 8, streams_max: 8, answer_bytes_max: 800 }, 64 << 20))
    }

    fn key(id: &str) -> Caller {
        let (id, name) = (id.into(), String::new());
        Caller { kind: ActorKind::ApiKey, id, name, grants: Grants::everything(), good_until: None }
    }

    fn limit<T>(refused: Result<T, Refusal>) -> String {
        refused.err().expect("refused").metadata[0].1.clone()
    }

    #[test]
    fn a_key_has_a_quarter_of_the_places_whatever_its_connections() {
        let slots = slots();
        let hot = || slots.of(&key("hot"), None, false);
        let _first = [hot().slot(false).unwrap(), hot().slot(false).unwrap()];
        assert_eq!(limit(hot().slot(false)), "calls of the key");
    }

    /// All that a key can get on connections of its own.
    fn take_all<T>(slots: &Arc<Slots>, id: &str, take: impl Fn(&Quota) -> Result<T, Refusal>) -> Vec<T> {
        let mut taken = vec![];
        loop {
            let quota = slots.of(&key(id), None, false);
            let before = taken.len();
            taken.extend(std::iter::from_fn(|| take(&quota).ok()));
            if taken.len() == before {
                return taken;
            }
        }
    }

    #[test]
    fn keys_that_take_all_they_can_leave_room_for_others() {
        let limits = SlotLimits { calls_max: 10_000, streams_max: 30_000, answer_bytes_max: 256 << 20 };
        for (greedy, calls, streams, kib) in [
            (1, 1_400, 4_200, 36_000),
            (4, 500, 1_500, 13_000),
            (8, 220, 670, 5_500),
            (20, 55, 165, 1_400),
            (100, 3, 9, 0),
        ] {
            let slots = Arc::new(Slots::new(limits, 64 << 20));
            let taken: Vec<_> = (0..greedy)
                .map(|number| {
                    let id = format!("greedy {number}");
                    let calls = take_all(&slots, &id, |quota| quota.slot(false));
                    let streams = take_all(&slots, &id, |quota| quota.slot(true));
                    let bytes = take_all(&slots, &id, |quota| quota.answer_bytes(64 << 10));
                    (calls, streams, bytes)
                })
                .collect();
            let newcomer = |id| {
                (
                    take_all(&slots, id, |quota| quota.slot(false)).len(),
                    take_all(&slots, id, |quota| quota.slot(true)).len(),
                    take_all(&slots, id, |quota| quota.answer_bytes(1 << 10)).len(),
                )
            };
            let left = newcomer("new");
            println!("{greedy} greedy keys leave a newcomer {} calls, {} streams, {} KiB", left.0, left.1, left.2);
            assert!(left.0 >= calls && left.1 >= streams && left.2 >= kib, "{left:?} after {greedy}");
            let next = newcomer("newer");
            assert!(next.0 > 0 && next.1 > 0, "{next:?} after {greedy} and one");
            drop(taken);
            assert!(slots.of(&key("greedy 0"), None, false).slot(false).is_ok());
        }
    }

    #[test]
    fn connections_of_a_server_without_keys_leave_room_for_others() {
        let slots = slots();
        let connections: Vec<_> = (0..4).map(|_| slots.of(&Caller::anybody(), None, false)).collect();
        let taken: Vec<_> =
            connections.iter().map(|quota| std::iter::from_fn(|| quota.slot(false).ok()).collect::<Vec<_>>()).collect();
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1, 1]);
        assert!(slots.of(&Caller::anybody(), None, false).slot(false).is_ok());
    }

    #[test]
    fn scarce_things_are_shared_as_places_are() {
        let slots = slots();
        let of = |id: &str| slots.of(&key(id), None, false).of_caller(Counted::Exports, 8, 2);
        let hot: Vec<_> = std::iter::from_fn(|| of("hot")).collect();
        let second: Vec<_> = std::iter::from_fn(|| of("second")).collect();
        assert_eq!((hot.len(), second.len()), (4, 1));
        assert!(of("third").is_some());
    }

    #[test]
    fn a_connection_has_a_quarter_of_the_places_also_without_keys() {
        let quota = slots().of(&Caller::anybody(), None, false);
        let _two = [quota.slot(true).unwrap(), quota.slot(true).unwrap()];
        assert_eq!(limit(quota.slot(true)), "streams of the connection");
    }

    #[test]
    fn each_connection_has_a_public_place_whatever_the_others_have() {
        let slots = slots();
        let mut taken = vec![];
        for _ in 0..100 {
            let quota = slots.of(&Caller::anybody(), None, true);
            taken.extend((0..PUBLIC_STREAMS_OF_CONNECTION_MAX).map_while(|_| quota.slot(true).ok()));
        }
        assert!(taken.len() >= PUBLIC_STREAMS_MAX);
        let quota = slots.of(&Caller::anybody(), None, true);
        let _first = quota.slot(true).unwrap();
        assert_eq!(limit(quota.slot(true)), "public streams");
        assert!(quota.slot(false).is_ok(), "calls have slots of their own");
    }

    #[test]
    fn answer_bytes_are_shared_as_places_are() {
        let slots = slots();
        let of = |id| slots.of(&key(id), None, false);
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
        let slots = slots();
        let quota = slots.of(&key("hot"), None, false);
        assert!(quota.answer_bytes(1_000).is_err());
        assert_eq!(quota.connection.get(Counted::AnswerBytes), 0);
    }
}
