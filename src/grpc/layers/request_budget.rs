//! Limits the memory of requests: of all connections together, and the share of each caller.

use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::layers::slots::{busy, share};
use meterd_engine::refusal::Refusal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of each request that do not count, so that small requests succeed while large ones use up the budget.
const FREE_BYTES: usize = 16 * 1024;
/// Memory of a decoded message for each of its bytes. Strings and numbers have their own allocations and fields.
const DECODED_BYTES_PER_BYTE: usize = 4;
/// One caller may use this fraction (1 / divisor) of the budget while no other caller uses any of it. It may then always use
/// enough for the largest request.
const SHARE_DIVISOR: usize = 2;
const LARGEST_REQUEST_BYTES: usize = DECODED_BYTES_PER_BYTE * MESSAGE_BYTES_MAX;

/// Counts the memory of requests: of all connections, or of one caller.
#[derive(Debug)]
pub(in crate::grpc) struct RequestBudget {
    bytes_max: usize,
    used: AtomicUsize,
    /// The budget of all connections, if this one belongs to a caller.
    total: Option<Arc<Self>>,
}

impl RequestBudget {
    /// Creates the budget of all connections.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, used: AtomicUsize::new(0), total: None }
    }

    /// Creates the budget of a caller.
    pub fn of_caller(total: &Arc<Self>) -> Self {
        Self { bytes_max: total.bytes_max, used: AtomicUsize::new(0), total: Some(total.clone()) }
    }

    /// Returns how much may be used now, which depends on what other callers use.
    fn limit(&self) -> usize {
        let used = |budget: &Self| budget.used.load(Ordering::Relaxed);
        let Some(total) = &self.total else { return self.bytes_max };
        match used(total).saturating_sub(used(self)) {
            0 => share(self.bytes_max, 0, SHARE_DIVISOR).max(LARGEST_REQUEST_BYTES),
            others => share(self.bytes_max, others, SHARE_DIVISOR),
        }
    }

    /// Replaces an amount in use by another. An amount that is not larger is always accepted.
    ///
    /// # Errors
    /// Returns the name of the limit that was reached.
    fn change(&self, before: usize, now: usize) -> Result<(), &'static str> {
        let limit = self.limit();
        let replace = |used: usize| {
            let used = used - before + now;
            (now <= before || used <= limit).then_some(used)
        };
        let name = if self.total.is_some() { "request bytes of the key" } else { "request bytes" };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, replace).map_err(|_| name)?;
        let Some(total) = &self.total else { return Ok(()) };
        total.change(before, now).inspect_err(|_| {
            // Only a larger amount can be rejected, so this does not underflow.
            self.used.fetch_sub(now - before, Ordering::Relaxed);
        })
    }
}

/// The part of the budget that one request uses until this is dropped.
pub(in crate::grpc) struct RequestBytes {
    budget: Arc<RequestBudget>,
    /// Bytes of the request, with those that do not count.
    bytes: AtomicUsize,
}

/// Returns how much of the budget a request of this size uses.
fn cost(bytes: usize) -> usize {
    DECODED_BYTES_PER_BYTE * bytes.saturating_sub(FREE_BYTES)
}

impl RequestBytes {
    /// Starts with no bytes.
    pub fn new(budget: &Arc<RequestBudget>) -> Self {
        Self { budget: budget.clone(), bytes: AtomicUsize::new(0) }
    }

    /// Changes the size of the request.
    ///
    /// # Errors
    /// SERVER_BUSY if the budget has no room.
    pub fn set(&self, bytes: usize) -> Result<(), Refusal> {
        let before = cost(self.bytes.load(Ordering::Relaxed));
        let now = cost(bytes);
        if now != before {
            self.budget.change(before, now).map_err(busy)?;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for RequestBytes {
    fn drop(&mut self) {
        drop(self.set(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_requests_succeed_when_the_budget_is_used_up_and_a_dropped_request_frees_its_bytes() {
        let budget = Arc::new(RequestBudget::new(DECODED_BYTES_PER_BYTE * 100_000));
        let (large, small) = (RequestBytes::new(&budget), RequestBytes::new(&budget));
        large.set(FREE_BYTES + 100_000).unwrap();
        small.set(FREE_BYTES).unwrap();
        assert_eq!(small.set(FREE_BYTES + 1).unwrap_err().metadata[0].1, "request bytes");
        drop(large);
        small.set(FREE_BYTES + 1).unwrap();
        drop(small);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn keys_that_use_as_much_as_they_can_leave_room_for_others() {
        let total = Arc::new(RequestBudget::new(256 << 20));
        let step = 64 * 1024;
        let requests = || {
            let budget = Arc::new(RequestBudget::of_caller(&total));
            let request = || Some(RequestBytes::new(&budget)).filter(|bytes| bytes.set(FREE_BYTES + step).is_ok());
            std::iter::from_fn(request).collect::<Vec<_>>()
        };
        let greedy: Vec<_> = (0..20).map(|_| requests()).collect();
        assert_eq!(greedy[0].len() * DECODED_BYTES_PER_BYTE * step, 128 << 20, "the first has half of it");
        assert!(greedy[4].len() >= 30 && greedy[8].len() >= 10, "{} and {}", greedy[4].len(), greedy[8].len());
        let newcomer = RequestBytes::new(&Arc::new(RequestBudget::of_caller(&total)));
        newcomer.set(FREE_BYTES + 128 * 1024).unwrap();
        assert_eq!(newcomer.set(FREE_BYTES + 64 * 1024 * 1024).unwrap_err().metadata[0].1, "request bytes of the key");
        drop((greedy, newcomer));
        assert_eq!(total.used.load(Ordering::Relaxed), 0);
    }
}
