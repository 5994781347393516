//! Serves HTTP/2 with h2 directly. hyper returns flow-control window to a sender before the handler has read the data, and it
//! cannot set the limit of h2 for small frames. See [`super::request_body`].

use super::call_tracking::ConnectionService;
use super::http;
use super::io::{Io, ReadBudget, Traffic};
use super::large_windows::{LargeWindowPermit, LargeWindows};
use super::listen::PortState;
use super::request_body::{FrameReceiver, receive};
use super::response::respond;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::codegen::StdError;
use tonic::codegen::http::Request;

/// Disables the limit of h2 for small frames, which never stops to count the frames of refused calls. The memory of small frames
/// is bounded by other means: one poll reads at most [`super::io::READ_BYTES_PER_POLL`] and one more buffer before the frames are
/// moved out of h2.
///
/// h2 has one limit that cannot be set: it closes a connection with more than 100 empty DATA frames that do not end their stream.
/// gRPC clients send no such frames.
const DATA_FRAME_BUDGET: usize = usize::MAX;

/// Serves a connection until the peer closes it. Once `refusing_calls` is true, serves it until the running calls have ended.
pub(super) async fn serve(
    io: Io,
    service: ConnectionService,
    port: &PortState,
    mut refusing_calls: watch::Receiver<bool>,
) -> Result<(), StdError> {
    let (traffic, read_budget) = (io.traffic.clone(), io.read_budget.clone());
    let (large_windows, unread_timeout) = (port.large_windows.clone(), port.port.config.unread_timeout);
    let mut connection: Connection<Io, Bytes> =
        http::http2().data_frame_budget(DATA_FRAME_BUDGET).handshake(io).await?;
    let ping_pong = connection.ping_pong().expect("it is taken once");
    let mut keepalive = pin!(keepalive(ping_pong, &traffic));
    let (receivers, large_window) = (FuturesUnordered::new(), None);
    let mut connection =
        Http2 { connection, receivers, service, read_budget, large_windows, large_window, unread_timeout };
    let mut takes_calls = true;
    loop {
        tokio::select! {
            biased;
            _ = refusing_calls.wait_for(|refusing| *refusing), if takes_calls => {
                connection.connection.graceful_shutdown();
                takes_calls = false;
            }
            () = &mut keepalive => return Err("the peer does not answer pings".into()),
            result = poll_fn(|cx| connection.poll(cx)) => return result,
        }
    }
}

struct Http2 {
    connection: Connection<Io, Bytes>,
    /// Receivers of request bodies that are not complete.
    receivers: FuturesUnordered<FrameReceiver>,
    service: ConnectionService,
    read_budget: Arc<ReadBudget>,
    large_windows: Arc<LargeWindows>,
    large_window: Option<LargeWindowPermit>,
    unread_timeout: Duration,
}

impl Http2 {
    /// Reads a bounded number of bytes, starts the calls in them, and moves request bodies out of h2.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.read_budget.refill();
        self.enlarge_window();
        let result = loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.start_call(request, respond, cx),
                Poll::Ready(Some(Err(error))) => break Poll::Ready(Err(error.into())),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        while let Poll::Ready(Some(())) = self.receivers.poll_next_unpin(cx) {}
        if self.read_budget.is_exhausted() {
            // There may be more to read, but other tasks run first.
            cx.waker().wake_by_ref();
        }
        result
    }

    /// Enlarges the connection window after the first authenticated call.
    fn enlarge_window(&mut self) {
        if self.large_window.is_none() && self.service.peer.is_authenticated.load(Ordering::Relaxed) {
            self.large_window = self.large_windows.try_acquire();
            if self.large_window.is_some() {
                self.connection.set_target_window_size(http::CONNECTION_WINDOW_BYTES);
            }
        }
    }

    fn start_call(&mut self, request: Request<RecvStream>, response: SendResponse<Bytes>, cx: &mut Context<'_>) {
        let (head, stream) = request.into_parts();
        let (body, receiver) = receive(stream, cx);
        self.receivers.extend(receiver);
        let call = self.service.call(Request::from_parts(head, body));
        tokio::spawn(respond(call, response, self.unread_timeout));
    }
}

/// Pings the peer if it sends nothing. Returns if the peer does not answer.
async fn keepalive(mut ping_pong: PingPong, traffic: &Traffic) {
    loop {
        let before = traffic.read.load(Ordering::Relaxed);
        sleep(http::KEEPALIVE_INTERVAL).await;
        if traffic.read.load(Ordering::Relaxed) != before {
            continue;
        }
        let pong = timeout(http::KEEPALIVE_TIMEOUT, ping_pong.ping(Ping::opaque())).await;
        if !matches!(pong, Ok(Ok(_))) {
            return;
        }
    }
}
