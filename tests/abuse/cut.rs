//! Connections that are cut for what their peers did, and what is said of it; and what no connection is cut for.

use crate::frames::{self, DATA, Ended, HEADERS, RST_STREAM, frame, headers_of, read_to_end};
use crate::process::Process;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const STREAM: &str = "/metering.v1.UsageService/StreamUsage";
const CONNECTIONS: u64 = 300;
/// Of one kind, the log has a line so often at most.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// RFC 9113, 7.
const ENHANCE_YOUR_CALM: u32 = 11;
const END_STREAM: u8 = 1;

/// What a connection that sends these frames comes to.
async fn after(process: &Process, frames: &[Vec<u8>], quiet: Duration) -> Ended {
    let (read, mut write) = frames::connect(&process.address()).await.into_split();
    let reading = tokio::spawn(read_to_end(read, quiet));
    drop(write.write_all(&frames.concat()).await);
    let ended = reading.await.unwrap();
    drop(write);
    ended
}

/// Calls that are taken back at once.
fn rapid_resets() -> Vec<Vec<u8>> {
    let headers = headers_of(TRACK);
    let call = |number: u32| {
        let stream = 2 * number + 1;
        [frame(HEADERS, frames::END_HEADERS, stream, &headers), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
    };
    (0..100).flat_map(call).collect()
}

/// The numbers of connections that the lines of the log tell of.
fn told(process: &Process) -> Vec<u64> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.contains("connections were cut"));
    lines
        .map(|line| {
            let number = line.split_once("\"connections\":").expect("how many").1;
            number.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_have_few_lines_in_the_log_which_count_them_all() {
    let _alone = crate::ALONE.lock().await;
    let process = Process::start(&[]).await;
    let (resets, begun) = (rapid_resets(), Instant::now());
    for _ in 0..CONNECTIONS {
        assert!(after(&process, &resets, Duration::from_secs(5)).await.closed);
    }
    let took = begun.elapsed();
    tokio::time::sleep(LINE_EVERY).await;
    assert!(after(&process, &resets, Duration::from_secs(5)).await.closed);
    // A line is written after its connection is closed.
    let deadline = Instant::now() + Duration::from_secs(5);
    while told(&process).iter().sum::<u64>() < CONNECTIONS + 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = told(&process);
    println!("{CONNECTIONS} connections cut in {took:?}, and one more: the log has {} lines: {told:?}", told.len());
    assert_eq!(told.iter().sum::<u64>(), CONNECTIONS + 1);
    let lines_max = 2 + (took.as_secs() / LINE_EVERY.as_secs()) as usize;
    assert!(told.len() <= lines_max, "{told:?}");
    assert_eq!(process.stop().await.0, Some(0));
}

/// An empty frame ends the body of every call of grpc-go, gRPC's core and Node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_frames_cost_a_connection_only_if_there_are_many_that_end_nothing() {
    let _alone = crate::ALONE.lock().await;
    let process = Process::start(&[]).await;
    let headers = headers_of(TRACK);
    let call = |number: u32| {
        let stream = 2 * number + 1;
        [frame(HEADERS, frames::END_HEADERS, stream, &headers), frame(DATA, END_STREAM, stream, &[])]
    };
    let ended = after(&process, &(0..500).flat_map(call).collect::<Vec<_>>(), Duration::from_secs(2)).await;
    assert_eq!((ended.answered, ended.goaway, ended.closed), (500, None, false), "500 calls end by an empty frame");

    let begin = frame(HEADERS, frames::END_HEADERS, 1, &headers_of(STREAM));
    let idle = |count| [vec![begin.clone()], vec![frame(DATA, 0, 1, &[]); count]].concat();
    let ended = after(&process, &idle(100), Duration::from_secs(2)).await;
    assert_eq!((ended.goaway, ended.closed), (None, false), "100 empty frames that end nothing are let pass");
    let ended = after(&process, &idle(101), Duration::from_secs(2)).await;
    assert_eq!((ended.goaway, ended.closed), (Some(ENHANCE_YOUR_CALM), true), "101 are abuse");
    assert_eq!(process.stop().await.0, Some(0));
}
