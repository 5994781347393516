//! Callers with and without a key that try to block the other callers of a server that requires keys.

use crate::bystander::assert_survives;
use crate::calls::{h2_connect, result_of, send, tally};
use crate::frames;
use crate::process::{Authorized, BearerToken, Process};
use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::SendRequest;
use meterd::proto::key_service_client::KeyServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const TRACK: &str = "/metering.v1.UsageService/TrackUsage";
const LIST_PRICES: &str = "/metering.v1.CatalogService/ListPrices";
const LIST_EVENTS: &str = "/metering.v1.UsageService/ListUsageEvents";
const SUBSCRIBE: &str = "/metering.v1.AlertService/SubscribeAlerts";
const EXPORT: &str = "/metering.v1.UsageService/ExportUsage";
const STREAM: &str = "/metering.v1.UsageService/StreamUsage";
/// Duration of an abuse.
const ABUSE_TIME: Duration = Duration::from_secs(5);

/// Low limits, so that the tests reach them quickly.
const FLAGS: [&str; 6] = [
    "--request-bytes-max=67108864",
    "--answer-bytes-max=134217728",
    "--request-timeout-seconds=5",
    "--unread-timeout-seconds=3",
    "--calls-max=4000",
    "--streams-max=4000",
];

fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
}

async fn connect_unread(address: &str) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// Sends headers of calls and never a message. Returns the results of the calls that ended.
async fn headers_only(address: &str, connections: usize, path: &str, authorization: &str) -> String {
    let connections = (0..connections).map(async |_| {
        let mut sender = h2_connect(address).await;
        let mut calls = vec![];
        for _ in 0..1_000 {
            calls.push(send(&mut sender, path, &[("authorization", authorization)], Bytes::new()).await);
        }
        let ends = calls.into_iter().map(async |(answer, _body)| {
            timeout(ABUSE_TIME, result_of(answer)).await.unwrap_or_else(|_| "waits".into())
        });
        join_all(ends).await
    });
    tally(join_all(connections).await.into_iter().flatten())
}

/// Returns the status code of a call whose response is not read.
async fn end_unread(answer: h2::client::ResponseFuture) -> String {
    let end = async {
        let answer = answer.await?;
        if let Some(status) = Status::from_header_map(answer.headers()) {
            return Ok(Some(status));
        }
        let trailers = answer.into_body().trailers().await?;
        Ok::<_, h2::Error>(trailers.as_ref().and_then(Status::from_header_map))
    };
    match timeout(2 * ABUSE_TIME, end).await {
        Ok(Ok(Some(status))) => format!("{:?}", status.code()),
        Ok(Ok(None)) => "no status".into(),
        Ok(Err(error)) => format!("{error}"),
        Err(_) => "waits".into(),
    }
}

/// Sends the same call many times without reading any response.
async fn unread(address: &str, connections: usize, calls: usize, path: &str, token: &str, message: &Bytes) -> String {
    let authorization = format!("Bearer {token}");
    let headers: &[(&str, &str)] = if token.is_empty() { &[] } else { &[("authorization", &authorization)] };
    let connections = (0..connections).map(async |_| {
        let mut sender = connect_unread(address).await;
        let mut ends = vec![];
        for _ in 0..calls {
            let (answer, mut body) = send(&mut sender, path, headers, message.clone()).await;
            drop(body.send_data(Bytes::new(), true));
            ends.push(end_unread(answer));
        }
        join_all(ends).await
    });
    tally(join_all(connections).await.into_iter().flatten())
}

fn allow_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

fn usage_as(process: &Process, token: &str) -> UsageServiceClient<Authorized> {
    UsageServiceClient::with_interceptor(process.channel(), BearerToken(token.into()))
        .max_encoding_message_size(16 << 20)
}

