//! An answer on its way to a caller over HTTP/2: no faster than the caller reads, and ended when the caller does not read.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use hyper::body::Body as _;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use tonic::codegen::http::{HeaderMap, Response};

/// A caller that reads slowly has to take so much in the time for unread answers, or what is left of a piece.
const PROGRESS_BYTES: usize = 16 * 1024;

/// What an answer that its caller does not read ends with. In the extensions of the answer; without it the stream is reset.
#[derive(Clone)]
pub struct Unread(pub Arc<dyn Fn() -> HeaderMap + Send + Sync>);

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unread").finish_non_exhaustive()
    }
}

/// Runs a call and sends its answer. A caller that takes the call back or goes away drops it.
pub(super) async fn answer(
    call: impl Future<Output = Result<Response<Body>, StdError>>,
    mut respond: SendResponse<Bytes>,
    unread_timeout: Duration,
) {
    let answer = tokio::select! {
        biased;
        answer = call => answer,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    match answer {
        Ok(answer) => send(answer, respond, unread_timeout).await,
        Err(error) => {
            tracing::error!(%error, "a call ended without an answer");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

async fn send(answer: Response<Body>, mut respond: SendResponse<Bytes>, unread_timeout: Duration) {
    let (mut head, body) = answer.into_parts();
    // Trailers are part of the body in gRPC-Web.
    let is_web =
        head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"));
    let unread = head.extensions.remove::<Unread>().filter(|_| !is_web);
    let is_whole = body.is_end_stream();
    if !is_whole && let Some(length) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), is_whole) else {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    if !is_whole {
        let mut sending = Sending { stream, unread_timeout, deadline: None, taken: 0 };
        match sending.send(body).await {
            Ok(()) | Err(Failed::Gone) => {}
            Err(Failed::Unread) => sending.end_unread(unread),
            Err(Failed::Body) => sending.stream.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

enum Failed {
    /// The caller has taken the call back, or its connection has ended.
    Gone,
    /// The caller has read nothing for too long.
    Unread,
    /// The answer itself ended with an error.
    Body,
}

impl From<h2::Error> for Failed {
    fn from(_: h2::Error) -> Self {
        Self::Gone
    }
}

struct Sending {
    stream: SendStream<Bytes>,
    unread_timeout: Duration,
    /// Until when the caller has to take `PROGRESS_BYTES`, while something waits for it.
    deadline: Option<Instant>,
    /// What it has taken since the deadline was set.
    taken: usize,
}

impl Sending {
    async fn send(&mut self, mut body: Body) -> Result<(), Failed> {
        loop {
            let frame = tokio::select! {
                biased;
                _ = poll_fn(|cx| self.stream.poll_reset(cx)) => return Err(Failed::Gone),
                frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
            };
            let Some(frame) = frame else {
                self.stream.send_data(Bytes::new(), true)?;
                return Ok(());
            };
            let frame = frame.map_err(|_| Failed::Body)?;
            match frame.into_data() {
                Ok(data) => {
                    let is_last = body.is_end_stream();
                    self.send_data(data, is_last).await?;
                    if is_last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.send_trailers(trailers)?;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Hands over as much as the caller has room for at a time: h2 keeps nothing that could not be sent.
    async fn send_data(&mut self, mut data: Bytes, is_last: bool) -> Result<(), Failed> {
        if data.is_empty() && is_last {
            self.stream.send_data(data, true)?;
            return Ok(());
        }
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len().min(PROGRESS_BYTES));
            let room = self.room().await?.min(data.len());
            self.taken += room;
            let piece = data.split_to(room);
            self.stream.send_data(piece, is_last && data.is_empty())?;
        }
        self.deadline = None;
        Ok(())
    }

    /// Waits until the caller has room for some bytes.
    async fn room(&mut self) -> Result<usize, Failed> {
        loop {
            let stream = &mut self.stream;
            if let room @ 1.. = stream.capacity() {
                return Ok(room);
            }
            let deadline = match self.deadline {
                Some(deadline) if self.taken < PROGRESS_BYTES => deadline,
                _ => Instant::now() + self.unread_timeout,
            };
            if self.deadline.replace(deadline) != Some(deadline) {
                self.taken = 0;
            }
            match timeout_at(deadline, poll_fn(|cx| stream.poll_capacity(cx))).await {
                Ok(Some(Ok(_))) => {}
                Ok(_) => return Err(Failed::Gone),
                Err(_) => return Err(Failed::Unread),
            }
        }
    }

    fn end_unread(&mut self, unread: Option<Unread>) {
        // Trailers need no room.
        self.stream.reserve_capacity(0);
        let ended = unread.is_some_and(|Unread(trailers)| self.stream.send_trailers(trailers()).is_ok());
        if !ended {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
