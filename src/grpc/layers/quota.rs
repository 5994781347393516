//! What one call may take: slots and bytes of its response, counted per connection, per caller and in total.

use crate::grpc::layers::pending_calls::PendingCalls;
use crate::grpc::layers::request_budget::RequestBudget;
use crate::grpc::layers::slots::{CallerState, SHARE_DIVISOR, Slot, Slots, busy, share};
use meterd_engine::counters::{Counters, Exceeded, Limits, Resource, take_one};
use meterd_engine::refusal::Refusal;
use std::sync::Arc;

/// One connection may use this fraction (1 / divisor) of the response bytes.
const CONNECTION_BYTES_DIVISOR: usize = 8;
/// Limits of calls without credentials. The limit of a connection is twice the number of calls in flight of a client that checks
/// health as fast as it can, because a slot becomes free a little after its response.
const PUBLIC_CALLS: Limits = Limits { connection: 128, total: 1_000 };
/// Limits of streams without credentials, such as health watches.
const PUBLIC_STREAMS: Limits = Limits { connection: 16, total: 1_000 };

/// Which limits apply to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallerGroup {
    /// Has no credentials, and the method needs none.
    Public,
    /// The server requires no credentials.
    Anybody,
    /// Has a key or token.
    Authenticated,
}

/// The limits that apply to one call.
#[derive(Clone)]
pub(in crate::grpc) struct Quota {
    slots: Arc<Slots>,
    connection: Arc<Counters>,
    caller: Arc<CallerState>,
    group: CallerGroup,
}

/// A counter, its limit, and the name of the limit in `ErrorInfo`.
type NamedLimit<'a> = (&'a Arc<Counters>, usize, &'static str);

impl Quota {
    pub(super) fn new(
        slots: Arc<Slots>,
        connection: Arc<Counters>,
        caller: Arc<CallerState>,
        group: CallerGroup,
    ) -> Self {
        Self { slots, connection, caller, group }
    }

    /// Returns whether the caller has valid credentials or the server requires none.
    pub fn is_authenticated(&self) -> bool {
        self.group != CallerGroup::Public
    }

    /// Returns the calls of the caller whose message has not arrived.
    pub fn pending_calls(&self) -> &Arc<PendingCalls> {
        &self.caller.pending_calls
    }

    /// Returns the budget for the requests of the caller.
    pub fn request_budget(&self) -> &Arc<RequestBudget> {
        &self.caller.request_budget
    }

    /// Takes a slot for a call or a stream.
    ///
    /// # Errors
    /// SERVER_BUSY if a limit is reached.
    pub fn slot(&self, is_stream: bool) -> Result<Slot, Refusal> {
        if self.group == CallerGroup::Public {
            return self.public_slot(is_stream);
        }
        let limits = &self.slots.limits;
        let (resource, max, names) = match is_stream {
            true => {
                (Resource::Streams, limits.streams_max, ["streams of the connection", "streams of the key", "streams"])
            }
            false => (Resource::Calls, limits.calls_max, ["calls of the connection", "calls of the key", "calls"]),
        };
        let of_connection = (&self.connection, self.share_of_connection(resource, max, SHARE_DIVISOR), names[0]);
        let caller = &self.caller.counters;
        let of_caller = match self.group {
            CallerGroup::Authenticated => (caller, self.share(caller, resource, max, SHARE_DIVISOR), names[1]),
            _ => (caller, max, names[2]),
        };
        take(resource, 1, &[of_connection, of_caller, (&self.slots.total, max, names[2])])
    }

    fn public_slot(&self, is_stream: bool) -> Result<Slot, Refusal> {
        let (resource, limits, [connection, total]) = match is_stream {
            true => (Resource::PublicStreams, PUBLIC_STREAMS, ["public streams of the connection", "public streams"]),
            false => (Resource::PublicCalls, PUBLIC_CALLS, ["public calls of the connection", "public calls"]),
        };
        let permits = take_one(resource, &self.connection, &self.slots.total, limits);
        permits.map(Vec::from).map_err(|exceeded| match exceeded {
            Exceeded::Connection => busy(connection),
            Exceeded::Total => busy(total),
        })
    }

    /// Returns how much the owner of these counters may use, which depends on what others use.
    fn share(&self, own: &Counters, resource: Resource, max: usize, divisor: usize) -> usize {
        share(max, self.slots.total.get(resource).saturating_sub(own.get(resource)), divisor)
    }

    /// Returns how much the connection may use. The connections of one key share what the key may use.
    fn share_of_connection(&self, resource: Resource, max: usize, divisor: usize) -> usize {
        match self.group {
            CallerGroup::Anybody => self.share(&self.connection, resource, max, divisor),
            _ => max.div_ceil(divisor),
        }
    }

    /// Takes one unit of a resource of which `max` units exist. A caller with credentials may use `max` / `divisor` of them while no
    /// other caller uses any. Returns `None` if the caller already has its share.
    ///
    /// This function does not enforce `max`: the code that uses it has its own limit of the total.
    pub fn take_for_caller(&self, resource: Resource, max: usize, divisor: usize) -> Option<Slot> {
        let own = &self.caller.counters;
        let limit = match self.group {
            CallerGroup::Authenticated => self.share(own, resource, max, divisor),
            _ => usize::MAX,
        };
        Some(vec![own.take(resource, 1, limit)?, self.slots.total.take(resource, 1, usize::MAX)?])
    }

