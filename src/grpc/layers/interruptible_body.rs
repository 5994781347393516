//! A response body that can be ended from outside its handler.

use crate::grpc::wire::status::{REQUEST_ID, status};
use hyper::body::{Body, Frame, SizeHint};
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// A response body that ends when the inner body ends or when the future `interrupt` returns an error.
///
/// The error becomes the trailers of the call, so that the caller gets the reason. It is sent between two messages, never within
/// one. A caller that does not read gets no error; its connection has to be closed by other means.
pub struct InterruptibleBody<B, F> {
    inner: B,
    /// `None` after the body has ended.
    interrupt: Option<Pin<Box<F>>>,
    request_id: String,
    /// Whether a message that is ready at the interrupt is sent before the error.
    sends_final_message: bool,
    /// The error to send after the final message.
    error: Option<Refusal>,
}

impl<B, F> InterruptibleBody<B, F> {
    /// Must be called within the call, because the error gets the request id of the current call.
    pub fn new(inner: B, interrupt: F) -> Self {
        let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
        Self { inner, interrupt: Some(Box::pin(interrupt)), request_id, sends_final_message: false, error: None }
    }

    /// Sets whether a message that is ready at the interrupt is sent before the error.
    pub fn with_final_message(mut self, sends_final_message: bool) -> Self {
        self.sends_final_message = sends_final_message;
        self
    }
}

/// Returns the trailers of a call that ends with this status.
pub(in crate::grpc) fn status_trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // This fails only for metadata that is not a valid header, and the status has no such metadata.
    drop(status.add_header(&mut trailers));
    trailers
}

/// Returns the last frame of a response that ends with this status.
pub(in crate::grpc) fn trailers_frame(status: &Status) -> Frame<bytes::Bytes> {
    Frame::trailers(status_trailers(status))
}

impl<B, F> Body for InterruptibleBody<B, F>
where
    B: Body<Data = bytes::Bytes, Error = Status> + Unpin,
    F: Future<Output = Refusal>,
{
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = self.get_mut();
        let Some(interrupt) = &mut this.interrupt else { return Poll::Ready(None) };
        // Polled before the inner body, which may always be ready.
        let interrupted = match this.error.take() {
            Some(error) => Poll::Ready(error),
            None => interrupt.as_mut().poll(cx),
        };
        if let Poll::Ready(error) = interrupted {
            if std::mem::take(&mut this.sends_final_message)
                && let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut this.inner).poll_frame(cx)
            {
                if frame.is_data() {
                    this.error = Some(error);
                } else {
                    this.interrupt = None;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            this.interrupt = None;
            let status = REQUEST_ID.sync_scope(std::mem::take(&mut this.request_id), || status(error));
            return Poll::Ready(Some(Ok(trailers_frame(&status))));
        }
        Pin::new(&mut this.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.interrupt.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::collections::VecDeque;
    use std::future::{pending, poll_fn};
    use tokio::sync::oneshot;
    use tonic::Code;
    use tonic_types::StatusExt;

    /// Returns these frames and then stays pending.
    struct Frames(VecDeque<&'static str>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.pop_front().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data.into())))))
        }
    }

    async fn next<B: Body<Data = Bytes, Error = Status> + Unpin>(body: &mut B) -> Option<Frame<Bytes>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_pending_stream_ends_with_the_error_of_the_interrupt() {
        let (sender, error) = oneshot::channel::<Refusal>();
        let frames = Frames(["one", "two"].into());
        let mut body =
            REQUEST_ID.sync_scope("r1".into(), || InterruptibleBody::new(frames, async { error.await.unwrap() }));
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "one");
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "two");
        let waiting = tokio::spawn(async move { (next(&mut body).await, body) });
        tokio::task::yield_now().await;
        sender.send(Refusal::shutting_down()).unwrap();
        let (last, mut body) = waiting.await.unwrap();
        let status = Status::from_header_map(&last.unwrap().into_trailers().unwrap()).unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((&*info.reason, &*info.metadata["request_id"]), ("SHUTTING_DOWN", "r1"));
        assert!(body.is_end_stream() && next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_is_always_ready_is_interrupted_too() {
        let frames = Frames(["one", "two"].into());
        let mut body = InterruptibleBody::new(frames, async { Refusal::shutting_down() });
        assert!(next(&mut body).await.unwrap().is_trailers());
    }

    #[tokio::test]
    async fn a_stream_with_a_final_message_sends_one_message_and_ends() {
        let frames = Frames(["NOT_SERVING", "more"].into());
        let mut body = InterruptibleBody::new(frames, async { Refusal::shutting_down() }).with_final_message(true);
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "NOT_SERVING");
        assert!(next(&mut body).await.unwrap().is_trailers());
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_stream_without_an_interrupt_passes_its_frames() {
        let mut body = InterruptibleBody::new(Frames(["one"].into()), pending::<Refusal>());
        assert!(!body.is_end_stream());
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "one");
    }
}
