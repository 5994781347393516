//! Batches that are large enough for binary COPY have the same results as single events.

use crate::harness::*;
use meterd::proto::{EventOutcome, ListUsageEventsRequest, RecordedUsageEvent, UsageEvent};
use meterd_engine::clock::Clock;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

const NOW: &str = "2026-11-21T12:00:00Z";
/// Twice the minimum number of events for COPY.
const EVENTS: usize = 100;

/// Returns an event. The fields and the sizes of numbers vary with `number`.
fn varied(client_id: &str, number: usize) -> UsageEvent {
    let units = ["0", "1", "0.000000000001", "999999999999999.999999999999", "10000", "12345.6789", "100000000"];
    let services = ["twilio_sms", "openai", "nobody_priced_this", "payments", "sms"];
    let text = Value { kind: Some(Kind::StringValue("\u{20ac} \"quoted\" \\ and more".into())) };
    let metadata = Struct { fields: [("a".into(), text)].into_iter().collect() };
    UsageEvent {
        operation: ["", "chat_completion"][number % 2].into(),
        model: ["gpt-4o-mini", ""][number % 2].into(),
        input_tokens: [0, 1_000_000_000_000][number % 3 % 2],
        output_tokens: (number % 4) as i64,
        amount: ["", "0.5", "100"][number % 3].into(),
        subject: ["", "user-1"][number % 2].into(),
        external_id: ["order-7", ""][number % 2].into(),
        metadata: number.is_multiple_of(3).then_some(metadata),
        idempotency_key: format!("key-{number}"),
        ..event_at(
            client_id,
            services[number % 5],
            units[number % 7],
            &format!("2026-11-{:02}T23:59:59.999999Z", 1 + number % 20),
        )
    }
}

async fn listed(server: &TestServer, client_id: &str) -> Vec<RecordedUsageEvent> {
    let request = ListUsageEventsRequest { client_id: client_id.into(), page_size: 1_000, ..Default::default() };
    let mut events = server.usage().list_usage_events(request).await.unwrap().into_inner().events;
    events.sort_by_key(|recorded| recorded.event.as_ref().unwrap().idempotency_key.clone());
    for recorded in &mut events {
        recorded.event_id.clear();
        recorded.record_time = None;
        recorded.event.as_mut().unwrap().client_id.clear();
    }
    events
}

async fn start(now: &str) -> TestServer {
    let flags = ["--writers", "1", "--unknown-service", "keep", "--accept-past-days", "60"];
    TestServer::start_with(&flags, Clock::fixed(time(now))).await
}

#[tokio::test]
async fn copied_events_are_recorded_like_single_ones() {
    let server = start(NOW).await;
    let copied = server.batch((0..EVENTS).map(|number| varied("copied", number)).collect(), false).await;
    for (number, copied) in copied.iter().enumerate() {
        let single = server.track(varied("single", number)).await.unwrap();
        assert_eq!((copied.outcome(), &copied.charge), (EventOutcome::Accepted, &single.charge), "event {number}");
    }
    assert_eq!(listed(&server, "copied").await, listed(&server, "single").await);
    let (copied, single) = (server.month("copied").await, server.month("single").await);
    assert_eq!((copied.totals, copied.services), (single.totals, single.services));
    server.assert_exact(2 * EVENTS as i64).await;
    server.stop().await;
}

#[tokio::test]
async fn a_large_batch_with_used_keys_records_the_other_events_once() {
    let server = start(NOW).await;
    let first = server.batch((0..EVENTS).map(|number| varied("acme", number)).collect(), false).await;
    let mut events: Vec<UsageEvent> = (0..2 * EVENTS).map(|number| varied("acme", number)).collect();
    events[7].subject = "somebody else".into();
    // The same key twice in one batch.
    events.push(varied("acme", 2 * EVENTS - 1));
    let second = server.batch(events, false).await;
    for (number, result) in second.iter().enumerate() {
        let expected = match number {
            7 => EventOutcome::Conflict,
            number if number < EVENTS || number == 2 * EVENTS => EventOutcome::Duplicate,
            _ => EventOutcome::Accepted,
        };
        assert_eq!(result.outcome(), expected, "event {number}");
        if number < EVENTS {
            assert_eq!(result.event_id, first[number].event_id, "event {number}");
        }
    }
    server.assert_exact(2 * EVENTS as i64).await;
    server.stop().await;
}
