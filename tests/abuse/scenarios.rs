//! What is done to the server.

use crate::beside::endures;
use crate::frames::{self, *};
use crate::process::{Process, track};
use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::{ResponseFuture, SendRequest};
use meterd::proto::GetPlatformUsageRequest;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message;
use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::codegen::http::Request;

const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const BATCH: &str = "/metering.v1.UsageService/BatchTrackUsage";
const SUBSCRIBE: &str = "/metering.v1.AlertService/SubscribeAlerts";
const MIB: usize = 1024 * 1024;
/// RFC 9113, 7.
const ENHANCE_YOUR_CALM: u32 = 11;
/// Connections of the scenarios that do the same on several.
const CONNECTIONS: usize = 10;

pub async fn h2_connect(address: &str) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// Begins a call with more headers, and sends these bytes as far as they are wanted; the body stays open.
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

/// What a call was answered with: gRPC's status, or HTTP's.
pub async fn answered(answer: ResponseFuture) -> String {
    match answer.await {
        Ok(answer) => match Status::from_header_map(answer.headers()) {
            Some(status) => format!("{:?}", status.code()),
            None => answer.status().as_u16().to_string(),
        },
        Err(error) => format!("{error}"),
    }
}

/// Each answer and how often it came.
pub fn tally(answers: impl IntoIterator<Item = String>) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for answer in answers {
        *counts.entry(answer).or_default() += 1;
    }
    counts.iter().map(|(answer, count)| format!("{answer} × {count}")).collect::<Vec<_>>().join(", ")
}

/// Each answer is one of these.
fn assert_of(answers: &[String], expected: &[&str]) {
    assert!(!answers.is_empty());
    let others = answers.iter().filter(|answer| !expected.contains(&answer.as_str()));
    assert_eq!(tally(others.cloned()), "", "{expected:?} expected");
}

/// The same on several connections, `times` times each, and each answered with one of these.
async fn each<F: Future<Output = String>>(
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
    assert_of(&answers, expected);
    tally(answers)
}

fn message(flag: u8, declared: u32, bytes: &[u8]) -> Bytes {
    [&[flag][..], &declared.to_be_bytes(), bytes].concat().into()
}

fn bomb() -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&vec![0; 64 * MIB]).unwrap();
    gzip.finish().unwrap()
}

async fn nothing(_: String) -> String {
    tokio::time::sleep(Duration::from_secs(5)).await;
    "as it is".into()
}

async fn messages_too_large(address: String) -> String {
    let (declared, sent) = (message(0, u32::MAX, &[0; 65_536]), message(0, 17 * MIB as u32, &vec![0; 17 * MIB]));
    let of = async |times, body: Bytes| {
        each(&address, times, &["OutOfRange"], async |mut sender| {
            answered(send(&mut sender, BATCH, &[], body.clone()).await.0).await
        })
        .await
    };
    format!("declared 4 GiB: {}; 17 MiB: {}", of(20, declared).await, of(5, sent).await)
}

const TRIES_ALONE: usize = 50;

