//! Stops the server while there are idle connections, open streams and peers that do not read.

use crate::frames;
use crate::process::Process;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{StreamUsageRequest, SubscribeAlertsRequest, UsageEvent};
use std::any::Any;
use std::time::Duration;
use tokio::net::TcpStream;

/// Number of stops in a test. To run more: `METERD_TEST_STOPS=100 cargo test --test abuse stop`.
const STOPS: usize = 5;
/// The time that the setting allows, plus the time to close the database and stop PostgreSQL.
const STOPPED_WITHIN: Duration = Duration::from_secs(20 + 5);

fn stops() -> usize {
    std::env::var("METERD_TEST_STOPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STOPS)
}

fn usage_of(units: &str) -> StreamUsageRequest {
    let event =
        UsageEvent { client_id: "acme".into(), service: "sms".into(), units: units.into(), ..Default::default() };
    StreamUsageRequest { event: Some(event) }
}

/// Opens connections and streams that the callers leave open.
async fn leave_open(process: &Process) -> Vec<Box<dyn Any>> {
    let mut open: Vec<Box<dyn Any>> = vec![];
    for _ in 0..10 {
        open.push(Box::new(TcpStream::connect(process.address()).await.unwrap()));
        open.push(Box::new(frames::connect(&process.address()).await));
        let mut alerts = AlertServiceClient::new(process.channel());
        let mut follower = alerts.subscribe_alerts(SubscribeAlertsRequest::default()).await.unwrap().into_inner();
        follower.message().await.unwrap();
        open.push(Box::new((alerts, follower)));
    }
    for number in 0..6 {
        // Half of the callers read the acknowledgements. The others send messages that cause many acknowledgements, and
        // read none.
        let mut usage = UsageServiceClient::new(process.channel());
        let is_stalled = number % 2 == 0;
        let message = usage_of(&if is_stalled { "x".repeat(1_000) } else { "1".into() });
        let mut acks =
            usage.stream_usage(futures_util::stream::iter(std::iter::repeat(message))).await.unwrap().into_inner();
        match is_stalled {
            true => open.push(Box::new((usage, acks))),
            false => open
                .push(Box::new((usage, tokio::spawn(async move { while let Ok(Some(_)) = acks.message().await {} })))),
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_no_longer_than_allowed_if_peers_keep_connections_open() {
    let _alone = crate::ALONE.lock().await;
    let mut process = Process::start(&[]).await;
    let mut duration = vec![];
    for stop in 0..stops() {
        if stop > 0 {
            process.start_again(&[]).await;
        }
        let open = leave_open(&process).await;
        let (code, elapsed) = process.stop().await;
        drop(open);
        assert_eq!(code, Some(0), "the exit code of a normal stop is 0");
        assert!(elapsed < STOPPED_WITHIN, "{elapsed:?}");
        duration.push(elapsed);
    }
    duration.sort_unstable();
    println!(
        "stop × {} with 20 idle connections, 10 subscriptions and 6 usage streams, 3 of them stalled: median {:.2} s, \
         longest {:.2} s",
        duration.len(),
        duration[duration.len() / 2].as_secs_f64(),
        duration[duration.len() - 1].as_secs_f64()
    );
}
