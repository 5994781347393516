//! Limits of HTTP/1 and HTTP/2. Every limit is set here, because the defaults of libraries can change.

use super::call_tracking::ConnectionService;
use super::http2;
use super::io::Io;
use super::listen::PortState;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tonic::codegen::StdError;

/// Maximum number of concurrent streams of a connection.
const CONCURRENT_STREAMS_MAX: u32 = 1_000;
/// Maximum number of streams that the peer has reset before the server accepted them. A connection with more is closed
/// (CVE-2023-44487).
const PENDING_ACCEPT_RESET_STREAMS_MAX: usize = 20;
/// Maximum number of streams that the server had to reset because of errors of the peer. A connection with more is closed
/// (CVE-2025-8671).
const LOCAL_ERROR_RESET_STREAMS_MAX: usize = 1_024;
/// Maximum size of the headers of a request: names, values, and 32 bytes for each header. Larger ones get the HTTP status 431.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Maximum size of a frame: the lowest value that HTTP/2 allows.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Bytes that the peer may send before the handler reads them: of one stream, and of all streams of a connection. Fifteen streams
/// that are not read leave room for others.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The window of a connection before its first authenticated call, and afterwards if too many connections have the large window.
/// It is the lowest value that HTTP/2 allows.
const SMALL_CONNECTION_WINDOW_BYTES: u32 = 65_535;
/// Maximum number of bytes of one stream that are written and wait for window of the peer.
const SEND_BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Interval between pings of an idle connection. The connection is closed if the peer does not answer within the timeout.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the header of an HTTP/1 request, and between two requests.
const HTTP1_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the buffer that the header of an HTTP/1 request must fit into.
const HTTP1_BUFFER_BYTES_MAX: usize = 16 * 1024;
const HTTP1_HEADERS_MAX: usize = 100;

/// Returns the HTTP/2 limits, with the small connection window. See [`super::large_windows`].
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

/// Serves a connection in HTTP/1 or HTTP/2, as the peer starts it, until the connection ends. Once `refusing_calls` is true, the
/// connection takes no more calls and ends after the last running call.
pub(super) async fn serve(
    mut io: Io,
    service: ConnectionService,
    port: &PortState,
    mut refusing_calls: watch::Receiver<bool>,
) -> Result<(), StdError> {
    let is_http2 = tokio::select! {
        is_http2 = io.starts_with_http2_preface() => is_http2?,
        _ = refusing_calls.wait_for(|refusing| *refusing) => return Ok(()),
    };
    if is_http2 {
        return http2::serve(io, service, port, refusing_calls).await;
    }
    let service = service_fn(move |request| service.call(request));
    let mut connection = pin!(http1().serve_connection(TokioIo::new(io), service));
    tokio::select! {
        result = connection.as_mut() => return result.map_err(StdError::from),
        _ = refusing_calls.wait_for(|refusing| *refusing) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(StdError::from)
}
