//! Recording of single events, batches and streams, and repeated events.

use crate::harness::*;
use meterd::proto::{EventOutcome, GetCurrentMonthUsageRequest, StreamUsageRequest, UsageEvent};
use meterd_engine::clock::Clock;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Code;

const NOW: &str = "2026-11-21T12:00:00Z";

#[tokio::test]
async fn an_event_with_few_fields_is_charged() {
    let server = TestServer::start().await;
    let result = server.track(event("acme", "twilio_sms", "3")).await.unwrap();
    assert_eq!(result.outcome(), EventOutcome::Accepted);
    assert_eq!(result.charge.unwrap().amount, "0.0237");
    assert!(!result.event_id.is_empty() && !result.idempotency_key.is_empty() && !result.price_id.is_empty());
    let request = GetCurrentMonthUsageRequest { client_id: "acme".into(), ..Default::default() };
    let month = server.usage().get_current_month_usage(request).await.unwrap().into_inner();
    let totals = month.totals.unwrap();
    assert_eq!((totals.request_count, totals.units.as_str()), (1, "3"));
    assert_eq!(totals.cost.unwrap().amount, "0.0237");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_key_is_a_duplicate_or_a_conflict_if_the_payload_differs() {
    let server = TestServer::start().await;
    let event_with_key = UsageEvent { idempotency_key: "k1".into(), ..event("acme", "sms", "2") };
    let first = server.track(event_with_key.clone()).await.unwrap();
    let again = server.track(UsageEvent { units: "2.0".into(), ..event_with_key.clone() }).await.unwrap();
    assert_eq!(again.outcome(), EventOutcome::Duplicate);
    assert_eq!((&again.event_id, again.event_time, &again.charge), (&first.event_id, first.event_time, &first.charge));
    let conflict = server.track(UsageEvent { units: "3".into(), ..event_with_key.clone() }).await.unwrap_err();
    assert_eq!(conflict.code(), Code::AlreadyExists);
    let other_client = server.track(UsageEvent { client_id: "other".into(), ..event_with_key }).await.unwrap();
    assert_eq!(other_client.outcome(), EventOutcome::Accepted);
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_known_key_is_a_duplicate_although_its_event_is_too_old() {
    let clock = Clock::fixed(time("2026-11-21T12:00:00Z"));
    let server = TestServer::start_with(&[], clock.clone()).await;
    let event_with_key = UsageEvent {
        idempotency_key: "k1".into(),
        event_time: Some(timestamp("2026-11-20T00:00:00Z")),
        ..event("acme", "sms", "1")
    };
    server.track(event_with_key.clone()).await.unwrap();
    clock.set(time("2027-03-01T12:00:00Z"));
    assert_eq!(server.track(event_with_key.clone()).await.unwrap().outcome(), EventOutcome::Duplicate);
    let new = server.track(UsageEvent { idempotency_key: "k2".into(), ..event_with_key }).await.unwrap_err();
    assert_eq!(new.code(), Code::InvalidArgument);
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_too_old_event_of_an_unknown_client_does_not_affect_others() {
    let server = TestServer::start_with(&["--writers", "1"], Clock::fixed(time(NOW))).await;
    let event_with_key = |key: &str, event: UsageEvent| UsageEvent { idempotency_key: key.into(), ..event };
    let old = event_with_key("k1", event_at("stranger", "sms", "1", "2026-09-01T00:00:00Z"));
    let results = server.batch(vec![old.clone(), event_with_key("k2", event("acme", "sms", "1"))], false).await;
    assert_eq!(results[0].error.as_ref().unwrap().reason, "EVENT_TOO_OLD");
    assert_eq!(results[1].outcome(), EventOutcome::Accepted);
    assert_invalid(server.track(old).await, "EVENT_TOO_OLD", &["event.event_time"]);
    assert_eq!(server.sql("SELECT FROM clients WHERE client_id = 'stranger'").await, 0);
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_known_key_is_a_duplicate_although_its_event_is_ahead_of_the_clock() {
    let ahead = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let behind = Clock::fixed(time("2026-11-21T11:00:00Z"));
    let behind = TestServer::replica(&ahead.database_url, &[], behind).await;
    let event_with_key =
        UsageEvent { idempotency_key: "k1".into(), ..event_at("acme", "sms", "1", "2026-11-21T12:00:00Z") };
    let first = ahead.track(event_with_key.clone()).await.unwrap();
    let again = behind.track(event_with_key.clone()).await.unwrap();
    assert_eq!((again.outcome(), again.event_id), (EventOutcome::Duplicate, first.event_id));
    assert_invalid(
        behind.track(UsageEvent { idempotency_key: "k2".into(), ..event_with_key }).await,
        "EVENT_IN_FUTURE",
        &["event.event_time"],
    );
    ahead.assert_exact(1).await;
    behind.stop().await;
    ahead.stop().await;
}

#[tokio::test]
async fn a_stream_acknowledges_in_order_and_lists_other_results_than_accepted() {
    let server = TestServer::start().await;
    let events = (0..2_500).map(|number| {
        let units = if number == 100 { "NaN" } else { "1" };
        // Event 200 repeats event 199.
        let key = if number == 200 { 199 } else { number };
        StreamUsageRequest {
            event: Some(UsageEvent { idempotency_key: format!("k{key}"), ..event("acme", "sms", units) }),
        }
    });
    let mut acks =
        server.usage().stream_usage(tokio_stream::iter(events.collect::<Vec<_>>())).await.unwrap().into_inner();
    let (mut settled, mut results) = (0, vec![]);
    while let Some(ack) = acks.message().await.unwrap() {
        assert!(ack.settled_count > settled, "settled_count must increase");
        settled = ack.settled_count;
        results.extend(ack.results);
    }
    assert_eq!(settled, 2_500);
    let listed: Vec<_> =
        results.iter().map(|result| (result.message_number, result.result.as_ref().unwrap().outcome())).collect();
    assert_eq!(listed, [(101, EventOutcome::Rejected), (201, EventOutcome::Duplicate)]);
    server.assert_exact(2_498).await;
    server.stop().await;
}

#[tokio::test]
async fn a_quantity_with_too_many_decimals_is_rounded_and_the_rounded_value_returned() {
    let server = TestServer::start().await;
    let cases = [
        ("0.08333333333333333", Some("0.083333333333")),
        ("0.30000000000000004", Some("0.3")),
        ("0.1000000000000000055511151231257827021181583404541015625", Some("0.1")),
        ("2.0000000000005", Some("2")),
        ("2.0000000000015", Some("2.000000000002")),
        ("2.500000000000000", None),
    ];
    for (number, (sent, recorded)) in cases.into_iter().enumerate() {
        let fields = |fields: &[&str]| {
            recorded
                .iter()
                .flat_map(|value| fields.iter().map(|field| (field.to_string(), value.to_string())))
                .collect()
        };
        let event =
            UsageEvent { idempotency_key: format!("k{number}"), amount: sent.into(), ..event("acme", "sms", sent) };
        let first = server.track(event.clone()).await.unwrap();
        assert_eq!((first.outcome(), first.rounded), (EventOutcome::Accepted, fields(&["units", "amount"])), "{sent}");
        let again = &server.batch(vec![event.clone()], false).await[0];
        assert_eq!(
            (again.outcome(), &again.rounded),
            (EventOutcome::Duplicate, &fields(&["units", "amount"])),
            "{sent}"
        );
        // The recorded value is a duplicate, too, because an export may be imported again.
        let plain = recorded.unwrap_or(sent).to_string();
        let plain = UsageEvent { units: plain.clone(), amount: plain, ..event };
        let plain = server.track(plain).await.unwrap();
        assert_eq!((plain.outcome(), plain.rounded.len()), (EventOutcome::Duplicate, 0), "{sent}");
    }
    let rounded = UsageEvent { units: "0.1000000000000001".into(), ..event("acme", "sms", "") };
    let messages = [rounded, event("acme", "sms", "1")].map(|event| StreamUsageRequest { event: Some(event) });
    let mut acks = server.usage().stream_usage(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut listed = vec![];
    while let Some(ack) = acks.message().await.unwrap() {
        listed.extend(ack.results);
    }
    let result = listed[0].result.as_ref().unwrap();
    assert_eq!((listed.len(), listed[0].message_number, &*result.rounded["units"]), (1, 1, "0.1"));
    assert_eq!(result.outcome(), EventOutcome::Accepted);
    let month = server.month("acme").await.totals.unwrap();
    // 0.083333333333 + 0.3 + 0.1 + 2 + 2.000000000002 + 2.5 + 0.1 + 1
    assert_eq!(month.units, "8.083333333335");
    server.assert_exact(8).await;
    server.stop().await;
}

#[tokio::test]
async fn a_key_twice_in_a_batch_is_a_duplicate_or_a_conflict() {
    let server = TestServer::start_with(&[], Clock::fixed(time(NOW))).await;
    let event_with_key =
        |key: &str, units: &str| UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", units) };
    let results = server
        .batch(
            vec![
                event_with_key("a", "1"),
                event_with_key("b", "1"),
                event_with_key("a", "1.0"),
                event_with_key("a", "2"),
            ],
            false,
        )
        .await;
    use EventOutcome::{Accepted, Conflict, Duplicate};
    assert_eq!(results.iter().map(|r| r.outcome()).collect::<Vec<_>>(), [Accepted, Accepted, Duplicate, Conflict]);
    assert_eq!((&results[2].event_id, &results[2].charge), (&results[0].event_id, &results[0].charge));
    assert_eq!(results[3].event_id, results[0].event_id);
    let error = results[3].error.as_ref().unwrap();
    assert_eq!((error.code, &*error.reason), (Code::AlreadyExists as i32, "IDEMPOTENCY_CONFLICT"));
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn the_same_payload_in_another_format_is_a_duplicate() {
    let server = TestServer::start_with(&[], Clock::fixed(time(NOW))).await;
    let pairs = |order: [(&str, f64); 2]| {
        let value = |number| Value { kind: Some(Kind::NumberValue(number)) };
        Some(Struct { fields: order.map(|(key, number)| (key.to_string(), value(number))).into() })
    };
    let first = UsageEvent {
        idempotency_key: "k".into(),
        amount: "2.50".into(),
        metadata: pairs([("a", 1.0), ("b", 2.5)]),
        ..event("acme", "sms", "1")
    };
    server.track(first.clone()).await.unwrap();
    let metadata = pairs([("b", 2.5), ("a", 1.0)]);
    let respelt = UsageEvent { units: "01.000".into(), amount: "2.5".into(), metadata, ..first.clone() };
    assert_eq!(server.track(respelt).await.unwrap().outcome(), EventOutcome::Duplicate);
    let default_units = UsageEvent { units: String::new(), ..first.clone() };
    assert_eq!(server.track(default_units).await.unwrap().outcome(), EventOutcome::Duplicate);
    let others = [
        UsageEvent { units: "1.000000000001".into(), ..first.clone() },
        UsageEvent { amount: String::new(), ..first.clone() },
        UsageEvent { metadata: pairs([("a", 1.0), ("b", 2.25)]), ..first.clone() },
        UsageEvent { metadata: None, ..first.clone() },
        UsageEvent { subject: "u".into(), ..first.clone() },
        UsageEvent { service: "email".into(), ..first.clone() },
        UsageEvent { event_time: Some(timestamp("2026-11-21T11:59:59Z")), ..first },
    ];
    for other in others {
        assert_error(server.track(other).await, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
    }
    server.assert_exact(1).await;
    server.stop().await;
}
