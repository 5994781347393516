//! Messages of the maximum length and longer, and short messages that need much memory.

use crate::harness::*;
use crate::raw;
use bytes::Bytes;
use meterd::proto::*;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const USAGE: &str = "/metering.v1.UsageService";
const MIB: usize = 1024 * 1024;

/// Sends a message and returns the status.
async fn answer(server: &TestServer, path: &str, message: &[u8]) -> Status {
    let mut connection = raw::connect(&server.address).await;
    let mut call = raw::begin(&mut connection, path, &[]);
    if call.send(raw::prefix(message.len() as u32)).await && call.send(Bytes::copy_from_slice(message)).await {
        drop(call.body.send_data(Bytes::new(), true));
    }
    call.status().await
}

/// Extends a valid message to this length with an unknown field.
fn of_length(mut long: Vec<u8>, bytes: usize) -> Vec<u8> {
    prost::encoding::encode_key(2_000, prost::encoding::WireType::LengthDelimited, &mut long);
    // The length of the field, in four bytes.
    let rest = bytes - long.len() - 4;
    long.extend([rest as u8 | 0x80, (rest >> 7) as u8 | 0x80, (rest >> 14) as u8 | 0x80, (rest >> 21) as u8]);
    long.resize(bytes, b'x');
    long
}

#[tokio::test]
async fn each_method_accepts_messages_up_to_its_documented_length() {
    let server = TestServer::start().await;
    let one = || Some(event("acme", "sms", "1"));
    let batch =
        BatchTrackUsageRequest { events: vec![event("acme", "sms", "1")], backfill: false, ..Default::default() };
    let get = GetClientRequest { client_id: "acme".into() };
    let cases = [
        (format!("{USAGE}/TrackUsage"), 1024 * 1024, TrackUsageRequest { event: one() }.encode_to_vec()),
        (format!("{USAGE}/StreamUsage"), 256 * 1024, StreamUsageRequest { event: one() }.encode_to_vec()),
        (format!("{USAGE}/BatchTrackUsage"), 16 * MIB, batch.encode_to_vec()),
        ("/metering.v1.ClientService/GetClient".into(), MIB, get.encode_to_vec()),
        // A caller without credentials.
        ("/grpc.health.v1.Health/Check".into(), 16 * 1024, vec![]),
    ];
    for (path, longest, message) in cases {
        let of_length = |bytes| of_length(message.clone(), bytes);
        assert_eq!(answer(&server, &path, &of_length(longest)).await.code(), Code::Ok, "{path}");
        let status = answer(&server, &path, &of_length(longest + 1)).await;
        assert_eq!(status.code(), Code::OutOfRange, "{path}: {status:?}");
    }
    server.assert_exact(3).await;
    server.stop().await;
}

fn assert_rejected(status: &Status, expected_text: &str) {
    let details = status.get_error_details();
    let violations = &details.bad_request().unwrap_or_else(|| panic!("{status:?}")).field_violations;
    assert_eq!((status.code(), violations.len(), &*violations[0].field), (Code::InvalidArgument, 1, "events"));
    assert!(violations[0].description.contains(expected_text), "{status:?}");
    assert!(!details.error_info().unwrap().metadata["request_id"].is_empty());
}

#[tokio::test]
async fn a_batch_of_eight_million_empty_events_is_rejected() {
    let server = TestServer::start().await;
    let status = answer(&server, &format!("{USAGE}/BatchTrackUsage"), &[0x0a, 0].repeat(8 * MIB)).await;
    assert_rejected(&status, "must be 1 to 10000 events, has 8388608");
    server.stop().await;
}

#[tokio::test]
async fn a_batch_with_more_than_a_million_metadata_values_is_rejected() {
    let server = TestServer::start().await;
    // {"k": [null, …]}: the list counts as a value, too.
    let of = |values: usize| {
        let list = prost_types::ListValue { values: vec![prost_types::Value::default(); values - 1] };
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::ListValue(list)) };
        let metadata = prost_types::Struct { fields: [("k".to_string(), value)].into() };
        let events = vec![UsageEvent { metadata: Some(metadata), ..event("acme", "sms", "1") }];
        BatchTrackUsageRequest { events, backfill: false, ..Default::default() }.encode_to_vec()
    };
    let path = format!("{USAGE}/BatchTrackUsage");
    // In a stream, only the event is rejected.
    assert_eq!(answer(&server, &path, &of(1_000_000)).await.code(), Code::Ok);
    assert_rejected(
        &answer(&server, &path, &of(1_000_001)).await,
        "at most 1000000 values of metadata and measures together, has 1000001",
    );
    server.stop().await;
}
