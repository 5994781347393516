//! The body of an HTTP/2 request.
//!
//! h2 keeps each DATA frame as it arrived, and closes a connection with too many small unread frames: a frame of ten bytes counts
//! as 256 bytes. A sender with one small message per frame reaches this limit long before flow control stops it. Therefore the
//! task of the connection moves frames out of h2 as they arrive, and this module joins small ones. The sender gets its
//! flow-control window back only when the handler reads, so unread bytes never exceed the window.

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

/// Frames below this size are copied into one buffer. A larger frame keeps the buffer it was read into, which has at least 8 KiB.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// How a body ended: with or without trailers, or with an error.
type BodyEnd = Result<Option<HeaderMap>, StdError>;

/// Bytes that the task of the connection has received and the handler has not read.
#[derive(Default)]
struct Buffer(Mutex<State>);

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Small frames after the last chunk.
    small_frames: BytesMut,
    end: Option<BodyEnd>,
    is_reader_dropped: bool,
    reader: Option<Waker>,
    receiver: Option<Waker>,
}

impl Buffer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }
}

impl State {
    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED_BYTES_MAX {
            return self.small_frames.extend_from_slice(&bytes);
        }
        if !self.small_frames.is_empty() {
            self.chunks.push_back(self.small_frames.split().freeze());
        }
        self.chunks.push_back(bytes);
    }

    fn pop(&mut self) -> Option<Bytes> {
        let small_frames = &mut self.small_frames;
        self.chunks.pop_front().or_else(|| (!small_frames.is_empty()).then(|| small_frames.split().freeze()))
    }

    fn set_end(&mut self, end: BodyEnd) {
        self.end.get_or_insert(end);
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The body that the handler reads.
pub(super) struct RequestBody {
    buffer: Arc<Buffer>,
    flow: FlowControl,
}

/// Receives the body of a new request. If the body is not complete yet, also returns its receiver, which the task of the
/// connection has to poll after each read.
pub(super) fn receive(mut stream: RecvStream, cx: &mut Context<'_>) -> (RequestBody, Option<FrameReceiver>) {
    let (buffer, flow) = (Arc::<Buffer>::default(), stream.flow_control().clone());
    let mut receiver = FrameReceiver { stream, buffer: buffer.clone(), is_data_complete: false };
    let receiver = Pin::new(&mut receiver).poll(cx).is_pending().then_some(receiver);
    (RequestBody { buffer, flow }, receiver)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let mut state = self.buffer.state();
        if let Some(bytes) = state.pop() {
            drop(state);
            // This fails only if the stream has ended. Then its sender needs no window.
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
        let state = self.buffer.state();
        state.chunks.is_empty() && state.small_frames.is_empty() && matches!(state.end, Some(Ok(None)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let mut state = self.buffer.state();
        state.is_reader_dropped = true;
        let unread: usize = std::iter::from_fn(|| state.pop()).map(|bytes| bytes.len()).sum();
        if let Some(receiver) = state.receiver.take() {
            receiver.wake();
        }
        drop(state);
        // Other streams get the connection window back even if the response of this call continues.
        drop(self.flow.release_capacity(unread));
    }
}

/// Moves the frames of a body from h2 into its buffer. Ready once the body has ended or its reader was dropped.
pub(super) struct FrameReceiver {
    stream: RecvStream,
    buffer: Arc<Buffer>,
    is_data_complete: bool,
}

impl FrameReceiver {
    fn poll_data(&mut self, cx: &mut Context<'_>, state: &mut State) -> Poll<BodyEnd> {
        while !self.is_data_complete {
            match std::task::ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => state.push(bytes),
                // The caller cancelled the call or needs no more of the response. That is not an error of the body.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(None));
                }
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => self.is_data_complete = true,
            }
        }
        self.stream.poll_trailers(cx).map_err(StdError::from)
    }
}

impl Future for FrameReceiver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let buffer = this.buffer.clone();
        let mut state = buffer.state();
        if state.is_reader_dropped {
            return Poll::Ready(());
        }
        let end = this.poll_data(cx, &mut state);
        state.wake_reader();
        match end {
            Poll::Ready(end) => {
                state.set_end(end);
                Poll::Ready(())
            }
            Poll::Pending => {
                state.receiver = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for FrameReceiver {
    fn drop(&mut self) {
        let mut state = self.buffer.state();
        state.set_end(Err("the connection ended before the request was complete".into()));
        state.wake_reader();
    }
}
