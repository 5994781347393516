//! Counters of resources in use. Each connection and each caller has its own [`Counters`]; another one counts the total.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A resource whose use is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Calls, from the arrival of their message until their response is sent.
    Calls,
    /// Streams, from their start to their end.
    Streams,
    /// Calls without credentials.
    PublicCalls,
    /// Streams without credentials.
    PublicStreams,
    /// Bytes of responses that callers have not read.
    ResponseBytes,
    /// Exports. An export also counts as a stream.
    Exports,
    /// Subscriptions to alerts. A subscription also counts as a stream.
    Subscriptions,
    /// Calls that wait for the lookup of their credentials.
    CredentialLookups,
}

const RESOURCES: usize = 8;

/// Counts how much of each resource is in use.
#[derive(Debug, Default)]
pub struct Counters([AtomicUsize; RESOURCES]);

/// An amount of a resource that is in use until the permit is dropped.
#[derive(Debug)]
pub struct Permit {
    counters: Arc<Counters>,
    resource: Resource,
    amount: usize,
}

impl Counters {
    /// Returns how much is in use.
    pub fn get(&self, resource: Resource) -> usize {
        self.0[resource as usize].load(Ordering::Relaxed)
    }

    /// Takes an amount. Returns `None` if more than `max` would be in use.
    pub fn take(self: &Arc<Self>, resource: Resource, amount: usize, max: usize) -> Option<Permit> {
        let add = |used: usize| used.checked_add(amount).filter(|used| *used <= max);
        self.0[resource as usize].fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Permit { counters: self.clone(), resource, amount })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counters.0[self.resource as usize].fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// How much of a resource one connection may use, and all connections together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connection: usize,
    pub total: usize,
}

/// The limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    Connection,
    Total,
}

/// Takes one unit of a resource for a connection. A connection that uses none of the resource always gets one, so that other
/// connections cannot use up its share.
///
/// # Errors
/// Returns the limit that was reached. Then nothing is taken.
pub fn take_one(
    resource: Resource,
    connection: &Arc<Counters>,
    total: &Arc<Counters>,
    limits: Limits,
) -> Result<[Permit; 2], Exceeded> {
    let total_max = if connection.get(resource) == 0 { usize::MAX } else { limits.total };
    let of_connection = connection.take(resource, 1, limits.connection).ok_or(Exceeded::Connection)?;
    let of_total = total.take(resource, 1, total_max).ok_or(Exceeded::Total)?;
    Ok([of_connection, of_total])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_permit_returns_its_amount_and_resources_are_counted_separately() {
        let counters = Arc::new(Counters::default());
        let two = counters.take(Resource::Calls, 2, 2).unwrap();
        assert!(counters.take(Resource::Calls, 1, 2).is_none());
        let stream = counters.take(Resource::Streams, 1, 1).unwrap();
        drop(two);
        assert_eq!((counters.get(Resource::Calls), counters.get(Resource::Streams)), (0, 1));
        drop(stream);
        assert!(counters.take(Resource::Streams, 1, 1).is_some());
    }

    #[test]
    fn an_amount_that_overflows_is_rejected() {
        let counters = Arc::new(Counters::default());
        let _one = counters.take(Resource::ResponseBytes, 1, usize::MAX).unwrap();
        assert!(counters.take(Resource::ResponseBytes, usize::MAX, usize::MAX).is_none());
    }

    #[test]
    fn a_connection_without_a_unit_gets_one_even_if_the_total_is_used_up() {
        let [total, first, second] = [0; 3].map(|_| Arc::new(Counters::default()));
        let take = |connection| take_one(Resource::Calls, connection, &total, Limits { connection: 2, total: 2 });
        let _two = [take(&first).unwrap(), take(&first).unwrap()];
        assert_eq!(take(&first).unwrap_err(), Exceeded::Connection);
        let one = take(&second).unwrap();
        assert_eq!(take(&second).unwrap_err(), Exceeded::Total);
        assert_eq!((second.get(Resource::Calls), total.get(Resource::Calls)), (1, 3), "a rejection takes nothing");
        drop(one);
        assert_eq!((second.get(Resource::Calls), total.get(Resource::Calls)), (0, 2));
    }
}
