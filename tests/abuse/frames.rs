//! HTTP/2 frames by hand, for what no library sends.

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

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header, literal and not indexed (RFC 7541, 6.2.2). Neither part is longer than 126 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// The headers of a call.
pub fn headers_of(path: &str) -> Vec<u8> {
    let headers =
        [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), ("te", "trailers")];
    let mut block: Vec<u8> = headers.iter().flat_map(|(name, value)| literal(name, value)).collect();
    block.extend(literal("content-type", "application/grpc"));
    block
}

/// A connection whose handshake is done.
pub async fn connect(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// How a connection ended, as far as its frames tell.
#[derive(Default)]
pub struct Ended {
    /// Streams that the server has reset.
    pub reset: usize,
    /// Streams that have got an answer.
    pub answered: usize,
    /// The code of the server's GOAWAY.
    pub goaway: Option<u32>,
    pub closed: bool,
}

/// Reads frames until there is none for a while, or no connection.
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
            HEADERS => ended.answered += 1,
            GOAWAY => ended.goaway = Some(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]])),
            _ => {}
        }
    }
}
