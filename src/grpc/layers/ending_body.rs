//! A stream that something outside of its handler may end.

use crate::grpc::wire::status::{REQUEST_ID, status};
use hyper::body::{Body, Frame, SizeHint};
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// The body of an answer that goes on until it ends, or until `end` says with which error it has to.
///
/// The error becomes the call's trailers, so the caller is told why. It comes between messages, never within one. A caller
/// that reads nothing is not told before it reads: its connection has to be closed by other means.
pub struct EndingBody<B, F> {
    inner: B,
    /// None, once the stream has ended.
    end: Option<Pin<Box<F>>>,
    request_id: String,
    /// What is ready when the stream has to end is sent first.
    has_last_word: bool,
    ended: Option<Refusal>,
}

impl<B, F> EndingBody<B, F> {
    /// Made within the call, whose request id the error gets.
    pub fn new(inner: B, end: F) -> Self {
        let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
        Self { inner, end: Some(Box::pin(end)), request_id, has_last_word: false, ended: None }
    }

    /// Lets a stream that has to end send the message that it has ready.
    pub fn with_last_word(mut self, has_last_word: bool) -> Self {
        self.has_last_word = has_last_word;
        self
    }
}

/// A status as the trailers of a call.
pub(in crate::grpc) fn status_headers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Only metadata that is no header could fail, and ours is made here.
    drop(status.add_header(&mut trailers));
    trailers
}

/// What ends a call whose answer has begun.
pub(in crate::grpc) fn trailers(status: &Status) -> Frame<bytes::Bytes> {
    Frame::trailers(status_headers(status))
}

impl<B, F> Body for EndingBody<B, F>
where
    B: Body<Data = bytes::Bytes, Error = Status> + Unpin,
    F: Future<Output = Refusal>,
{
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = self.get_mut();
        let Some(end) = &mut this.end else { return Poll::Ready(None) };
        // First, since a stream that always has something would never let it be asked.
        let ended = match this.ended.take() {
            Some(error) => Poll::Ready(error),
            None => end.as_mut().poll(cx),
        };
        if let Poll::Ready(error) = ended {
            if std::mem::take(&mut this.has_last_word)
                && let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut this.inner).poll_frame(cx)
            {
                if frame.is_data() {
                    this.ended = Some(error);
                } else {
                    this.end = None;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            this.end = None;
            let status = REQUEST_ID.sync_scope(std::mem::take(&mut this.request_id), || status(error));
            return Poll::Ready(Some(Ok(trailers(&status))));
        }
        Pin::new(&mut this.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.inner.is_end_stream()
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

    /// Frames, and then silence.
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
    async fn a_silent_stream_ends_with_the_error_that_comes_from_outside() {
        let (end, ended) = oneshot::channel::<Refusal>();
        let frames = Frames(["one", "two"].into());
        let mut body = REQUEST_ID.sync_scope("r1".into(), || EndingBody::new(frames, async { ended.await.unwrap() }));
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "one");
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "two");
        let waiting = tokio::spawn(async move { (next(&mut body).await, body) });
        tokio::task::yield_now().await;
        end.send(Refusal::shutting_down()).unwrap();
        let (last, mut body) = waiting.await.unwrap();
        let status = Status::from_header_map(&last.unwrap().into_trailers().unwrap()).unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((&*info.reason, &*info.metadata["request_id"]), ("SHUTTING_DOWN", "r1"));
        assert!(body.is_end_stream() && next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_always_has_something_is_ended_too() {
        let frames = Frames(["one", "two"].into());
        let mut body = EndingBody::new(frames, async { Refusal::shutting_down() });
        assert!(next(&mut body).await.unwrap().is_trailers());
    }

    #[tokio::test]
    async fn a_stream_with_a_last_word_says_one_thing_and_ends() {
        let frames = Frames(["NOT_SERVING", "more"].into());
        let mut body = EndingBody::new(frames, async { Refusal::shutting_down() }).with_last_word(true);
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "NOT_SERVING");
        assert!(next(&mut body).await.unwrap().is_trailers());
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_stream_that_nobody_ends_is_as_it_was() {
        let mut body = EndingBody::new(Frames(["one"].into()), pending::<Refusal>());
        assert!(!body.is_end_stream());
        assert_eq!(next(&mut body).await.unwrap().into_data().unwrap(), "one");
    }
}
