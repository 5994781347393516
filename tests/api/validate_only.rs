//! BatchTrackUsage with `validate_only` returns the real outcome of each event and records nothing.

use crate::harness::*;
use meterd::proto::{BatchTrackUsageRequest, BatchTrackUsageResponse, EventOutcome, UsageEvent};
use meterd_engine::clock::Clock;

async fn validate(server: &TestServer, events: Vec<UsageEvent>) -> BatchTrackUsageResponse {
    let request = BatchTrackUsageRequest { events, validate_only: true, ..Default::default() };
    server.usage().batch_track_usage(request).await.unwrap().into_inner()
}

fn event_with_key(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Returns events with every kind of outcome: new, unpriced, recorded before, conflicting, and four invalid ones.
fn events() -> Vec<UsageEvent> {
    vec![
        event_with_key("new", event("acme", "twilio_sms", "3")),
        event_with_key(
            "unpriced",
            UsageEvent { model: "no-such-model".into(), input_tokens: 5, ..event("acme", "openai", "") },
        ),
        event_with_key("known", event("acme", "twilio_sms", "2")),
        event_with_key("taken", event("acme", "twilio_sms", "9")),
        event_with_key("new", event("acme", "twilio_sms", "3")),
        event_with_key("new", event("acme", "twilio_sms", "4")),
        event_with_key("wrong", event("acme", "twilio_sns", "3")),
        event_with_key("negative", event("acme", "twilio_sms", "-3")),
        event_with_key("old", event_at("acme", "twilio_sms", "1", "2020-01-01T00:00:00Z")),
        event_with_key("elsewhere", event("globex", "twilio_sms", "1")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validated_batch_has_the_results_of_a_recorded_one_and_records_nothing() {
    let server = TestServer::start().await;
    server.track(event_with_key("known", event("acme", "twilio_sms", "2"))).await.unwrap();
    server.track(event_with_key("taken", event("acme", "twilio_sms", "1"))).await.unwrap();
    let checked = validate(&server, events()).await;
    server.assert_exact(2).await;
    let recorded = server.batch(events(), false).await;
    server.assert_exact(5).await;
    assert_eq!((checked.accepted_count, checked.duplicate_count, checked.failed_count), (3, 2, 5));
    for (checked, recorded) in checked.results.iter().zip(&recorded) {
        assert_eq!(checked.outcome(), recorded.outcome(), "{checked:?} {recorded:?}");
        assert_eq!((&checked.charge, checked.unpriced_reason()), (&recorded.charge, recorded.unpriced_reason()));
        assert_eq!(checked.error, recorded.error);
    }
    // Only recorded events have an id.
    let ids: Vec<bool> = checked.results.iter().map(|result| !result.event_id.is_empty()).collect();
    assert_eq!(ids, [false, false, true, true, false, false, false, false, false, false]);
    assert_eq!(checked.results[2].event_id, recorded[2].event_id);
    assert_eq!(amount(&checked.results[0].charge), "0.0237");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validated_batch_returns_its_clients_and_creates_none() {
    let server = TestServer::start_with(&["--default-time-zone", "Asia/Tokyo"], Clock::system()).await;
    server.create_client_in_zone("acme", "America/Los_Angeles").await;
    // The clients of rejected events are returned, too.
    let events =
        vec![event("globex", "", ""), event("acme", "", ""), event("acme", "twilio_sms", "1"), event("", "", "")];
    let clients = validate(&server, events).await.clients;
    let clients: Vec<_> =
        clients.iter().map(|client| (&*client.client_id, &*client.time_zone, client.exists)).collect();
    assert_eq!(clients, [("acme", "America/Los_Angeles", true), ("globex", "Asia/Tokyo", false)]);
    assert_eq!(server.sql("SELECT FROM clients").await, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validated_event_of_an_unknown_client_is_rejected_if_clients_are_not_created() {
    let server = TestServer::start_with(&["--unknown-client", "reject"], Clock::system()).await;
    server.create_client_in_zone("acme", "UTC").await;
    let events = vec![event("globex", "twilio_sms", "1"), event("acme", "twilio_sms", "1")];
    let results = validate(&server, events).await.results;
    assert_eq!(results[0].error.as_ref().unwrap().reason, "CLIENT_NOT_FOUND");
    assert_eq!(results[1].outcome(), EventOutcome::Accepted);
    server.assert_exact(0).await;
    server.stop().await;
}
