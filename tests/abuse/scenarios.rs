//! Scenarios of protocol abuse.

use crate::bystander::assert_survives;
use crate::calls::{CONNECTIONS, assert_all_in, bomb, each, h2_connect, message, result_of, send, tally};
use crate::frames::{self, *};
use crate::process::{Process, track};
use crate::slow::{idle_connections, slow_bodies, slow_headers};
use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::SendRequest;
use meterd::proto::GetPlatformUsageRequest;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const BATCH: &str = "/metering.v1.UsageService/BatchTrackUsage";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const SUBSCRIBE: &str = "/metering.v1.AlertService/SubscribeAlerts";
const MIB: usize = 1024 * 1024;
/// RFC 9113, section 7.
const ENHANCE_YOUR_CALM: u32 = 11;

async fn nothing(_: String) -> String {
    tokio::time::sleep(Duration::from_secs(5)).await;
    "no abuse".into()
}

async fn messages_too_large(address: String) -> String {
    let (declared, sent) = (message(0, u32::MAX, &[0; 65_536]), message(0, 17 * MIB as u32, &vec![0; 17 * MIB]));
    let of = async |times, body: Bytes| {
        each(&address, times, &["OutOfRange"], async |mut sender| {
            result_of(send(&mut sender, BATCH, &[], body.clone()).await.0).await
        })
        .await
    };
    format!("declared 4 GiB: {}; 17 MiB: {}", of(20, declared).await, of(5, sent).await)
}

const ATTEMPTS_ALONE: usize = 50;

/// Empty events. Each has two bytes on the wire and would take three hundred in memory.
async fn empty_events(address: String) -> String {
    let body = message(0, 16 * MIB as u32, &[0x0a, 0].repeat(8 * MIB));
    let call = async |mut sender: SendRequest<Bytes>| {
        let (answer, mut rest) = send(&mut sender, BATCH, &[], body.clone()).await;
        drop(rest.send_data(Bytes::new(), true));
        result_of(answer).await
    };
    let answers = each(&address, 3, &["InvalidArgument", "ResourceExhausted"], call).await;
    // If all calls run at once, there may be no room for any. A single call is processed as soon as the others have
    // ended.
    let mut alone = String::new();
    for _ in 0..ATTEMPTS_ALONE {
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
        result_of(answer).await
    })
    .await
}

async fn large_headers(address: String) -> String {
    let large = "x".repeat(17 * 1024);
    each(&address, 200, &["431"], async |mut sender| {
        result_of(send(&mut sender, TRACK, &[("x-large", &large)], Bytes::new()).await.0).await
    })
    .await
}

/// Opens `count` subscriptions at once over one connection.
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
    // A rejected stream is reset, and reset again for the message after its headers.
    assert_eq!((some.responses, some.reset, some.goaway), (1_000, 400, None), "streams above the limit are rejected");
    let many = subscriptions(&address, 10_000).await;
    assert!(many.responses <= 1_000, "{} streams at once", many.responses);
    assert_cut(&many);
    format!(
        "of 1,200 {} result_of, {} resets; of 10,000 {} result_of, GOAWAY {:?}",
        some.responses, some.reset, many.responses, many.goaway
    )
}

/// Checks that the server closed the connection with GOAWAY and ENHANCE_YOUR_CALM. A TCP RST may have overtaken the
/// GOAWAY frame.
fn assert_cut(ended: &Ended) {
    assert!(ended.closed, "the connection is still open");
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
    assert!(ended.contains("GOAWAY Some(11)"), "no connection received GOAWAY: {ended}");
    ended
}

/// Complete calls that are cancelled right after they are sent, when the server has started to work on them.
async fn cancelled_calls(address: String) -> String {
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
            // Let the server start the call first.
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
        // A header block that never ends: a name of 16,000 bytes with an empty value, repeated.
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
    assert!(ended.contains("GOAWAY Some(11)"), "no connection received GOAWAY: {ended}");
    ended
}

/// Sends the same frame repeatedly. On half of the connections, the responses are read.
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
    format!("{sent} frames sent")
}