/// Two bytes each, which would take three hundred.
async fn events_of_nothing(address: String) -> String {
    let body = message(0, 16 * MIB as u32, &[0x0a, 0].repeat(8 * MIB));
    let call = async |mut sender: SendRequest<Bytes>| {
        let (answer, mut rest) = send(&mut sender, BATCH, &[], body.clone()).await;
        drop(rest.send_data(Bytes::new(), true));
        answered(answer).await
    };
    let answers = each(&address, 3, &["InvalidArgument", "ResourceExhausted"], call).await;
    // All at once may leave room for none; one alone is looked at, as soon as they have gone.
    let mut alone = String::new();
    for _ in 0..TRIES_ALONE {
        alone = call(h2_connect(&address).await).await;
        if alone != "ResourceExhausted" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(alone, "InvalidArgument");
    answers
}

async fn compressed_bombs(address: String) -> String {
    let bomb = bomb();
    let body = message(1, bomb.len() as u32, &bomb);
    each(&address, 50, &["OutOfRange"], async |mut sender| {
        let (answer, mut rest) = send(&mut sender, TRACK, &[("grpc-encoding", "gzip")], body.clone()).await;
        drop(rest.send_data(Bytes::new(), true));
        answered(answer).await
    })
    .await
}

async fn large_headers(address: String) -> String {
    let large = "x".repeat(17 * 1024);
    each(&address, 200, &["431"], async |mut sender| {
        answered(send(&mut sender, TRACK, &[("x-large", &large)], Bytes::new()).await.0).await
    })
    .await
}

/// So many subscriptions at once over one connection.
async fn subscriptions(address: &str, count: u32) -> Ended {
    let (read, mut write) = frames::connect(address).await.into_split();
    let reading = tokio::spawn(read_to_end(read, Duration::from_secs(3)));
    let headers = headers_of(SUBSCRIBE);
    for number in 0..count {
        let bytes =
            [frame(HEADERS, END_HEADERS, 2 * number + 1, &headers), frame(DATA, 1, 2 * number + 1, &[0; 5])].concat();
        if write.write_all(&bytes).await.is_err() {
            break;
        }
    }
    reading.await.unwrap()
}

async fn many_streams(address: String) -> String {
    let some = subscriptions(&address, 1_200).await;
    // A stream that is refused is reset, and again for the message that follows its headers.
    assert_eq!((some.answered, some.reset, some.goaway), (1_000, 400, None), "what is over the bound is refused");
    let many = subscriptions(&address, 10_000).await;
    assert!(many.answered <= 1_000, "{} streams at once", many.answered);
    assert_cut(&many);
    format!(
        "of 1,200 {} answered, {} resets; of 10,000 {} answered, GOAWAY {:?}",
        some.answered, some.reset, many.answered, many.goaway
    )
}

/// With GOAWAY and ENHANCE_YOUR_CALM; or so that the rest of what was sent has overtaken it (RST of TCP).
fn assert_cut(ended: &Ended) {
    assert!(ended.closed, "the connection is left open");
    assert!(matches!(ended.goaway, Some(ENHANCE_YOUR_CALM) | None), "GOAWAY {:?}", ended.goaway);
}

async fn rapid_resets(address: String) -> String {
    let headers = headers_of(TRACK);
    let connections = (0..CONNECTIONS).map(async |_| {
        let (read, mut write) = frames::connect(&address).await.into_split();
        let reading = tokio::spawn(read_to_end(read, Duration::from_secs(2)));
        for number in 0..10_000_u32 {
            let stream = 2 * number + 1;
            let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            if write.write_all(&[frame(HEADERS, END_HEADERS, stream, &headers), reset].concat()).await.is_err() {
                break;
            }
        }
        let ended = reading.await.unwrap();
        assert_cut(&ended);
        format!("GOAWAY {:?}, closed {}", ended.goaway, ended.closed)
    });
    let ended = tally(join_all(connections).await);
    assert!(ended.contains("GOAWAY Some(11)"), "nobody is told: {ended}");
    ended
}

/// Whole calls, each taken back once it is sent: the server has begun to work on it.
async fn calls_taken_back(address: String) -> String {
    let request = GetPlatformUsageRequest::default().encode_to_vec();
    let (headers, request) = (headers_of("/metering.v1.UsageService/GetPlatformUsage"), message(0, 0, &request));
    let connections = (0..CONNECTIONS).map(async |_| {
        let (read, mut write) = frames::connect(&address).await.into_split();
        let reading = tokio::spawn(read_to_end(read, Duration::from_secs(2)));
        let mut sent = 0;
        for number in 0..5_000_u32 {
            let stream = 2 * number + 1;
            let call = [frame(HEADERS, END_HEADERS, stream, &headers), frame(DATA, 1, stream, &request)].concat();
            if write.write_all(&call).await.is_err() {
                break;
            }
            // So that it is taken up first.
            tokio::task::yield_now().await;
            drop(write.write_all(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await);
            sent += 1;
        }
        let ended = reading.await.unwrap();
        assert_cut(&ended);
        (sent, format!("GOAWAY {:?}", ended.goaway))
    });
    let ended = join_all(connections).await;
    let sent: u32 = ended.iter().map(|(sent, _)| sent).sum();
    format!("{sent} calls, {}", tally(ended.into_iter().map(|(_, goaway)| goaway)))
}

async fn endless_headers(address: String) -> String {
    let connections = (0..CONNECTIONS).map(async |_| {
        let (read, mut write) = frames::connect(&address).await.into_split();
        let reading = tokio::spawn(read_to_end(read, Duration::from_secs(2)));
        drop(write.write_all(&frame(HEADERS, 0, 1, &headers_of(TRACK))).await);
        // A header that is never whole: a name of 16,000 bytes with an empty value, over and over.
        let piece = [&[0, 0x7f, 0x81, 0x7c][..], &vec![b'x'; 16_000], &[0]].concat();
        for _ in 0..10_000 {
            if write.write_all(&frame(CONTINUATION, 0, 1, &piece)).await.is_err() {
                break;
            }
        }
        let ended = reading.await.unwrap();
        assert_cut(&ended);
        format!("GOAWAY {:?}, closed {}", ended.goaway, ended.closed)
    });
    let ended = tally(join_all(connections).await);
    assert!(ended.contains("GOAWAY Some(11)"), "nobody is told: {ended}");
    ended
}

/// Bytes, one each while, until the connection is closed; gives whether it was.
async fn trickle(mut stream: TcpStream, bytes: &[u8], pause: Duration, at_most: Duration) -> String {
    let begun = Instant::now();
    let mut bytes = bytes.iter().cycle();
    while begun.elapsed() < at_most {
        let byte = *bytes.next().unwrap();
        let mut answer = [0; 1_024];
        if stream.write_all(&[byte]).await.is_err() {
            return "closed".into();
        }
        if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(pause, stream.read(&mut answer)).await {
            return "closed".into();
        }
    }
    "left open".into()
}

async fn slow_headers(address: String) -> String {
    let (pause, at_most) = (Duration::from_millis(200), Duration::from_secs(15));
    let http1 = (0..200).map(async |_| {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
        trickle(stream, b"X-Slow: y\r\n", pause, at_most).await
    });
    let preface = (0..200).map(async |_| {
        let stream = TcpStream::connect(&address).await.unwrap();
        trickle(stream, b"PRI * HTTP/2.0\r", Duration::from_secs(1), at_most).await
    });
    let (http1, preface) = tokio::join!(join_all(http1), join_all(preface));
    assert_of(&http1, &["closed"]);
    assert_of(&preface, &["closed"]);
    format!("HTTP/1 headers: {}; preface: {}", tally(http1), tally(preface))
}

async fn slow_bodies(address: String) -> String {
    let begun = message(0, 16 * MIB as u32, &vec![0; MIB]);
    let connections = (0..CONNECTIONS).map(async |_| {
        let mut sender = h2_connect(&address).await;
        let mut calls = vec![];
        for _ in 0..30 {
            calls.push(send(&mut sender, BATCH, &[("grpc-timeout", "99999999S")], begun.clone()).await);
        }
        let calls = calls.into_iter().map(async |(answer, mut body)| {
            let trickling = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    body.reserve_capacity(1);
                    drop(body.send_data(Bytes::from_static(&[0]), false));
                }
            };
            tokio::select! {
                answer = answered(answer) => answer,
                () = trickling => unreachable!("it never ends"),
                () = tokio::time::sleep(Duration::from_secs(15)) => "none".into(),
            }
        });
        join_all(calls).await
    });
    let answers: Vec<_> = join_all(connections).await.into_iter().flatten().collect();
    // Those that the budget has room for have their time, and the others are told at once.
    assert_of(&answers, &["DeadlineExceeded", "ResourceExhausted"]);
    assert!(answers.iter().any(|answer| answer == "DeadlineExceeded"), "some are waited for");
    tally(answers)
}

