//! Bad events. Each is rejected with a reason and all wrong fields, and changes nothing else.

use crate::harness::*;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{
    BatchTrackUsageRequest, EventOutcome, ListUsageEventsRequest, StreamUsageRequest, TrackUsageRequest, UsageEvent,
};
use meterd_engine::clock::Clock;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp, Value};
use tonic::Code;
use tonic::transport::Channel;

const NOW: &str = "2026-11-21T12:00:00Z";
const INVALID: &str = "INVALID_FIELD";

fn good_event() -> UsageEvent {
    event("acme", "sms", "1")
}

fn metadata(key: &str, kind: Kind) -> Option<Struct> {
    Some(Struct { fields: [(key.to_string(), Value { kind: Some(kind) })].into() })
}

fn at(seconds: i64, nanos: i32) -> UsageEvent {
    UsageEvent { event_time: Some(Timestamp { seconds, nanos }), ..good_event() }
}

/// Returns bad events, each with its reason and its wrong fields.
fn bad_events() -> Vec<(UsageEvent, &'static str, Vec<&'static str>)> {
    let now = time(NOW).timestamp();
    let day = 24 * 60 * 60;
    let long = || "x".repeat(129);
    let mut cases = vec![
        (UsageEvent::default(), INVALID, vec!["client_id", "service"]),
        (event("", "sms", "1"), INVALID, vec!["client_id"]),
        (event(&long(), "sms", "1"), INVALID, vec!["client_id"]),
        (event("a\0b", "sms", "1"), INVALID, vec!["client_id"]),
        (event("a\nb", "sms", "1"), INVALID, vec!["client_id"]),
        (event("a\u{85}b", "sms", "1"), INVALID, vec!["client_id"]),
        (event("acme", &long(), "1"), INVALID, vec!["service"]),
        (event("acme", "s\0ms", "1"), INVALID, vec!["service"]),
        (event("acme", "smss", "1"), "UNKNOWN_SERVICE", vec!["service"]),
        (UsageEvent { operation: long(), ..good_event() }, INVALID, vec!["operation"]),
        (UsageEvent { model: "m\u{7f}".into(), ..good_event() }, INVALID, vec!["model"]),
        (UsageEvent { idempotency_key: long(), ..good_event() }, INVALID, vec!["idempotency_key"]),
        (UsageEvent { idempotency_key: "k\0".into(), ..good_event() }, INVALID, vec!["idempotency_key"]),
        (UsageEvent { subject: long(), ..good_event() }, INVALID, vec!["subject"]),
        (UsageEvent { external_id: "x".repeat(257), ..good_event() }, INVALID, vec!["external_id"]),
        (UsageEvent { input_tokens: -1, ..good_event() }, INVALID, vec!["input_tokens"]),
        (
            UsageEvent { input_tokens: -4, cached_input_tokens: 1, ..good_event() },
            INVALID,
            vec!["input_tokens", "cached_input_tokens"],
        ),
        (UsageEvent { output_tokens: -1, ..good_event() }, INVALID, vec!["output_tokens"]),
        (UsageEvent { output_tokens: 1_000_000_000_001, ..good_event() }, INVALID, vec!["output_tokens"]),
        (UsageEvent { output_tokens: i64::MIN, ..good_event() }, INVALID, vec!["output_tokens"]),
        (UsageEvent { input_tokens: 1, cached_input_tokens: 2, ..good_event() }, INVALID, vec!["cached_input_tokens"]),
        (UsageEvent { cached_input_tokens: -1, ..good_event() }, INVALID, vec!["cached_input_tokens"]),
        (at(now, 1_000_000_000), INVALID, vec!["event_time"]),
        (at(now, -1), INVALID, vec!["event_time"]),
        (at(253_402_300_800, 0), INVALID, vec!["event_time"]),
        (at(-1, 0), INVALID, vec!["event_time"]),
        (at(i64::MAX, i32::MAX), INVALID, vec!["event_time"]),
        (at(now - 35 * day - 1, 0), "EVENT_TOO_OLD", vec!["event_time"]),
        (at(now + 301, 0), "EVENT_IN_FUTURE", vec!["event_time"]),
        (UsageEvent { units: "NaN".into(), ..at(now + 301, 0) }, INVALID, vec!["units", "event_time"]),
        (UsageEvent { units: "NaN".into(), ..at(now - 36 * day, 0) }, INVALID, vec!["units", "event_time"]),
    ];
    let not_finite = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(Kind::NumberValue);
    let nested = Kind::StructValue(metadata("in", Kind::StringValue("a\0b".into())).unwrap());
    let texts = [Kind::StringValue("a\0b".into()), Kind::StringValue("x".repeat(8 * 1024)), nested];
    for kind in not_finite.into_iter().chain(texts) {
        cases.push((UsageEvent { metadata: metadata("k", kind), ..good_event() }, INVALID, vec!["metadata"]));
    }
    let nul_key = metadata("a\0b", Kind::BoolValue(true));
    cases.push((UsageEvent { metadata: nul_key, ..good_event() }, INVALID, vec!["metadata"]));
    let rounds_up = "999999999999999.9999999999995";
    for number in ["NaN", "inf", "-inf", "1e400", "-1", rounds_up, "1000000000000000", "+1", " 1", "1,5", "٣", "1."] {
        cases.push((event("acme", "sms", number), INVALID, vec!["units"]));
        cases.push((UsageEvent { amount: number.into(), ..good_event() }, INVALID, vec!["amount"]));
    }
    cases
}