/// Records events that fill a page of eight megabytes.
async fn fill(process: &Process, token: &str) {
    let kind = prost_types::value::Kind::StringValue("x".repeat(8_000));
    let metadata = prost_types::Struct { fields: [("k".into(), prost_types::Value { kind: Some(kind) })].into() };
    let event = UsageEvent {
        client_id: "large".into(),
        service: "sms".into(),
        units: "1".into(),
        metadata: Some(metadata),
        ..Default::default()
    };
    let batch = BatchTrackUsageRequest { events: vec![event; 1_000], backfill: false, ..Default::default() };
    usage_as(process, token).batch_track_usage(batch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_a_key_cannot_block_others() {
    let _alone = crate::ALONE.lock().await;
    allow_files();
    let (process, _) = Process::start_with_keys(&FLAGS).await;
    let process = Arc::new(process);
    assert_survives(&process, "10 × 1,000 health checks of headers only", async |address: String| {
        headers_only(&address, 10, CHECK, "").await
    })
    .await;
    assert_survives(&process, "10 × 1,000 calls with a bad key, headers only", async |address: String| {
        headers_only(&address, 10, TRACK, "Bearer mtr_bad").await
    })
    .await;
    let health = framed(&HealthCheckRequest::default());
    assert_survives(&process, "10 × 1,000 health checks, answers unread", async |address: String| {
        unread(&address, 10, 1_000, CHECK, "", &health).await
    })
    .await;
    assert_survives(&process, "a connection with 1,000 health watches", async |address: String| {
        watches(&address, 1, 1_000, &process, &health).await
    })
    .await;
    assert_survives(&process, "100 connections with 16 health watches each", async |address: String| {
        watches(&address, 100, 16, &process, &health).await
    })
    .await;
    assert_eq!(process.stop().await.0, Some(0));
}

/// Opens health watches, and checks that other callers can still start one and list the services.
async fn watches(address: &str, connections: usize, each: usize, process: &Process, health: &Bytes) -> String {
    let mut open = vec![];
    let mut answers = vec![];
    for _ in 0..connections {
        let mut sender = h2_connect(address).await;
        for _ in 0..each {
            let (answer, mut body) = send(&mut sender, WATCH, &[], health.clone()).await;
            drop(body.send_data(Bytes::new(), true));
            let answer = answer.await.unwrap();
            answers.push(
                Status::from_header_map(answer.headers())
                    .map_or("watches".into(), |status| format!("{:?}", status.code())),
            );
            open.push((answer, sender.clone()));
        }
    }
    let mut other = HealthClient::new(process.channel());
    let mut watch = other.watch(HealthCheckRequest::default()).await.expect("other callers can watch").into_inner();
    watch.message().await.unwrap().unwrap();
    process.list_services().await.expect("other callers can list the services");
    tally(answers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_a_key_cannot_block_other_keys() {
    let _alone = crate::ALONE.lock().await;
    allow_files();
    let (process, hot) = Process::start_with_keys(&FLAGS).await;
    fill(&process, &hot).await;
    let process = Arc::new(process);
    let prices = framed(&ListPricesRequest::default());
    assert_survives(&process, "101 × 100 ListPrices, unread", async |address: String| {
        unread(&address, 101, 100, LIST_PRICES, &hot, &prices).await
    })
    .await;
    let page = framed(&ListUsageEventsRequest { client_id: "large".into(), page_size: 1_000, ..Default::default() });
    assert_survives(&process, "4 × 100 ListUsageEvents of 8 MB, unread", async |address: String| {
        unread(&address, 4, 100, LIST_EVENTS, &hot, &page).await
    })
    .await;
    let subscribe = framed(&SubscribeAlertsRequest::default());
    assert_survives(&process, "101 × 100 SubscribeAlerts, unread", async |address: String| {
        unread(&address, 101, 100, SUBSCRIBE, &hot, &subscribe).await
    })
    .await;
    let export = framed(&ExportUsageRequest::default());
    assert_survives(&process, "10 × 10 ExportUsage, unread", async |address: String| {
        unread(&address, 10, 10, EXPORT, &hot, &export).await
    })
    .await;
    let event = UsageEvent { client_id: "hot".into(), service: "sms".into(), units: "x".into(), ..Default::default() };
    let event = framed(&StreamUsageRequest { event: Some(event) });
    assert_survives(&process, "101 × 100 StreamUsage, unread", async |address: String| {
        unread(&address, 101, 100, STREAM, &hot, &event).await
    })
    .await;
    assert_survives(&process, "10 × 1,000 TrackUsage of headers only", async |address: String| {
        headers_only(&address, 10, TRACK, &format!("Bearer {hot}")).await
    })
    .await;
    assert_eq!(process.stop().await.0, Some(0));
}

/// Creates another key.
async fn key(process: &Process, admin: &str, number: usize) -> String {
    let grant = Grant { scope: Scope::Admin.into(), all_clients: true, client_ids: vec![] };
    let api_key = ApiKey {
        name: format!("greedy {number}"),
        grants: vec![grant],
        requests_per_second: 1_000_000,
        ..Default::default()
    };
    let request = CreateApiKeyRequest { api_key: Some(api_key), request_id: String::new() };
    let mut keys = KeyServiceClient::with_interceptor(process.channel(), BearerToken(admin.into()));
    keys.create_api_key(request).await.unwrap().into_inner().token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_greedy_keys_leave_room_for_others() {
    let _alone = crate::ALONE.lock().await;
    allow_files();
    let flags: Vec<&str> =
        FLAGS.into_iter().filter(|flag| !flag.starts_with("--calls-max")).chain(["--calls-max=1000"]).collect();
    let (process, admin) = Process::start_with_keys(&flags).await;
    let mut tokens = vec![];
    for number in 0..20 {
        tokens.push(key(&process, &admin, number).await);
    }
    let process = Arc::new(process);
    let prices = framed(&ListPricesRequest::default());
    assert_survives(&process, "20 keys × 4 × 100 ListPrices, unread", async |address: String| {
        let (address, prices) = (address.as_str(), &prices);
        let greedy = tokens.iter().map(|token| unread(address, 4, 100, LIST_PRICES, token, prices));
        tally(join_all(greedy).await)
    })
    .await;
    let subscribe = framed(&SubscribeAlertsRequest::default());
    assert_survives(&process, "20 keys × 3 × 100 SubscribeAlerts, unread", async |address: String| {
        let (address, subscribe) = (address.as_str(), &subscribe);
        let greedy = tokens.iter().map(|token| unread(address, 3, 100, SUBSCRIBE, token, subscribe));
        tally(join_all(greedy).await)
    })
    .await;
    assert_eq!(process.stop().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_leave_room_for_connections_with_calls() {
    let _alone = crate::ALONE.lock().await;
    allow_files();
    let flags: Vec<&str> = FLAGS.into_iter().chain(["--inbound-connections-max=200"]).collect();
    let (process, _) = Process::start_with_keys(&flags).await;
    let process = Arc::new(process);
    let health = framed(&HealthCheckRequest::default());
    assert_survives(&process, "400 connections that never call", async |address: String| {
        let mut idle = vec![];
        for _ in 0..200 {
            idle.push(TcpStream::connect(&address).await.unwrap());
            idle.push(frames::connect(&address).await);
            // If they are opened faster than the server accepts them, they exist only for their callers.
            sleep(Duration::from_millis(2)).await;
        }
        sleep(ABUSE_TIME).await;
        format!("{} opened", idle.len())
    })
    .await;
    assert_survives(&process, "400 connections with a health watch each", async |address: String| {
        let mut open = vec![];
        for _ in 0..400 {
            let mut sender = h2_connect(&address).await;
            let (answer, mut body) = send(&mut sender, WATCH, &[], health.clone()).await;
            drop(body.send_data(Bytes::new(), true));
            open.push((timeout(ABUSE_TIME, answer).await, sender));
            sleep(Duration::from_millis(2)).await;
        }
        sleep(ABUSE_TIME).await;
        format!("{} opened", open.len())
    })
    .await;
    let log = process.log();
    let lines = log.lines().filter(|line| line.contains("all connections are taken")).count();
    println!("{lines} lines of the log tell of it");
    assert!((1..20).contains(&lines), "{lines} lines");
    assert_eq!(process.stop().await.0, Some(0));
}
