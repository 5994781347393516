//! The bounds of HTTP/1 and HTTP/2, all of them set here: a default that is another tomorrow is no bound.

use super::http2;
use super::io::Io;
use super::listen::Shared;
use super::turns::Watching;
use bytes::Bytes;
use hyper::body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};

/// Streams of one connection at once.
const CONCURRENT_STREAMS_MAX: u32 = 1_000;
/// Streams that the peer has reset before they were taken up: at more the connection is closed (CVE-2023-44487).
const PENDING_ACCEPT_RESET_STREAMS_MAX: usize = 20;
/// Streams that had to be reset for what the peer did: at more the connection is closed (CVE-2025-8671).
const LOCAL_ERROR_RESET_STREAMS_MAX: usize = 1_024;
/// Headers of one request, names and values and 32 bytes for each. Larger ones get 431.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// One frame: the smallest bound that the protocol knows.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// What the peer may send before the handler reads it: of one stream, and of all streams of a connection. Fifteen streams that
/// are not read leave the others room.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The window of a connection before its first call of somebody who may call, and of all when too many have the large one: the
/// smallest that HTTP/2 knows.
const SMALL_CONNECTION_WINDOW_BYTES: u32 = 65_535;
/// What one stream may have written and its peer not yet have made room for.
const SEND_BUFFER_BYTES_MAX: usize = 128 * 1024;
/// An idle connection is asked so often whether it is there, and cut when it does not answer for so long.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the header of an HTTP/1 request, and between two.
const HTTP1_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The header of an HTTP/1 request has to fit into this.
const HTTP1_BUFFER_BYTES_MAX: usize = 16 * 1024;
const HTTP1_HEADERS_MAX: usize = 100;

/// HTTP/2 within these bounds, with the small window: see [`super::windows`].
pub(super) fn http2() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_ACCEPT_RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_ERROR_RESET_STREAMS_MAX))
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(SMALL_CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX);
    builder
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_HEADER_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX)
        .max_headers(HTTP1_HEADERS_MAX);
    builder
}

/// Serves a connection in HTTP/1 or HTTP/2, whichever the peer begins with, to its end. Once `closing` is true it takes no more
/// calls, and ends with the last of those that are there.
pub(super) async fn serve<S, B>(
    mut io: Io,
    service: Watching<S>,
    shared: &Shared<S>,
    mut closing: watch::Receiver<bool>,
) -> Result<(), StdError>
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<StdError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let speaks_http2 = tokio::select! {
        speaks_http2 = io.speaks_http2() => speaks_http2?,
        _ = closing.wait_for(|closing| *closing) => return Ok(()),
    };
    if speaks_http2 {
        let vouched = service.peer.vouched.clone();
        return http2::serve(io, service, shared, vouched, closing).await;
    }
    let mut connection = pin!(http1().serve_connection(TokioIo::new(io), service));
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(StdError::from),
        _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(StdError::from)
}
