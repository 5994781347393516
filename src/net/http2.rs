//! HTTP/2 over h2 itself: hyper takes the first piece of an answer before its caller has room for it, and then nothing ends the
//! answer while the caller does not read.

use super::answer::send;
use super::http;
use super::io::Moved;
use super::rewound::Rewound;
use super::turns::Watching;
use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use hyper::body::{Body, Frame};
use hyper::service::Service;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};

/// Serves a connection until it ends. After `closing` it takes no more calls, and those that are there go on.
pub(super) async fn serve<S, B>(
    io: Rewound,
    moved: Arc<Moved>,
    service: Watching<S>,
    unread_timeout: Duration,
    closing: Arc<Notify>,
) -> Result<(), StdError>
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<StdError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let mut connection: Connection<Rewound, Bytes> = http::http2().handshake(io).await?;
    let pings = connection.ping_pong().expect("it is asked for once");
    let mut dead = pin!(peer_is_gone(pings, moved));
    let mut is_closing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.notified(), if !is_closing => {
                connection.graceful_shutdown();
                is_closing = true;
                continue;
            }
            () = &mut dead => return Err("the peer has not answered a ping".into()),
            accepted = connection.accept() => accepted,
        };
        match accepted {
            Some(accepted) => {
                let (request, respond) = accepted?;
                let answer = service.call(request.map(Received::new));
                tokio::spawn(answered(answer, respond, unread_timeout));
            }
            None => return Ok(()),
        }
    }
}

/// Returns when a peer that sent nothing for a while does not answer a ping either.
async fn peer_is_gone(mut pings: PingPong, moved: Arc<Moved>) {
    loop {
        let before = moved.read.load(Ordering::Relaxed);
        tokio::time::sleep(http::KEEPALIVE_INTERVAL).await;
        if moved.read.load(Ordering::Relaxed) != before {
            continue;
        }
        let pong = async {
            pings.send_ping(Ping::opaque())?;
            poll_fn(|cx| pings.poll_pong(cx)).await
        };
        match tokio::time::timeout(http::KEEPALIVE_TIMEOUT, pong).await {
            Ok(Ok(_)) => {}
            // The connection itself ends with the error.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// One call, unless its caller takes it back.
async fn answered<B, E>(
    answer: impl Future<Output = Result<Response<B>, E>>,
    mut respond: SendResponse<Bytes>,
    unread_timeout: Duration,
) where
    B: Body<Data = Bytes>,
    B::Error: Into<StdError>,
{
    let answer = tokio::select! {
        biased;
        answer = async { answer.await.ok() } => answer,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    match answer {
        Some(answer) => send(answer, respond, unread_timeout).await,
        None => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// The body of a request.
struct Received {
    stream: RecvStream,
    data_done: bool,
}

impl Received {
    fn new(stream: RecvStream) -> Self {
        Self { stream, data_done: false }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Only a stream that is gone has no capacity to give back.
                    drop(self.stream.flow_control().release_capacity(bytes.len()));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => {
                    self.data_done = true;
                    // The caller has taken the call back: no fault of the request.
                    let taken_back = matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL));
                    return Poll::Ready((!taken_back).then_some(Err(error)));
                }
                None => self.data_done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
