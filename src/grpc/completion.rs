//! Work that continues if its caller disconnects.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;

/// Work that runs in the task of its call. If the call is dropped before the work has ended, the work continues in its own task.
/// So a caller that disconnects does not cancel database work, and other calls do not need another task and its wake-ups.
pub struct Uncancelled<F>(Option<Pin<Box<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send;

impl<F> Uncancelled<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    /// The work must not be polled after it has ended.
    pub fn new(work: F) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl<F> Future for Uncancelled<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Work that panics is not put back, and so does not continue.
        let mut work = self.0.take().expect("is not polled after its end");
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            self.0 = Some(work);
        }
        polled
    }
}

impl<F> Drop for Uncancelled<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::panic::AssertUnwindSafe;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn dropped_work_continues() {
        let (begin, begun) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let mut work = Uncancelled::new(async move {
            begun.await.unwrap();
            done.send(()).unwrap();
        });
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        begin.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn work_that_was_not_dropped_returns_its_result() {
        assert_eq!(Uncancelled::new(async { 1 }).await, 1);
    }

    #[tokio::test]
    async fn work_that_panics_does_not_continue() {
        let (alive, is_alive) = oneshot::channel::<()>();
        let work = Uncancelled::new(async move {
            tokio::task::yield_now().await;
            let _alive = alive;
            panic!("in the work");
        });
        assert!(AssertUnwindSafe(work).catch_unwind().await.is_err());
        assert!(is_alive.await.is_err());
    }
}
