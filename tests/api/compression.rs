//! Requests and responses with gzip, which many clients use by default.

use crate::bad_calls::gzipped;
use crate::harness::*;
use crate::raw;
use bytes::Bytes;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost::Message;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const MIB: usize = 1024 * 1024;
const USAGE: &str = "/metering.v1.UsageService";

/// Sends a compressed message and returns the status.
async fn answer(server: &TestServer, path: &str, message: &[u8]) -> Status {
    let message = gzipped(message);
    let mut connection = raw::connect(&server.address).await;
    let mut call = raw::begin(&mut connection, path, &[("grpc-encoding", "gzip")]);
    let body = [&[1][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    if call.send(body.into()).await {
        drop(call.body.send_data(Bytes::new(), true));
    }
    call.status().await
}

#[tokio::test]
async fn every_kind_of_call_supports_gzip() {
    let server = TestServer::start().await;
    let mut usage = server.usage().send_compressed(Gzip).accept_compressed(Gzip);
    usage.track_usage(TrackUsageRequest { event: Some(event("acme", "sms", "1")) }).await.unwrap();
    let batch = BatchTrackUsageRequest {
        events: vec![event("acme", "sms", "1"); 2_000],
        backfill: false,
        ..Default::default()
    };
    let answered = usage.batch_track_usage(batch).await.unwrap();
    assert_eq!(answered.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(answered.into_inner().results.len(), 2_000);
    let messages = vec![StreamUsageRequest { event: Some(event("acme", "sms", "1")) }; 1_000];
    let mut acks = usage.stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut settled = 0;
    while let Some(ack) = acks.message().await.unwrap() {
        settled = ack.settled_count;
    }
    assert_eq!(settled, 1_000);
    let page = ListUsageEventsRequest { client_id: "acme".into(), page_size: 1_000, ..Default::default() };
    assert_eq!(usage.list_usage_events(page).await.unwrap().into_inner().events.len(), 1_000);
    let mut export = usage.export_usage(ExportUsageRequest::default()).await.unwrap().into_inner();
    let mut last = 0;
    while let Some(piece) = export.message().await.unwrap() {
        last = piece.event_count;
    }
    assert_eq!(last, 3_001);
    let mut health = HealthClient::new(server.channel()).send_compressed(Gzip).accept_compressed(Gzip);
    health.check(HealthCheckRequest::default()).await.unwrap();
    server.assert_exact(3_001).await;
    server.stop().await;
}

#[tokio::test]
async fn a_response_is_compressed_only_for_callers_that_accept_gzip() {
    let server = TestServer::start().await;
    server.batch(vec![event("acme", "sms", "1"); 1_000], false).await;
    let page = ListUsageEventsRequest { client_id: "acme".into(), page_size: 1_000, ..Default::default() };
    let received = async |accepted: &[(&str, &str)]| {
        let mut connection = raw::connect(&server.address).await;
        let mut call = raw::begin(&mut connection, &format!("{USAGE}/ListUsageEvents"), accepted);
        call.send_all(&page).await;
        let answer = call.answer.await.unwrap();
        let encoding = answer.headers().get("grpc-encoding").map(|value| value.to_str().unwrap().to_string());
        let (mut body, mut bytes) = (answer.into_body(), vec![]);
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend_from_slice(&data);
        }
        (encoding, bytes[0], bytes.len())
    };
    let (encoding, flag, plain) = received(&[]).await;
    assert_eq!((encoding, flag), (None, 0));
    let (encoding, flag, compressed) = received(&[("grpc-accept-encoding", "identity,deflate,gzip")]).await;
    assert_eq!((encoding.as_deref(), flag), (Some("gzip"), 1));
    assert!(compressed * 4 < plain, "{compressed} of {plain} bytes");
    server.stop().await;
}

#[tokio::test]
async fn size_limits_apply_to_decompressed_messages() {
    let server = TestServer::start_with(&["--request-bytes-max=67108864"], Clock::system()).await;
    for (rpc, most) in
        [("TrackUsage", MIB), ("StreamUsage", MIB / 4), ("BatchTrackUsage", 16 * MIB), ("ListUsageEvents", MIB)]
    {
        let path = format!("{USAGE}/{rpc}");
        let status = answer(&server, &path, &vec![0; most + 1]).await;
        assert_eq!(status.code(), Code::OutOfRange, "{rpc}: {status:?}");
    }
    let bomb = vec![0; 64 * MIB];
    assert_eq!(answer(&server, &format!("{USAGE}/TrackUsage"), &bomb).await.code(), Code::OutOfRange);
    // Eight million empty events are counted before they are decoded.
    let status = answer(&server, &format!("{USAGE}/BatchTrackUsage"), &[0x0a, 0].repeat(8 * MIB - 10)).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.get_error_details().bad_request().unwrap().field_violations[0].description.contains("has 8388598"));
    server.stop().await;
}

#[tokio::test]
async fn decompressed_bytes_count_in_the_memory_budget() {
    let server =
        TestServer::start_with(&["--request-bytes-max=67108864", "--request-timeout-seconds=30"], Clock::system())
            .await;
    let mut other = raw::connect(&server.address).await;
    let mut large = raw::begin(&mut other, &format!("{USAGE}/BatchTrackUsage"), &[]);
    assert!(large.send(raw::prefix(16 * MIB as u32)).await && large.send(vec![0; 10 * MIB].into()).await);
    let event = UsageEvent { operation: "x".repeat(15 * MIB), ..event("acme", "sms", "1") };
    let batch = BatchTrackUsageRequest { events: vec![event], backfill: false, ..Default::default() }.encode_to_vec();
    let status = answer(&server, &format!("{USAGE}/BatchTrackUsage"), &batch).await;
    assert_error::<()>(Err(status), Code::ResourceExhausted, "SERVER_BUSY");
    drop(large);
    server.stop().await;
}