async fn track(usage: &mut UsageServiceClient<Channel>, event: UsageEvent) -> Result<(), tonic::Status> {
    usage.track_usage(TrackUsageRequest { event: Some(event) }).await.map(drop)
}

async fn server() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

#[tokio::test]
async fn each_bad_event_is_rejected_with_its_reason_and_fields() {
    let server = server().await;
    let mut usage = server.usage();
    for (event, reason, fields) in bad_events() {
        let fields: Vec<String> = fields.iter().map(|field| format!("event.{field}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        assert_invalid(track(&mut usage, event).await, reason, &fields);
    }
    assert_invalid(
        usage.track_usage(TrackUsageRequest { event: None }).await,
        INVALID,
        &["event.client_id", "event.service"],
    );
    track(&mut usage, good_event()).await.unwrap();
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn ids_with_invisible_characters_are_rejected_with_the_fix() {
    let server = server().await;
    server.track(event("a17", "sms", "1")).await.unwrap();
    let cases = [
        (" a17", "must not begin or end with a blank"),
        ("a17 ", "must not begin or end with a blank"),
        ("a17\u{200b}", "U+200B"),
        ("\u{feff}a17", "U+FEFF"),
        ("a\u{a0}17", "U+00A0"),
        ("a17\u{202e}", "U+202E"),
        ("a17\t", "U+0009"),
    ];
    for (client_id, rule) in cases {
        let status = server.track(event(client_id, "sms", "1")).await.unwrap_err();
        assert!(status.message().starts_with("event.client_id: ") && status.message().contains(rule), "{status}");
        type Named = (&'static str, fn(String) -> UsageEvent);
        let fields: [Named; 6] = [
            ("service", |id| event("a17", &id, "1")),
            ("operation", |id| UsageEvent { operation: id, ..event("a17", "sms", "1") }),
            ("model", |id| UsageEvent { model: id, ..event("a17", "sms", "1") }),
            ("subject", |id| UsageEvent { subject: id, ..event("a17", "sms", "1") }),
            ("idempotency_key", |id| UsageEvent { idempotency_key: id, ..event("a17", "sms", "1") }),
            ("external_id", |id| UsageEvent { external_id: id, ..event("a17", "sms", "1") }),
        ];
        for (field, event) in fields {
            assert_invalid(server.track(event(client_id.into())).await, INVALID, &[&format!("event.{field}")]);
        }
    }
    let inside = event("a 17", "sms", "1");
    server.track(inside).await.unwrap();
    assert_eq!(server.sql("SELECT FROM clients").await, 2);
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn names_that_an_older_release_accepted_can_be_read() {
    let server = server().await;
    server.track(event("a17", "sms", "1")).await.unwrap();
    server.run_job("pending_usage").await;
    for table in ["clients", "usage_events", "idempotency_keys", "usage_days", "usage_month_services", "usage_months"] {
        server.sql(&format!("UPDATE {table} SET client_id = ' a17'")).await;
    }
    assert_eq!(server.month(" a17").await.totals.unwrap().request_count, 1);
    server.assert_exact(1).await;
    server.stop().await;
}

/// Returns the maximum nesting depth of messages in encoded bytes, as far as messages can be distinguished from texts.
fn depth(bytes: &[u8]) -> usize {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        prost::encoding::decode_varint(bytes).ok()
    }
    let (mut rest, mut deepest) = (bytes, 0);
    while !rest.is_empty() {
        let Some(tag) = varint(&mut rest) else { return 0 };
        match tag & 7 {
            0 if varint(&mut rest).is_some() => {}
            1 if rest.len() >= 8 => rest = &rest[8..],
            2 => match varint(&mut rest).and_then(|length| rest.split_at_checked(length as usize)) {
                Some((field, after)) => {
                    deepest = deepest.max(depth(field));
                    rest = after;
                }
                None => return 0,
            },
            _ => return 0,
        }
    }
    deepest + 1
}

#[tokio::test]
async fn the_deepest_metadata_can_be_read_by_every_client_library() {
    let server = server().await;
    let deep = |levels: usize| {
        let value = |kind| Value { kind: Some(kind) };
        let inner = (1..levels).fold(value(Kind::BoolValue(true)), |inner, _| {
            value(Kind::StructValue(Struct { fields: [("k".to_string(), inner)].into() }))
        });
        Some(Struct { fields: [("k".to_string(), inner)].into() })
    };
    server.track(UsageEvent { metadata: deep(16), ..good_event() }).await.unwrap();
    for levels in [17, 30] {
        let status = server.track(UsageEvent { metadata: deep(levels), ..good_event() }).await.unwrap_err();
        assert!(status.message().contains("at most 16 levels"), "{status}");
        assert_invalid::<()>(Err(status), INVALID, &["event.metadata"]);
    }
    let request = ListUsageEventsRequest { client_id: "acme".into(), ..Default::default() };
    let answer = server.usage().list_usage_events(request).await.unwrap().into_inner();
    assert_eq!(answer.events[0].event.as_ref().unwrap().metadata, deep(16));
    // Libraries read at most 100 nested messages.
    let deepest = depth(&answer.encode_to_vec());
    assert!((48..=60).contains(&deepest), "{deepest}");
    server.stop().await;
}

#[tokio::test]
async fn an_event_with_values_at_their_limits_is_accepted() {
    let server = server().await;
    let now = time(NOW).timestamp();
    let longest = "x".repeat(128);
    let text_of = |bytes: usize| metadata("k", Kind::StringValue("x".repeat(bytes - r#"{"k":""}"#.len())));
    let events = [
        UsageEvent { operation: longest.clone(), idempotency_key: longest.clone(), ..event(&longest, "sms", "0") },
        UsageEvent { external_id: "x".repeat(256), subject: longest, ..good_event() },
        event("acme", "api_call", "999999999999999.999999999999"),
        UsageEvent { input_tokens: 1_000_000_000_000, cached_input_tokens: 1_000_000_000_000, ..good_event() },
        UsageEvent { metadata: text_of(8 * 1024), ..good_event() },
        at(now - 35 * 24 * 60 * 60, 999_999_999),
        at(now + 300, 0),
    ];
    let count = events.len() as i64;
    let results = server.batch(events.into(), false).await;
    assert!(results.iter().all(|result| result.outcome() == EventOutcome::Accepted), "{results:?}");
    let one_more = UsageEvent { metadata: text_of(8 * 1024 + 1), ..good_event() };
    assert_invalid(server.track(one_more).await, INVALID, &["event.metadata"]);
    server.assert_exact(count).await;
    server.stop().await;
}

#[tokio::test]
async fn a_batch_rejects_only_its_bad_events() {
    let server = server().await;
    let cases = bad_events();
    // Good events before, between and after the bad ones.
    let mut events = vec![good_event()];
    events.extend(cases.iter().flat_map(|(bad, ..)| [bad.clone(), good_event()]));
    let results = server.batch(events, false).await;
    for (index, (_, reason, fields)) in cases.iter().enumerate() {
        let at = index * 2 + 1;
        assert_eq!(results[at - 1].outcome(), EventOutcome::Accepted);
        assert_eq!(results[at].outcome(), EventOutcome::Rejected, "{reason} {fields:?}");
        let error = results[at].error.as_ref().unwrap();
        let mut wrong: Vec<&str> = error.field_violations.iter().map(|violation| &*violation.field).collect();
        wrong.dedup();
        let expected: Vec<String> = fields.iter().map(|field| format!("events[{at}].{field}")).collect();
        assert_eq!((error.code, &*error.reason), (Code::InvalidArgument as i32, *reason));
        assert_eq!((wrong, error.retry_delay_ms), (expected.iter().map(String::as_str).collect(), 0));
    }
    server.assert_exact(cases.len() as i64 + 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_rejects_only_its_bad_events() {
    let server = server().await;
    let cases = bad_events();
    let mut messages: Vec<_> = cases.iter().map(|(bad, ..)| StreamUsageRequest { event: Some(bad.clone()) }).collect();
    messages.push(StreamUsageRequest { event: None });
    messages.push(StreamUsageRequest { event: Some(good_event()) });
    let count = messages.len() as i64;
    let mut acks = server.usage().stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let (mut settled, mut results) = (0, vec![]);
    while let Some(ack) = acks.message().await.unwrap() {
        settled = ack.settled_count;
        results.extend(ack.results);
    }
    assert_eq!((settled, results.len()), (count, cases.len() + 1));
    for (index, (_, reason, fields)) in cases.iter().enumerate() {
        assert_eq!(results[index].message_number, index as i64 + 1);
        let result = results[index].result.as_ref().unwrap();
        let error = result.error.as_ref().unwrap();
        let mut wrong: Vec<&str> = error.field_violations.iter().map(|violation| &*violation.field).collect();
        wrong.dedup();
        let expected: Vec<String> = fields.iter().map(|field| format!("event.{field}")).collect();
        assert_eq!((result.outcome(), &*error.reason), (EventOutcome::Rejected, *reason));
        assert_eq!(wrong, expected);
    }
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn all_wrong_fields_of_an_event_are_reported_at_once() {
    let server = server().await;
    let result = server.track(event_with_many_wrong_fields()).await;
    let fields = [
        "client_id",
        "service",
        "operation",
        "model",
        "idempotency_key",
        "subject",
        "external_id",
        "service_tier",
        "labels",
        "input_tokens",
        "output_tokens",
        "cached_input_tokens",
        "measures",
        "units",
        "amount",
        "reported_cost",
        "metadata",
        "event_time",
    ];
    let fields = fields.map(|field| format!("event.{field}"));
    assert_invalid(result, INVALID, &fields.each_ref().map(String::as_str));
    server.stop().await;
}

fn event_with_many_wrong_fields() -> UsageEvent {
    UsageEvent {
        client_id: String::new(),
        service: "x".repeat(200),
        operation: "x\0".into(),
        model: "x\0".into(),
        units: "NaN".into(),
        input_tokens: -1,
        output_tokens: -1,
        cached_input_tokens: -1,
        amount: "-1".into(),
        event_time: Some(Timestamp { seconds: -1, nanos: -1 }),
        idempotency_key: "x\0".into(),
        subject: "x\0".into(),
        external_id: "x\0".into(),
        metadata: metadata("k", Kind::NumberValue(f64::NAN)),
        service_tier: "x\0".into(),
        measures: [("x\0".into(), "NaN".into())].into(),
        reported_cost: "-1".into(),
        labels: [("x\0".into(), "x".into())].into(),
    }
}

#[tokio::test]
async fn ten_thousand_events_with_many_wrong_fields_get_a_result_each() {
    let server = server().await;
    let mut events = vec![event_with_many_wrong_fields(); 10_000];
    events[5_000] = good_event();
    let results = server.batch(events, false).await;
    assert_eq!(results[5_000].outcome(), EventOutcome::Accepted);
    assert_eq!(results.iter().filter(|result| result.outcome() == EventOutcome::Rejected).count(), 9_999);
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn one_bad_event_of_ten_thousand_does_not_affect_the_others() {
    let server = server().await;
    let mut events = vec![good_event(); 10_000];
    events[7_777].units = "1e400".into();
    let request = BatchTrackUsageRequest { events, backfill: false, ..Default::default() };
    let response = server.usage().batch_track_usage(request).await.unwrap().into_inner();
    assert_eq!((response.accepted_count, response.duplicate_count, response.failed_count), (9_999, 0, 1));
    assert_eq!(response.results[7_777].outcome(), EventOutcome::Rejected);
    server.assert_exact(9_999).await;
    server.stop().await;
}

#[tokio::test]
async fn an_empty_or_too_large_batch_is_rejected() {
    let server = server().await;
    let mut usage = server.usage();
    for count in [0, 10_001] {
        let request =
            BatchTrackUsageRequest { events: vec![good_event(); count], backfill: false, ..Default::default() };
        assert_invalid(usage.batch_track_usage(request).await, INVALID, &["events"]);
    }
    track(&mut usage, good_event()).await.unwrap();
    server.assert_exact(1).await;
    server.stop().await;
}
