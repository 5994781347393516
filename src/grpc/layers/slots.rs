//! Slots of calls and streams: the limits of the server, and what each caller uses.

use crate::grpc::layers::pending_calls::PendingCalls;
use crate::grpc::layers::quota::{CallerGroup, Quota};
use crate::grpc::layers::request_budget::RequestBudget;
use crate::net::Peer;
use foldhash::fast::RandomState;
use meterd_domain::access::ActorKind;
use meterd_engine::auth::Caller;
use meterd_engine::counters::{Counters, Permit};
use meterd_engine::refusal::{Reason, Refusal};
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One caller, or one connection, may use this fraction (1 / divisor) of the slots while no other uses any.
pub(super) const SHARE_DIVISOR: usize = 4;
/// Maximum number of calls without credentials whose message has not arrived. One more ends the call that has waited longest.
const PUBLIC_PENDING_MAX: usize = 1_000;
/// A caller with credentials may have as many pending calls as call slots, and at least this many.
const PENDING_MIN: usize = 100;
/// Delay after which a rejected call may be retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Callers without a call are removed if the map has at least this many callers.
const CALLERS_CLEANUP_MIN: usize = 1_024;

/// What a call takes from the counters. Dropping it returns the amounts.
pub type Slot = Vec<Permit>;

/// Makes the error of a call that reached a limit of its caller, its connection or the server.
pub(in crate::grpc) fn busy(limit: &'static str) -> Refusal {
    metrics::counter!("meterd_calls_shed_total", "limit" => limit).increment(1);
    let message = format!("too many {limit} at once; retry later or on another replica");
    Refusal::exhausted(Reason::ServerBusy, message, RETRY_DELAY).with("limit", limit)
}

/// Returns how much of `max` a caller may use while others use `others` of it. The share is `rest` / `divisor`, times the
/// fraction `rest` / `max`, where `rest` is what the others leave.
///
/// With a divisor of 4, the first caller may use 250 of 1,000. After 4, 8 and 20 callers that use as much as they may, the next
/// one may use 51, 23 and 6. The result is at least 1, because the limit of the total rejects calls if there is no rest.
pub(in crate::grpc) fn share(max: usize, others: usize, divisor: usize) -> usize {
    let rest = max.saturating_sub(others) as u128;
    (rest.pow(2).div_ceil((divisor * max.max(1)) as u128) as usize).max(1)
}

/// Limits of the server.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    pub calls_max: usize,
    pub streams_max: usize,
    pub response_bytes_max: usize,
}

/// What one caller uses.
#[derive(Debug)]
pub(super) struct CallerState {
    pub counters: Arc<Counters>,
    pub pending_calls: Arc<PendingCalls>,
    pub request_budget: Arc<RequestBudget>,
}

impl CallerState {
    fn new(pending_max: usize, request_budget: Arc<RequestBudget>) -> Arc<Self> {
        let pending_calls = Arc::new(PendingCalls::new(pending_max));
        Arc::new(Self { counters: Arc::default(), pending_calls, request_budget })
    }
}

/// Callers with a key or token that made a call recently.
struct Callers {
    by_hash: HashMap<u64, Arc<CallerState>>,
    cleanup_from: usize,
}

/// The slots of the server.
pub(in crate::grpc) struct Slots {
    pub(super) limits: SlotLimits,
    pub(super) total: Arc<Counters>,
    request_budget: Arc<RequestBudget>,
    /// All callers without credentials, if the server requires credentials.
    public: Arc<CallerState>,
    /// All callers, if the server requires no credentials.
    anybody: Arc<CallerState>,
    callers: Mutex<Callers>,
    hasher: RandomState,
}

impl Slots {
    pub fn new(limits: SlotLimits, request_bytes_max: usize) -> Self {
        let request_budget = Arc::new(RequestBudget::new(request_bytes_max));
        let callers = Callers { by_hash: HashMap::new(), cleanup_from: CALLERS_CLEANUP_MIN };
        Self {
            limits,
            total: Arc::default(),
            public: CallerState::new(PUBLIC_PENDING_MAX, Arc::new(RequestBudget::of_caller(&request_budget))),
            anybody: CallerState::new(limits.calls_max.max(PENDING_MIN), request_budget.clone()),
            request_budget,
            callers: Mutex::new(callers),
            hasher: RandomState::default(),
        }
    }