async fn idle_connections(address: String) -> String {
    let (mut silent, mut begun) = (vec![], vec![]);
    for _ in 0..1_000 {
        silent.push(TcpStream::connect(&address).await.unwrap());
        begun.push(frames::connect(&address).await);
        // Too many at once wait in the kernel, which forgets some: they are open for their callers alone.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let closed = async |streams: Vec<TcpStream>| {
        let ended = streams.into_iter().map(|stream| read_to_end(stream, Duration::from_secs(15)));
        join_all(ended).await.into_iter().filter(|ended| ended.closed).count()
    };
    let (silent, begun) = tokio::join!(closed(silent), closed(begun));
    assert_eq!((silent, begun), (1_000, 0), "those that say nothing are closed, and no others");
    format!("of 1,000 that say nothing {silent} closed, of 1,000 that have said what they speak {begun}")
}

/// The same frame over and over, to a server whose answers nobody reads; and then to one where somebody does.
async fn flood(address: String, bytes: Vec<u8>) -> String {
    let many = bytes.repeat(1_000);
    let connections = (0..CONNECTIONS).map(async |number| {
        let (read, mut write) = frames::connect(&address).await.into_split();
        let is_read = number % 2 == 0;
        let reading = is_read.then(|| tokio::spawn(read_to_end(read, Duration::from_secs(1))));
        let mut sent = 0;
        while sent < 200_000 {
            let writing = tokio::time::timeout(Duration::from_secs(1), write.write_all(&many));
            if !matches!(writing.await, Ok(Ok(()))) {
                break;
            }
            sent += 1_000;
        }
        if let Some(reading) = reading {
            reading.await.unwrap();
        }
        sent
    });
    let sent: usize = join_all(connections).await.into_iter().sum();
    format!("{sent} frames taken")
}

