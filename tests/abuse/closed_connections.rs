//! Connections that the server closes because of abuse, how it logs them, and traffic for which it must not close a
//! connection.

use crate::frames::{self, DATA, Ended, HEADERS, RST_STREAM, frame, headers_of, read_to_end};
use crate::process::Process;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const STREAM: &str = "/metering.v1.UsageService/StreamUsage";
const CONNECTIONS: u64 = 300;
/// Minimum time between two log lines of the same kind.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// RFC 9113, section 7.
const ENHANCE_YOUR_CALM: u32 = 11;
const END_STREAM: u8 = 1;

/// Sends these frames on a new connection and returns how it ended.
async fn send_frames(process: &Process, frames: &[Vec<u8>], quiet: Duration) -> Ended {
    let (read, mut write) = frames::connect(&process.address()).await.into_split();
    let reading = tokio::spawn(read_to_end(read, quiet));
    drop(write.write_all(&frames.concat()).await);
    let ended = reading.await.unwrap();
    drop(write);
    ended
}

/// Frames of calls that are reset immediately.
fn rapid_resets() -> Vec<Vec<u8>> {
    let headers = headers_of(TRACK);
    let call = |number: u32| {
        let stream = 2 * number + 1;
        [frame(HEADERS, frames::END_HEADERS, stream, &headers), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
    };
    (0..100).flat_map(call).collect()
}

/// Returns the numbers of closed connections in the lines of the log.
fn logged_counts(process: &Process) -> Vec<u64> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.contains("connections were cut"));
    lines
        .map(|line| {
            let number = line.split_once("\"connections\":").expect("the line contains the number").1;
            number.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_log_lines_count_all_connections_closed_for_abuse() {
    let _alone = crate::ALONE.lock().await;
    let process = Process::start(&[]).await;
    let (resets, started) = (rapid_resets(), Instant::now());
    for _ in 0..CONNECTIONS {
        assert!(send_frames(&process, &resets, Duration::from_secs(5)).await.closed);
    }
    let duration = started.elapsed();
    tokio::time::sleep(LINE_EVERY).await;
    assert!(send_frames(&process, &resets, Duration::from_secs(5)).await.closed);
    // A line is written send_frames the connection is closed.
    let deadline = Instant::now() + Duration::from_secs(5);
    while logged_counts(&process).iter().sum::<u64>() < CONNECTIONS + 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let logged_counts = logged_counts(&process);
    println!(
        "{CONNECTIONS} connections cut in {duration:?}, and one more: the log has {} lines: {logged_counts:?}",
        logged_counts.len()
    );
    assert_eq!(logged_counts.iter().sum::<u64>(), CONNECTIONS + 1);
    let lines_max = 2 + (duration.as_secs() / LINE_EVERY.as_secs()) as usize;
    assert!(logged_counts.len() <= lines_max, "{logged_counts:?}");
    assert_eq!(process.stop().await.0, Some(0));
}

/// grpc-go, gRPC's core and Node end the body of every call with an empty frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_many_empty_frames_that_end_no_call_close_a_connection() {
    let _alone = crate::ALONE.lock().await;
    let process = Process::start(&[]).await;
    let headers = headers_of(TRACK);
    let call = |number: u32| {
        let stream = 2 * number + 1;
        [frame(HEADERS, frames::END_HEADERS, stream, &headers), frame(DATA, END_STREAM, stream, &[])]
    };
    let ended = send_frames(&process, &(0..500).flat_map(call).collect::<Vec<_>>(), Duration::from_secs(2)).await;
    assert_eq!(
        (ended.responses, ended.goaway, ended.closed),
        (500, None, false),
        "500 calls that end with an empty frame are allowed"
    );

    let begin = frame(HEADERS, frames::END_HEADERS, 1, &headers_of(STREAM));
    let idle = |count| [vec![begin.clone()], vec![frame(DATA, 0, 1, &[]); count]].concat();
    let ended = send_frames(&process, &idle(100), Duration::from_secs(2)).await;
    assert_eq!((ended.goaway, ended.closed), (None, false), "100 empty frames that end no call are allowed");
    let ended = send_frames(&process, &idle(101), Duration::from_secs(2)).await;
    assert_eq!(
        (ended.goaway, ended.closed),
        (Some(ENHANCE_YOUR_CALM), true),
        "101 empty frames that end no call are abuse"
    );
    assert_eq!(process.stop().await.0, Some(0));
}
