//! Plain HTTP/1.1, as probes, scrapers and browsers use it.

use std::collections::HashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue};

/// A response.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Returns a header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the messages and the trailers of a gRPC-Web body.
    pub fn frames(&self) -> (Vec<Vec<u8>>, HashMap<String, String>) {
        let (mut messages, mut trailers, mut rest) = (vec![], HashMap::new(), &*self.body);
        while let [flags, a, b, c, d, tail @ ..] = rest {
            let (frame, after) = tail.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            if *flags & 0x80 == 0 {
                messages.push(frame.to_vec());
            } else {
                let lines = std::str::from_utf8(frame).unwrap().lines().filter_map(|line| line.split_once(':'));
                trailers = lines.map(|(name, value)| (name.into(), value.trim().into())).collect();
            }
            rest = after;
        }
        (messages, trailers)
    }
}

/// Sends a GET request.
pub async fn get(address: &str, path: &str) -> Answer {
    get_with(address, path, "").await
}

/// Sends a GET request with additional headers, each ended by CRLF.
pub async fn get_with(address: &str, path: &str, more: &str) -> Answer {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{more}\r\n"), &[]).await
}

/// Makes a gRPC-Web call with additional headers, each ended by CRLF.
pub async fn grpc_web(address: &str, method: &str, message: &impl prost::Message, more: &str) -> Answer {
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let head = format!(
        "POST {method} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/grpc-web+proto\r\n\
         X-Grpc-Web: 1\r\nContent-Length: {}\r\n{more}\r\n",
        body.len()
    );
    exchange(address, &head, &body).await
}

async fn exchange(address: &str, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).await.unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    let body = &bytes[end + 4..];
    let chunked = headers.get("transfer-encoding").is_some();
    Answer { status, headers, body: if chunked { dechunked(body) } else { body.to_vec() } }
}

fn dechunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = vec![];
    loop {
        let line = body.windows(2).position(|window| window == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend(&body[line + 2..line + 2 + size]);
        body = &body[line + 2 + size + 2..];
    }
}
