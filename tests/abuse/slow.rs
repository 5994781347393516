//! Scenarios with slow or idle connections.

use crate::calls::{CONNECTIONS, assert_all_in, h2_connect, message, result_of, send, tally};
use crate::frames::{self, read_to_end};
use bytes::Bytes;
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BATCH: &str = "/metering.v1.UsageService/BatchTrackUsage";
const MIB: usize = 1024 * 1024;

/// Sends one byte after each pause until the connection is closed. Returns whether it was closed.
async fn trickle(mut stream: TcpStream, bytes: &[u8], pause: Duration, at_most: Duration) -> String {
    let started = Instant::now();
    let mut bytes = bytes.iter().cycle();
    while started.elapsed() < at_most {
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

pub async fn slow_headers(address: String) -> String {
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
    assert_all_in(&http1, &["closed"]);
    assert_all_in(&preface, &["closed"]);
    format!("HTTP/1 headers: {}; preface: {}", tally(http1), tally(preface))
}

pub async fn slow_bodies(address: String) -> String {
    let started = message(0, 16 * MIB as u32, &vec![0; MIB]);
    let connections = (0..CONNECTIONS).map(async |_| {
        let mut sender = h2_connect(&address).await;
        let mut calls = vec![];
        for _ in 0..30 {
            calls.push(send(&mut sender, BATCH, &[("grpc-timeout", "99999999S")], started.clone()).await);
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
                answer = result_of(answer) => answer,
                () = trickling => unreachable!("it never ends"),
                () = tokio::time::sleep(Duration::from_secs(15)) => "none".into(),
            }
        });
        join_all(calls).await
    });
    let answers: Vec<_> = join_all(connections).await.into_iter().flatten().collect();
    // Calls with room in the memory budget wait until their deadline. The others are rejected at once.
    assert_all_in(&answers, &["DeadlineExceeded", "ResourceExhausted"]);
    assert!(answers.iter().any(|answer| answer == "DeadlineExceeded"), "no call waited until its deadline");
    tally(answers)
}

pub async fn idle_connections(address: String) -> String {
    let (mut silent, mut started) = (vec![], vec![]);
    for _ in 0..1_000 {
        silent.push(TcpStream::connect(&address).await.unwrap());
        started.push(frames::connect(&address).await);
        // If too many are opened at once, they wait in the kernel, which drops some: those exist only for their
        // callers.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let closed = async |streams: Vec<TcpStream>| {
        let ended = streams.into_iter().map(|stream| read_to_end(stream, Duration::from_secs(15)));
        join_all(ended).await.into_iter().filter(|ended| ended.closed).count()
    };
    let (silent, started) = tokio::join!(closed(silent), closed(started));
    assert_eq!((silent, started), (1_000, 0), "exactly the silent connections are closed");
    format!("of 1,000 silent connections {silent} closed, of 1,000 after the HTTP/2 handshake {started}")
}