async fn pings(address: String) -> String {
    flood(address, frame(PING, 0, 0, &[7; 8])).await
}

async fn settings(address: String) -> String {
    flood(address, frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])).await
}

async fn window_updates(address: String) -> String {
    // One that changes something, since none may be of zero.
    flood(address, frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_abuse_the_protocol_take_little_and_stop_nobody() {
    let _alone = crate::ALONE.lock().await;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let process = Arc::new(Process::start(&["--request-bytes-max=67108864", "--request-timeout-seconds=5"]).await);
    endures(&process, "nothing", nothing).await;
    endures(&process, "messages too large", messages_too_large).await;
    endures(&process, "batches of eight million empty events", events_of_nothing).await;
    endures(&process, "compressed bombs", compressed_bombs).await;
    endures(&process, "headers of 17 KiB", large_headers).await;
    endures(&process, "10,000 streams on a connection", many_streams).await;
    endures(&process, "rapid resets", rapid_resets).await;
    endures(&process, "calls taken back", calls_taken_back).await;
    endures(&process, "endless headers", endless_headers).await;
    endures(&process, "slow headers", slow_headers).await;
    endures(&process, "slow bodies", slow_bodies).await;
    endures(&process, "2,000 idle connections", idle_connections).await;
    endures(&process, "pings", pings).await;
    endures(&process, "settings", settings).await;
    endures(&process, "window updates", window_updates).await;
    assert_eq!(process.stop().await.0, Some(0));
}

/// No descriptor left: what is connected goes on, the loop neither spins nor ends, and takes connections again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_file_to_open_serves_whom_it_has_and_others_later() {
    let _alone = crate::ALONE.lock().await;
    let process = Process::start(&[]).await;
    let mut usage = process.usage();
    track(&mut usage, "before").await.unwrap();
    process.limit_files(Some(process.files() + 10));
    let waiting = join_all((0..100).map(async |_| frames::connect(&process.address()).await)).await;
    let (begun, used) = (Instant::now(), process.processor_time());
    let mut calls = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        track(&mut usage, &format!("during-{calls}")).await.unwrap();
        calls += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let used = process.processor_time() - used;
    process.track("none left").await.unwrap_err();
    process.limit_files(None);
    process.track("after").await.unwrap();
    println!(
        "no file descriptors for 3 s, 100 connections that wait: {calls} calls of who was there, 0 failed; processor time {:.2} s",
        used.as_secs_f64()
    );
    assert!(used < Duration::from_secs(1), "{used:?}");
    drop(waiting);
    assert_eq!(process.stop().await.0, Some(0));
}
