//! The body of an HTTP/2 request: what has come in and has not been read yet.
//!
//! h2 keeps each DATA frame as it came, and closes a connection whose unread frames are many and small: it counts 256 bytes
//! for a frame of ten. A sender that writes one small message per frame reaches that bound long before flow control stops it.
//! So the connection's task moves the frames out of h2 as they come in, and small ones are put together here. The room of the
//! sender, which is the window of HTTP/2, comes back only when the handler reads: unread bytes never exceed the windows.

use bytes::{Bytes, BytesMut};
use h2::{FlowControl, Reason, RecvStream};
use hyper::body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use tonic::codegen::StdError;
use tonic::codegen::http::HeaderMap;

/// Shorter frames are copied together. A longer one keeps the buffer that it was read into, which has 8 KiB and more.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// How a body ended: with trailers, or by an error.
type End = Result<Option<HeaderMap>, StdError>;

/// Bytes between the connection's task, which fills it, and the handler, which reads.
#[derive(Default)]
struct Inbox(Mutex<State>);

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Short frames after the last chunk.
    short: BytesMut,
    end: Option<End>,
    reader_is_gone: bool,
    reader: Option<Waker>,
    filler: Option<Waker>,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }
}

impl State {
    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED_BYTES_MAX {
            return self.short.extend_from_slice(&bytes);
        }
        if !self.short.is_empty() {
            self.chunks.push_back(self.short.split().freeze());
        }
        self.chunks.push_back(bytes);
    }

    fn pop(&mut self) -> Option<Bytes> {
        let short = |short: &mut BytesMut| (!short.is_empty()).then(|| short.split().freeze());
        self.chunks.pop_front().or_else(|| short(&mut self.short))
    }

    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The body, as the handler reads it.
pub(super) struct RequestBody {
    inbox: Arc<Inbox>,
    flow: FlowControl,
}

/// Takes the body of a request that has just come in. With it comes what fills it, unless it is complete already; the
/// connection's task has to poll that after each reading.
pub(super) fn split(mut stream: RecvStream, cx: &mut Context<'_>) -> (RequestBody, Option<Filler>) {
    let (inbox, flow) = (Arc::<Inbox>::default(), stream.flow_control().clone());
    let mut filler = Filler { stream, inbox: inbox.clone(), data_ended: false };
    let filler = Pin::new(&mut filler).poll(cx).is_pending().then_some(filler);
    (RequestBody { inbox, flow }, filler)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let mut state = self.inbox.state();
        if let Some(bytes) = state.pop() {
            drop(state);
            // An error: the stream has ended meanwhile, and nobody waits for its room.
            drop(self.flow.release_capacity(bytes.len()));
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match state.end.replace(Ok(None)) {
            Some(Ok(trailers)) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                state.end = None;
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.inbox.state();
        state.chunks.is_empty() && state.short.is_empty() && matches!(state.end, Some(Ok(None)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let mut state = self.inbox.state();
        state.reader_is_gone = true;
        let unread: usize = std::iter::from_fn(|| state.pop()).map(|bytes| bytes.len()).sum();
        if let Some(filler) = state.filler.take() {
            filler.wake();
        }
        drop(state);
        // The rest of the connection has the room, also while the answer of this call goes on.
        drop(self.flow.release_capacity(unread));
    }
}

/// Moves a body's frames from h2 into its inbox. Ready once the body has ended or nobody reads it any more.
pub(super) struct Filler {
    stream: RecvStream,
    inbox: Arc<Inbox>,
    data_ended: bool,
}

impl Filler {
    fn poll_data(&mut self, cx: &mut Context<'_>, state: &mut State) -> Poll<End> {
        while !self.data_ended {
            match std::task::ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => state.push(bytes),
                // The caller has given up, or needs no more of an answer: a body that stops, and no error.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(None));
                }
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => self.data_ended = true,
            }
        }
        self.stream.poll_trailers(cx).map_err(StdError::from)
    }
}

impl Future for Filler {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let inbox = this.inbox.clone();
        let mut state = inbox.state();
        if state.reader_is_gone {
            return Poll::Ready(());
        }
        let filled = this.poll_data(cx, &mut state);
        state.wake_reader();
        match filled {
            Poll::Ready(end) => {
                state.end(end);
                Poll::Ready(())
            }
            Poll::Pending => {
                state.filler = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let mut state = self.inbox.state();
        state.end(Err("the connection ended before the request was complete".into()));
        state.wake_reader();
    }
}
