//! Calls whose message has not arrived. They take no slot. If there are too many, the one that has waited longest ends.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Mutex;
use std::task::Poll;
use tokio::sync::oneshot;

/// The pending calls of one caller, or of all callers without credentials.
#[derive(Debug)]
pub(in crate::grpc) struct PendingCalls {
    calls_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls by number. The lowest number has waited longest. A call ends when its sender is dropped.
    calls: BTreeMap<u64, oneshot::Sender<()>>,
    next_number: u64,
}

/// Removes its call when it is dropped.
struct PendingCall<'a> {
    pending: &'a PendingCalls,
    number: u64,
}

impl PendingCalls {
    /// Allows at least one pending call.
    pub fn new(calls_max: usize) -> Self {
        Self { calls_max: calls_max.max(1), state: Mutex::default() }
    }

    /// Waits for the message of a call. Returns `None` if the call has to end because newer calls are pending.
    pub async fn wait_for<F: Future>(&self, message: F) -> Option<F::Output> {
        let mut message = pin!(message);
        // The message of most calls has already arrived.
        if let Poll::Ready(message) = poll_fn(|cx| Poll::Ready(message.as_mut().poll(cx))).await {
            return Some(message);
        }
        let (_call, must_end) = self.add();
        tokio::select! {
            message = message => Some(message),
            _ = must_end => None,
        }
    }

    fn add(&self) -> (PendingCall<'_>, oneshot::Receiver<()>) {
        let (sender, must_end) = oneshot::channel();
        let mut state = self.state.lock().expect("not poisoned");
        let number = state.next_number;
        state.next_number += 1;
        state.calls.insert(number, sender);
        if state.calls.len() > self.calls_max {
            state.calls.pop_first();
        }
        (PendingCall { pending: self, number }, must_end)
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.pending.state.lock().expect("not poisoned").calls.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::Arc;

    #[tokio::test]
    async fn too_many_pending_calls_end_the_oldest_one_and_cancelled_calls_do_not_count() {
        let calls = Arc::new(PendingCalls::new(2));
        let wait = || {
            let calls = calls.clone();
            tokio::spawn(async move { calls.wait_for(pending::<()>()).await })
        };
        let (first, second) = (wait(), wait());
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let third = wait();
        tokio::task::yield_now().await;
        assert!(!second.is_finished() && !third.is_finished());
        let fourth = wait();
        assert_eq!(second.await.unwrap(), None);
        assert!(!third.is_finished() && !fourth.is_finished());
        assert_eq!(calls.state.lock().unwrap().calls.len(), 2);
        assert_eq!(calls.wait_for(std::future::ready(7)).await, Some(7));
    }
}