async fn pings(address: String) -> String {
    flood(address, frame(PING, 0, 0, &[7; 8])).await
}

async fn settings(address: String) -> String {
    flood(address, frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])).await
}

async fn window_updates(address: String) -> String {
    // The increment is 1, because zero is not allowed.
    flood(address, frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protocol_abuse_uses_little_memory_and_blocks_no_other_caller() {
    let _alone = crate::ALONE.lock().await;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let process = Arc::new(Process::start(&["--request-bytes-max=67108864", "--request-timeout-seconds=5"]).await);
    assert_survives(&process, "nothing", nothing).await;
    assert_survives(&process, "messages too large", messages_too_large).await;
    assert_survives(&process, "batches of eight million empty events", empty_events).await;
    assert_survives(&process, "compressed bombs", compressed_bombs).await;
    assert_survives(&process, "headers of 17 KiB", large_headers).await;
    assert_survives(&process, "10,000 streams on a connection", many_streams).await;
    assert_survives(&process, "rapid resets", rapid_resets).await;
    assert_survives(&process, "cancelled calls", cancelled_calls).await;
    assert_survives(&process, "endless headers", endless_headers).await;
    assert_survives(&process, "slow headers", slow_headers).await;
    assert_survives(&process, "slow bodies", slow_bodies).await;
    assert_survives(&process, "2,000 idle connections", idle_connections).await;
    assert_survives(&process, "pings", pings).await;
    assert_survives(&process, "settings", settings).await;
    assert_survives(&process, "window updates", window_updates).await;
    assert_eq!(process.stop().await.0, Some(0));
}

/// Without a free file descriptor, existing connections work, the accept loop neither spins nor ends, and it accepts
/// connections again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_free_file_descriptors_serves_existing_connections() {
    let _alone = crate::ALONE.lock().await;
    let process = Process::start(&[]).await;
    let mut usage = process.usage();
    track(&mut usage, "before").await.unwrap();
    process.limit_files(Some(process.files() + 10));
    let waiting = join_all((0..100).map(async |_| frames::connect(&process.address()).await)).await;
    let (started, used) = (Instant::now(), process.processor_time());
    let mut calls = 0;
    while started.elapsed() < Duration::from_secs(3) {
        track(&mut usage, &format!("during-{calls}")).await.unwrap();
        calls += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let used = process.processor_time() - used;
    process.track("none left").await.unwrap_err();
    process.limit_files(None);
    process.track("after").await.unwrap();
    println!(
        "no file descriptors for 3 s, 100 waiting connections: {calls} calls on an existing connection, 0 failed; processor time {:.2} s",
        used.as_secs_f64()
    );
    assert!(used < Duration::from_secs(1), "{used:?}");
    drop(waiting);
    assert_eq!(process.stop().await.0, Some(0));
}

/// The kernel completes connections while the server is busy, here stopped, and none waits for a repeated SYN or is reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_connections_to_a_busy_server_is_accepted_at_once() {
    let _alone = crate::ALONE.lock().await;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let process = Process::start(&[]).await;
    let kept: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let count = kept.min(2_000);
    process.signal("STOP");
    let (address, started) = (process.address(), Instant::now());
    let connecting = join_all((0..count).map(|_| TcpStream::connect(&address)));
    let connected = timeout(Duration::from_secs(20), connecting).await;
    let connected_within = started.elapsed();
    process.signal("CONT");
    let streams = connected.expect("all connections are completed while the server is stopped");
    println!("{count} connections to a stopped server were completed within {connected_within:.2?}");
    let answered = streams.into_iter().map(async |stream| {
        let (sender, connection) = h2::client::handshake(stream.unwrap()).await.unwrap();
        tokio::spawn(connection);
        let (answer, mut body) = send(&mut sender.ready().await.unwrap(), HEALTH, &[], message(0, 0, &[])).await;
        body.send_data(Bytes::new(), true).unwrap();
        result_of(answer).await
    });
    // A call above the server's limits is refused, on a connection that was accepted.
    assert_all_in(&join_all(answered).await, &["200", "ResourceExhausted"]);
}