    fn response_limits(&self) -> [NamedLimit<'_>; 3] {
        let max = self.slots.limits.response_bytes_max;
        let caller = &self.caller.counters;
        let of_caller = match self.group {
            CallerGroup::Anybody => (caller, max, "answer bytes"),
            // All callers without credentials together may use as much as one key.
            _ => {
                let share = self.share(caller, Resource::ResponseBytes, max, SHARE_DIVISOR);
                (caller, share, "answer bytes of the key")
            }
        };
        let of_connection = self.share_of_connection(Resource::ResponseBytes, max, CONNECTION_BYTES_DIVISOR);
        let of_connection = (&self.connection, of_connection, "answer bytes of the connection");
        [of_connection, of_caller, (&self.slots.total, max, "answer bytes")]
    }

    /// Counts bytes of a response.
    ///
    /// # Errors
    /// SERVER_BUSY if a limit is reached.
    pub fn response_bytes(&self, bytes: usize) -> Result<Slot, Refusal> {
        take(Resource::ResponseBytes, bytes, &self.response_limits())
    }

    /// Counts bytes of a response even if a limit is exceeded.
    pub fn response_bytes_unlimited(&self, bytes: usize) -> Slot {
        let unlimited = self.response_limits().map(|(counters, _, name)| (counters, usize::MAX, name));
        take(Resource::ResponseBytes, bytes, &unlimited).unwrap_or_default()
    }

    /// Returns whether no limit of response bytes is reached.
    pub fn has_response_bytes(&self) -> bool {
        self.response_limits().iter().all(|(counters, max, _)| counters.get(Resource::ResponseBytes) < *max)
    }
}

fn take(resource: Resource, amount: usize, limits: &[NamedLimit<'_>]) -> Result<Slot, Refusal> {
    let permits = limits.iter().map(|(counters, max, name)| counters.take(resource, amount, *max).ok_or(*name));
    permits.collect::<Result<Slot, _>>().map_err(busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::layers::slots::SlotLimits;
    use meterd_domain::access::ActorKind;
    use meterd_domain::access::Grants;
    use meterd_engine::auth::Caller;

    fn slots() -> Arc<Slots> {
        Arc::new(Slots::new(SlotLimits { calls_max: 8, streams_max: 8, response_bytes_max: 800 }, 64 << 20))
    }

    fn key(id: &str) -> Caller {
        let (id, name) = (id.into(), String::new());
        Caller { kind: ActorKind::ApiKey, id, name, grants: Grants::all(), valid_until: None }
    }

    fn limit<T>(result: Result<T, Refusal>) -> String {
        result.err().expect("rejected").metadata[0].1.clone()
    }

    #[test]
    fn a_key_may_use_a_quarter_of_the_slots_over_all_of_its_connections() {
        let slots = slots();
        let hot = || slots.quota(&key("hot"), None, false);
        let _first = [hot().slot(false).unwrap(), hot().slot(false).unwrap()];
        assert_eq!(limit(hot().slot(false)), "calls of the key");
    }

    #[test]
    fn exports_are_shared_like_slots() {
        let slots = slots();
        let of = |id: &str| slots.quota(&key(id), None, false).take_for_caller(Resource::Exports, 8, 2);
        let hot: Vec<_> = std::iter::from_fn(|| of("hot")).collect();
        let second: Vec<_> = std::iter::from_fn(|| of("second")).collect();
        assert_eq!((hot.len(), second.len()), (4, 1));
        assert!(of("third").is_some());
    }

    #[test]
    fn a_connection_may_use_a_quarter_of_the_slots_of_a_server_without_keys() {
        let quota = slots().quota(&Caller::anybody(), None, false);
        let _two = [quota.slot(true).unwrap(), quota.slot(true).unwrap()];
        assert_eq!(limit(quota.slot(true)), "streams of the connection");
    }

    #[test]
    fn each_connection_can_take_one_public_slot_whatever_the_others_use() {
        let slots = slots();
        let mut taken = vec![];
        for _ in 0..100 {
            let quota = slots.quota(&Caller::anybody(), None, true);
            taken.extend((0..PUBLIC_STREAMS.connection).map_while(|_| quota.slot(true).ok()));
        }
        assert!(taken.len() >= PUBLIC_STREAMS.total);
        let quota = slots.quota(&Caller::anybody(), None, true);
        let _first = quota.slot(true).unwrap();
        assert_eq!(limit(quota.slot(true)), "public streams");
        assert!(quota.slot(false).is_ok(), "calls have slots of their own");
    }

    #[test]
    fn response_bytes_are_shared_like_slots() {
        let slots = slots();
        let of = |id| slots.quota(&key(id), None, false);
        let first = of("hot").response_bytes(100).unwrap();
        let _second = of("hot").response_bytes(100).unwrap();
        assert_eq!(limit(of("hot").response_bytes(1)), "answer bytes of the key");
        assert!(!of("hot").has_response_bytes() && of("other").has_response_bytes());
        assert_eq!(limit(of("other").response_bytes(101)), "answer bytes of the connection");
        drop(first);
        assert!(of("hot").has_response_bytes());
    }

    #[test]
    fn a_rejected_request_takes_nothing() {
        let slots = slots();
        let quota = slots.quota(&key("hot"), None, false);
        assert!(quota.response_bytes(1_000).is_err());
        assert_eq!(quota.connection.get(Resource::ResponseBytes), 0);
    }
}
