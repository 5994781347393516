//! The bounds of HTTP/1 and HTTP/2, all of them set here: a default that is another tomorrow is no bound.

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use std::time::Duration;

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
/// What the peer may send before it is read: of one stream, and of all streams of a connection. One that is not read leaves the
/// others room.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
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

/// Speaks HTTP/2.
pub(super) fn http2() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_ACCEPT_RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_ERROR_RESET_STREAMS_MAX))
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX);
    builder
}

/// Speaks HTTP/1.
pub(super) fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_HEADER_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX)
        .max_headers(HTTP1_HEADERS_MAX);
    builder
}
