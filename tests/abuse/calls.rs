//! Sends calls with the HTTP/2 library and compares their results.

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::{ResponseFuture, SendRequest};
use std::future::Future;
use std::io::Write;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::codegen::http::Request;

const MIB: usize = 1024 * 1024;
/// Number of connections of scenarios that use several.
pub const CONNECTIONS: usize = 10;

pub async fn h2_connect(address: &str) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// Starts a call with additional headers and sends `bytes` as far as flow control allows. The body stays open.
pub async fn send(
    sender: &mut SendRequest<Bytes>,
    path: &str,
    headers: &[(&str, &str)],
    mut bytes: Bytes,
) -> (ResponseFuture, h2::SendStream<Bytes>) {
    let mut request = Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, mut body) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { break };
        if body.send_data(bytes.split_to(room.min(bytes.len())), false).is_err() {
            break;
        }
    }
    (answer, body)
}

/// Returns the result of a call: the gRPC status code, or the HTTP status.
pub async fn result_of(answer: ResponseFuture) -> String {
    match answer.await {
        Ok(answer) => match Status::from_header_map(answer.headers()) {
            Some(status) => format!("{:?}", status.code()),
            None => answer.status().as_u16().to_string(),
        },
        Err(error) => format!("{error}"),
    }
}

/// Counts equal results.
pub fn tally(answers: impl IntoIterator<Item = String>) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for answer in answers {
        *counts.entry(answer).or_default() += 1;
    }
    counts.iter().map(|(answer, count)| format!("{answer} × {count}")).collect::<Vec<_>>().join(", ")
}

/// Checks that each result is one of the expected ones.
pub fn assert_all_in(answers: &[String], expected: &[&str]) {
    assert!(!answers.is_empty());
    let others = answers.iter().filter(|answer| !expected.contains(&answer.as_str()));
    assert_eq!(tally(others.cloned()), "", "{expected:?} expected");
}

/// Repeats a call `times` times on several connections, and checks that each result is one of the expected ones.
pub async fn each<F: Future<Output = String>>(
    address: &str,
    times: usize,
    expected: &[&str],
    call: impl Fn(SendRequest<Bytes>) -> F,
) -> String {
    let connections = (0..CONNECTIONS).map(async |_| {
        let sender = h2_connect(address).await;
        let mut answers = vec![];
        for _ in 0..times {
            answers.push(call(sender.clone()).await);
        }
        answers
    });
    let answers: Vec<_> = join_all(connections).await.into_iter().flatten().collect();
    assert_all_in(&answers, expected);
    tally(answers)
}

pub fn message(flag: u8, declared: u32, bytes: &[u8]) -> Bytes {
    [&[flag][..], &declared.to_be_bytes(), bytes].concat().into()
}

pub fn bomb() -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&vec![0; 64 * MIB]).unwrap();
    gzip.finish().unwrap()
}
