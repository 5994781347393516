//! HTTP/2 frames made by hand, for frames that no library sends.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns a header as a literal that is not indexed (RFC 7541, section 6.2.2). Both parts have at most 126 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// Returns the headers of a call.
pub fn headers_of(path: &str) -> Vec<u8> {
    let headers =
        [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), ("te", "trailers")];
    let mut block: Vec<u8> = headers.iter().flat_map(|(name, value)| literal(name, value)).collect();
    block.extend(literal("content-type", "application/grpc"));
    block
}

/// Opens a connection and completes the HTTP/2 handshake.
pub async fn connect(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// How a connection ended.
#[derive(Default)]
pub struct Ended {
    /// Number of streams that the server reset.
    pub reset: usize,
    /// Number of streams with a response.
    pub responses: usize,
    /// The error code of the server's GOAWAY frame.
    pub goaway: Option<u32>,
    pub closed: bool,
}

/// Reads frames until the connection ends or no frame arrives for a while.
pub async fn read_to_end(mut stream: impl AsyncReadExt + Unpin, quiet: Duration) -> Ended {
    let mut ended = Ended::default();
    let mut head = [0; 9];
    loop {
        match tokio::time::timeout(quiet, stream.read_exact(&mut head)).await {
            Err(_) => return ended,
            Ok(Err(_)) => {
                ended.closed = true;
                return ended;
            }
            Ok(Ok(_)) => {}
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            ended.closed = true;
            return ended;
        }
        match head[3] {
            RST_STREAM => ended.reset += 1,
            HEADERS => ended.responses += 1,
            GOAWAY => ended.goaway = Some(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]])),
            _ => {}
        }
    }
}
