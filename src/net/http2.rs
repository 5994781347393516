//! HTTP/2 over h2 itself. hyper gives a sender its room back before the handler has read, and cannot set h2's bound of small
//! frames: see [`super::request_body`].

use super::answer::answer;
use super::http;
use super::io::{Io, Moved, ReadTurn};
use super::listen::Shared;
use super::request_body::{Filler, RequestBody, split};
use super::windows::{Grown, Windows};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use hyper::Response;
use hyper::service::Service;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::Request;

/// h2's own bound of small frames is off: it also counts, for good, those of calls that were refused. What keeps the memory of
/// small frames bounded is that a turn reads at most [`super::io::READ_BYTES_PER_TURN`] and one buffer more before the frames
/// are moved out of h2.
///
/// One bound of h2 cannot be set: more than 100 empty DATA frames that do not end their stream close the connection. Clients of
/// gRPC send none: an empty frame of theirs ends a stream, and such are not counted.
const DATA_FRAME_BUDGET: usize = usize::MAX;

/// Serves a connection until its peer closes it, or, once `closing` is true, until the calls that are there have ended.
pub(super) async fn serve<S, T>(
    io: Io,
    service: S,
    shared: &Shared<T>,
    vouched: Arc<AtomicBool>,
    mut closing: watch::Receiver<bool>,
) -> Result<(), StdError>
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = StdError>,
    S::Future: Send + 'static,
{
    let (moved, reads) = (io.moved.clone(), io.reads.clone());
    let (windows, unread_timeout) = (shared.windows.clone(), shared.port.unread_timeout);
    let mut connection: Connection<Io, Bytes> =
        http::http2().data_frame_budget(DATA_FRAME_BUDGET).handshake(io).await?;
    let ping_pong = connection.ping_pong().expect("it is taken once");
    let mut answers = pin!(answers(ping_pong, &moved));
    let (fillers, grown) = (FuturesUnordered::new(), None);
    let mut serving = Serving { connection, fillers, service, reads, vouched, windows, grown, unread_timeout };
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing), if open => {
                serving.connection.graceful_shutdown();
                open = false;
            }
            () = &mut answers => return Err("the peer does not answer".into()),
            ended = poll_fn(|cx| serving.poll(cx)) => return ended,
        }
    }
}

struct Serving<S> {
    connection: Connection<Io, Bytes>,
    /// Of bodies that are not complete.
    fillers: FuturesUnordered<Filler>,
    service: S,
    reads: Arc<ReadTurn>,
    /// A call of the connection came from somebody who may call.
    vouched: Arc<AtomicBool>,
    windows: Arc<Windows>,
    grown: Option<Grown>,
    unread_timeout: Duration,
}

impl<S> Serving<S>
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = StdError>,
    S::Future: Send + 'static,
{
    /// One turn: reads a bounded number of bytes, begins the calls that are among them, and moves the bodies out of h2.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.reads.begin();
        self.grow();
        let ended = loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond, cx),
                Poll::Ready(Some(Err(error))) => break Poll::Ready(Err(error.into())),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        while let Poll::Ready(Some(())) = self.fillers.poll_next_unpin(cx) {}
        if self.reads.is_used_up() {
            // There may be more to read: after the others have had their turn.
            cx.waker().wake_by_ref();
        }
        ended
    }

    /// Takes the large window, not for strangers: who opens connections and does nothing with them is not to have it.
    fn grow(&mut self) {
        if self.grown.is_none() && self.vouched.load(Ordering::Relaxed) {
            self.grown = self.windows.grow();
            if self.grown.is_some() {
                self.connection.set_target_window_size(http::CONNECTION_WINDOW_BYTES);
            }
        }
    }

    fn begin(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>, cx: &mut Context<'_>) {
        let (head, stream) = request.into_parts();
        let (body, filler) = split(stream, cx);
        self.fillers.extend(filler);
        let call = self.service.call(Request::from_parts(head, body));
        tokio::spawn(answer(call, respond, self.unread_timeout));
    }
}

/// Ends when the peer does not answer any more: a peer that sends nothing is asked for a sign of life.
async fn answers(mut ping_pong: PingPong, moved: &Moved) {
    loop {
        let before = moved.read.load(Ordering::Relaxed);
        sleep(http::KEEPALIVE_INTERVAL).await;
        if moved.read.load(Ordering::Relaxed) != before {
            continue;
        }
        let answered = timeout(http::KEEPALIVE_TIMEOUT, ping_pong.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}
