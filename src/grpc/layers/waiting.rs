//! Calls whose message has not arrived. They take no slot; when there are too many, the one that has waited longest ends.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Mutex;
use std::task::Poll;
use tokio::sync::oneshot;

/// The waiting calls of one caller, or of all callers without credentials.
#[derive(Debug)]
pub(in crate::grpc) struct Waiting {
    most: usize,
    line: Mutex<Line>,
}

/// Calls by number: the lowest has waited longest.
#[derive(Debug, Default)]
struct Line {
    calls: BTreeMap<u64, oneshot::Sender<()>>,
    next: u64,
}

/// A call's position in the line, until it leaves.
struct InLine<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Waiting {
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), line: Mutex::default() }
    }

    /// Waits until the message has arrived. None, if the call has to leave for newer ones.
    pub async fn wait_for<F: Future>(&self, arrives: F) -> Option<F::Output> {
        let mut arrives = pin!(arrives);
        // Nearly always it is there already.
        if let Poll::Ready(arrived) = poll_fn(|cx| Poll::Ready(arrives.as_mut().poll(cx))).await {
            return Some(arrived);
        }
        let (_in_line, must_leave) = self.join();
        tokio::select! {
            arrived = arrives => Some(arrived),
            _ = must_leave => None,
        }
    }

    fn join(&self) -> (InLine<'_>, oneshot::Receiver<()>) {
        let (sender, must_leave) = oneshot::channel();
        let mut line = self.line.lock().expect("not poisoned");
        let number = line.next;
        line.next += 1;
        line.calls.insert(number, sender);
        if line.calls.len() > self.most {
            // The call is woken by the end of its channel.
            line.calls.pop_first();
        }
        (InLine { waiting: self, number }, must_leave)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.waiting.line.lock().expect("not poisoned").calls.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::Arc;

    #[tokio::test]
    async fn one_call_too_many_ends_the_longest_wait_and_those_that_left_do_not_count() {
        let waiting = Arc::new(Waiting::new(2));
        let wait = || {
            let waiting = waiting.clone();
            tokio::spawn(async move { waiting.wait_for(pending::<()>()).await })
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
        assert_eq!(waiting.line.lock().unwrap().calls.len(), 2);
        assert_eq!(waiting.wait_for(std::future::ready(7)).await, Some(7));
    }
}
