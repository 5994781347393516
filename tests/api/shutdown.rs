//! A normal stop waits for the server's own work, but not for silent peers.

use crate::harness::*;
use crate::raw;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

/// Far less than the 20 s that a stop may take.
const PROMPT: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_stop_is_fast_with_any_open_connections() {
    let server = TestServer::start().await;
    // No bytes, the beginning of a header, and the HTTP/2 preface without any response to the server.
    let mut silent = vec![];
    for bytes in [&b""[..], b"GET /hea", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        for address in [&server.address, &server.http_address] {
            let mut stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            silent.push(stream);
        }
    }
    // A request whose message does not arrive.
    let mut connection = raw::connect(&server.address).await;
    let mut half = raw::begin(&mut connection, "/metering.v1.UsageService/TrackUsage", &[]);
    half.send(raw::prefix(100)).await;
    // A sender that does not read its many acknowledgements.
    let wrong = StreamUsageRequest { event: Some(UsageEvent { units: "x".repeat(1_000), ..event("acme", "sms", "") }) };
    let endless = futures_util::stream::iter(std::iter::repeat(wrong));
    let unread = server.usage().stream_usage(endless).await.unwrap();
    // A stream of a service that does not know about the stop.
    let mut health = HealthClient::new(server.channel());
    let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    health.message().await.unwrap().unwrap();
    let watching = tokio::spawn(async move {
        loop {
            match health.message().await {
                Ok(Some(_)) => {}
                ended => return ended.unwrap_err(),
            }
        }
    });
    let started = Instant::now();
    server.stop().await;
    let duration = started.elapsed();
    println!("stopped in {duration:?} beside silent and stalled peers");
    assert!(duration < PROMPT, "{duration:?}");
    let ended = watching.await.unwrap();
    let reason = ended.get_details_error_info().map(|info| info.reason);
    assert_eq!((ended.code(), reason.as_deref()), (Code::Unavailable, Some("SHUTTING_DOWN")));
    drop((silent, half, unread));
}

#[tokio::test]
async fn a_call_that_cannot_be_settled_in_time_gets_an_error_before_the_stop() {
    let server = TestServer::start_with(&["--stop-timeout-seconds=3"], Clock::system()).await;
    let stalled = server.stall_writers().await;
    let mut usage = server.usage();
    let request = TrackUsageRequest { event: Some(event("acme", "sms", "1")) };
    let call = tokio::spawn(async move { usage.track_usage(request).await });
    server.wait_for_stalled_writer().await;
    let started = Instant::now();
    let stop = tokio::spawn(server.stop());
    let status = call.await.unwrap().unwrap_err();
    let reason = status.get_details_error_info().map(|info| info.reason);
    assert_eq!((status.code(), reason.as_deref()), (Code::Unavailable, Some("SHUTTING_DOWN")));
    assert!(started.elapsed() > Duration::from_secs(2), "the call must have time to settle");
    stalled.rollback().await.unwrap();
    stop.await.unwrap();
}

#[tokio::test]
async fn a_running_call_is_answered_before_the_stop() {
    let server = TestServer::start().await;
    let stalled = server.stall_writers().await;
    let mut usage = server.usage();
    let request = TrackUsageRequest { event: Some(event("acme", "sms", "1")) };
    let call = tokio::spawn(async move { usage.track_usage(request).await });
    server.wait_for_stalled_writer().await;
    let stop = tokio::spawn(server.stop());
    // Longer than the server waits for a silent peer.
    tokio::time::sleep(Duration::from_secs(4)).await;
    stalled.rollback().await.unwrap();
    let answer = call.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.result.unwrap().outcome(), EventOutcome::Accepted);
    stop.await.unwrap();
}

#[tokio::test]
async fn a_health_watch_sends_not_serving_before_it_ends() {
    let server = TestServer::start().await;
    let mut watches = vec![];
    for service in ["", "metering.v1.UsageService"] {
        let request = HealthCheckRequest { service: service.into() };
        let mut watch = HealthClient::new(server.channel()).watch(request).await.unwrap().into_inner();
        let mut status = watch.message().await.unwrap().unwrap().status();
        while status != ServingStatus::Serving {
            status = watch.message().await.unwrap().unwrap().status();
        }
        watches.push(watch);
    }
    let stopping = tokio::spawn(server.stop());
    for mut watch in watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_error(watch.message().await, Code::Unavailable, "SHUTTING_DOWN");
    }
    stopping.await.unwrap();
}