    /// Returns the quota of a call. `is_public` says that its method needs no credentials.
    pub fn quota(self: &Arc<Self>, caller: &Caller, peer: Option<&Peer>, is_public: bool) -> Quota {
        let connection = peer.map(|peer| peer.counts.clone()).unwrap_or_default();
        let (state, group) = match (caller.kind, is_public) {
            (ActorKind::Anybody, true) => (self.public.clone(), CallerGroup::Public),
            (ActorKind::Anybody, false) => (self.anybody.clone(), CallerGroup::Anybody),
            _ => {
                let hash = self.hasher.hash_one((caller.kind as i32, &caller.id));
                (self.caller(hash), CallerGroup::Authenticated)
            }
        };
        Quota::new(self.clone(), connection, state, group)
    }

    fn caller(&self, hash: u64) -> Arc<CallerState> {
        let mut callers = self.callers.lock().expect("not poisoned");
        if let Some(state) = callers.by_hash.get(&hash) {
            return state.clone();
        }
        if callers.by_hash.len() >= callers.cleanup_from {
            callers.by_hash.retain(|_, state| Arc::strong_count(state) > 1);
            callers.cleanup_from = (2 * callers.by_hash.len()).max(CALLERS_CLEANUP_MIN);
        }
        let pending_max = share(self.limits.calls_max, 0, SHARE_DIVISOR).max(PENDING_MIN);
        let state = CallerState::new(pending_max, Arc::new(RequestBudget::of_caller(&self.request_budget)));
        callers.by_hash.insert(hash, state.clone());
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meterd_domain::access::Grants;

    fn slots() -> Arc<Slots> {
        Arc::new(Slots::new(SlotLimits { calls_max: 8, streams_max: 8, response_bytes_max: 800 }, 64 << 20))
    }

    fn key(id: &str) -> Caller {
        let (id, name) = (id.into(), String::new());
        Caller { kind: ActorKind::ApiKey, id, name, grants: Grants::all(), valid_until: None }
    }

    /// Takes as much as a key can get over any number of connections.
    fn take_all<T>(slots: &Arc<Slots>, id: &str, take: impl Fn(&Quota) -> Result<T, Refusal>) -> Vec<T> {
        let mut taken = vec![];
        loop {
            let quota = slots.quota(&key(id), None, false);
            let before = taken.len();
            taken.extend(std::iter::from_fn(|| take(&quota).ok()));
            if taken.len() == before {
                return taken;
            }
        }
    }

    #[test]
    fn keys_that_use_as_much_as_they_can_leave_room_for_others() {
        let limits = SlotLimits { calls_max: 10_000, streams_max: 30_000, response_bytes_max: 256 << 20 };
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
                    let bytes = take_all(&slots, &id, |quota| quota.response_bytes(64 << 10));
                    (calls, streams, bytes)
                })
                .collect();
            let newcomer = |id| {
                (
                    take_all(&slots, id, |quota| quota.slot(false)).len(),
                    take_all(&slots, id, |quota| quota.slot(true)).len(),
                    take_all(&slots, id, |quota| quota.response_bytes(1 << 10)).len(),
                )
            };
            let left = newcomer("new");
            println!(
                "{greedy} greedy keys leave {} calls, {} streams and {} KiB to a newcomer",
                left.0, left.1, left.2
            );
            assert!(left.0 >= calls && left.1 >= streams && left.2 >= kib, "{left:?} after {greedy}");
            let next = newcomer("newer");
            assert!(next.0 > 0 && next.1 > 0, "{next:?} after {greedy} and one");
            drop(taken);
            assert!(slots.quota(&key("greedy 0"), None, false).slot(false).is_ok());
        }
    }

    #[test]
    fn connections_to_a_server_without_keys_leave_room_for_others() {
        let slots = slots();
        let connections: Vec<_> = (0..4).map(|_| slots.quota(&Caller::anybody(), None, false)).collect();
        let taken: Vec<_> =
            connections.iter().map(|quota| std::iter::from_fn(|| quota.slot(false).ok()).collect::<Vec<_>>()).collect();
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1, 1]);
        assert!(slots.quota(&Caller::anybody(), None, false).slot(false).is_ok());
    }
}
