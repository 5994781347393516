//! Queries by any dimension, lists of events, and the completeness of responses.

use crate::harness::*;
use chrono::{DateTime, Utc};
use meterd::proto::UsageDimension::{self, *};
use meterd::proto::{
    GetPlatformUsageRequest, GetUsageEventRequest, ListUsageEventsRequest, QueryUsageRequest, RecordedUsageEvent,
    UsageEvent, UsageRow,
};
use meterd_engine::clock::Clock;
use prost_types::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const DIMENSIONS: [UsageDimension; 7] = [Day, Month, Client, Service, Operation, Model, Subject];

/// Starts a server with 96 events of two clients on two days in two months, with different values of all other
/// dimensions. The units identify an event.
async fn server() -> TestServer {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-10T12:00:00Z"))).await;
    let mut events = vec![];
    for number in 0..96_usize {
        let pick = |values: &[&str], stride: usize| values[number / stride % values.len()].to_string();
        events.push(UsageEvent {
            operation: pick(&["", "a"], 4),
            model: pick(&["", "m"], 8),
            subject: pick(&["", "u1", "u2"], 16),
            event_time: Some(timestamp(&pick(&["2026-10-31T12:00:00Z", "2026-11-01T12:00:00Z"], 1))),
            ..event(&pick(&["acme", "beta"], 2), &pick(&["sms", "social"], 48), &(number + 1).to_string())
        });
    }
    server.batch(events, false).await;
    server
}

fn query(group_by: &[UsageDimension]) -> QueryUsageRequest {
    QueryUsageRequest {
        start_date: "2026-10-01".into(),
        end_date: "2026-11-30".into(),
        group_by: group_by.iter().map(|dimension| (*dimension).into()).collect(),
        ..Default::default()
    }
}

fn key(row: &UsageRow) -> [Option<&str>; 7] {
    [&row.day, &row.month, &row.client_id, &row.service, &row.operation, &row.model, &row.subject]
        .map(|dimension| dimension.as_deref())
}

fn sum(rows: &[UsageRow]) -> (i64, i64) {
    let of = |row: &UsageRow| row.totals.as_ref().unwrap().units.parse::<i64>().unwrap();
    (rows.iter().map(|row| row.totals.as_ref().unwrap().request_count).sum(), rows.iter().map(of).sum())
}

#[tokio::test]
async fn usage_is_grouped_by_every_set_of_dimensions_and_always_adds_up() {
    let server = server().await;
    for set in 0..1 << DIMENSIONS.len() {
        let by: Vec<_> = (0..DIMENSIONS.len()).filter(|at| set >> at & 1 == 1).map(|at| DIMENSIONS[at]).collect();
        let rows = server.query(query(&by)).await;
        assert_eq!(sum(&rows), (96, 96 * 97 / 2), "{by:?}");
        for (at, dimension) in DIMENSIONS.iter().enumerate() {
            let wanted = by.contains(dimension);
            assert!(rows.iter().all(|row| key(row)[at].is_some() == wanted), "{by:?} must set only its own dimensions");
        }
        // A day determines its month. All other pairs of values occur.
        let values = |dimension: &UsageDimension| match dimension {
            Month if by.contains(&Day) => 1,
            Subject => 3,
            _ => 2,
        };
        assert_eq!(rows.len(), by.iter().map(values).product::<usize>(), "{by:?}");
        assert!(rows.is_sorted_by_key(key), "{by:?} must be sorted");
    }
    server.stop().await;
}

#[tokio::test]
async fn small_pages_contain_the_same_rows_as_one_page() {
    let server = server().await;
    for by in [&DIMENSIONS[..6], &DIMENSIONS, &[Operation, Subject]] {
        let whole = server.query(query(by)).await;
        for page_size in [1, 3] {
            assert_eq!(server.query(QueryUsageRequest { page_size, ..query(by) }).await, whole, "{by:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn values_of_a_filter_are_alternatives_and_filters_apply_together() {
    let server = server().await;
    let texts = |values: &[&str]| values.iter().map(|value| value.to_string()).collect::<Vec<_>>();
    let of_acme = QueryUsageRequest { client_ids: texts(&["acme", "nobody"]), ..query(&[]) };
    assert_eq!(sum(&server.query(of_acme.clone()).await).0, 48);
    let both = QueryUsageRequest { client_ids: texts(&["acme", "beta"]), ..query(&[]) };
    assert_eq!(sum(&server.query(both).await).0, 96);
    let of_sms = QueryUsageRequest { services: texts(&["sms"]), ..of_acme };
    assert_eq!(sum(&server.query(of_sms.clone()).await).0, 24);
    let without_operation = QueryUsageRequest { operations: texts(&[""]), ..of_sms };
    assert_eq!(sum(&server.query(without_operation.clone()).await).0, 12);
    let event_of_model = QueryUsageRequest { models: texts(&["m"]), ..without_operation };
    assert_eq!(sum(&server.query(event_of_model.clone()).await).0, 6);
    let of_subjects = QueryUsageRequest { subjects: texts(&["u1", "u2"]), ..event_of_model };
    assert_eq!(sum(&server.query(of_subjects.clone()).await).0, 4);
    let of_a_day = QueryUsageRequest { start_date: "2026-11-01".into(), ..of_subjects };
    assert_eq!(sum(&server.query(of_a_day).await).0, 2);
    server.stop().await;
}

#[tokio::test]
async fn a_query_without_usage_has_no_groups_and_a_total_of_zero() {
    let server = TestServer::start().await;
    assert_eq!(server.query(query(&[Service])).await, []);
    for count_subjects in [false, true] {
        let rows = server.query(QueryUsageRequest { count_subjects, ..query(&[]) }).await;
        assert_eq!((rows.len(), sum(&rows), cost(&rows[0].totals)), (1, (0, 0), "0"));
        assert_eq!(rows[0].subject_count, count_subjects.then_some(0));
    }
    server.stop().await;
}

#[tokio::test]
async fn distinct_subjects_are_counted_exactly_without_the_empty_one() {
    let server = TestServer::start().await;
    let user =
        |client: &str, subject: &str| UsageEvent { subject: subject.into(), ..event(client, "user_active", "1") };
    let mut events: Vec<_> = (0..3_000).map(|number| user("acme", &format!("u{}", number % 1_000))).collect();
    // Rows count a name once per client, and totals count it once.
    events.extend([user("acme", ""), user("beta", "u1"), user("beta", "b1"), user("gamma", "")]);
    server.batch(events, false).await;
    let today = server.clock.now().date_naive().to_string();
    let days = |by: &[UsageDimension]| QueryUsageRequest {
        start_date: today.clone(),
        end_date: today.clone(),
        count_subjects: true,
        ..query(by)
    };
    let rows = server.query(days(&[Client])).await;
    let counts: Vec<_> = rows.iter().map(|row| (row.client_id.as_deref().unwrap(), row.subject_count)).collect();
    assert_eq!(counts, [("acme", Some(1_000)), ("beta", Some(2)), ("gamma", Some(0))]);
    assert_eq!(server.query(days(&[])).await[0].subject_count, Some(1_001));
    let of_one = QueryUsageRequest { subjects: vec!["u1".into()], ..days(&[Client, Subject]) };
    let rows = server.query(of_one).await;
    let counts: Vec<_> =
        rows.iter().map(|row| (row.client_id.as_deref().unwrap(), sum(std::slice::from_ref(row)).0)).collect();
    assert_eq!(counts, [("acme", 3), ("beta", 1)]);
    server.stop().await;
}

#[tokio::test]
async fn rows_and_events_without_a_price_can_be_selected() {
    let server = server().await;
    for by in [vec![Service], vec![Service, Subject]] {
        let rows = server.query(QueryUsageRequest { unpriced_only: true, ..query(&by) }).await;
        assert!(!rows.is_empty() && rows.iter().all(|row| row.service.as_deref() == Some("social")));
        let unpriced: i64 = rows.iter().map(|row| row.totals.as_ref().unwrap().unpriced_event_count).sum();
        assert_eq!(unpriced, 48);
    }
    let request = ListUsageEventsRequest { unpriced_only: true, ..list("acme") };
    let events = listed(&server, request).await;
    assert_eq!(events.len(), 24);
    assert!(events.iter().all(|event| event.charge.is_none() && event.event.as_ref().unwrap().service == "social"));
    server.stop().await;
}

fn list(client_id: &str) -> ListUsageEventsRequest {
    ListUsageEventsRequest { client_id: client_id.into(), ..Default::default() }
}

/// Returns all events of a list page by page.
async fn listed(server: &TestServer, request: ListUsageEventsRequest) -> Vec<RecordedUsageEvent> {
    let (mut usage, mut events, mut page_token) = (server.usage(), vec![], String::new());
    loop {
        let page = ListUsageEventsRequest { page_token, ..request.clone() };
        let page = usage.list_usage_events(page).await.unwrap().into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

#[tokio::test]
async fn events_are_listed_in_both_orders_with_any_page_size() {
    let server = server().await;
    let newest = listed(&server, list("acme")).await;
    assert_eq!(newest.len(), 48);
    let id = |event: &RecordedUsageEvent| event.event_id.clone();
    assert!(newest.is_sorted_by(|left, right| id(left) > id(right)), "ids must be sorted by time");
    let oldest = listed(&server, ListUsageEventsRequest { ascending: true, page_size: 5, ..list("acme") }).await;
    assert_eq!(oldest.iter().rev().map(id).collect::<Vec<_>>(), newest.iter().map(id).collect::<Vec<_>>());
    assert_eq!(listed(&server, ListUsageEventsRequest { page_size: 1, ..list("acme") }).await, newest);
    let november = ListUsageEventsRequest {
        start_time: Some(timestamp("2026-11-01T12:00:00Z")),
        end_time: Some(timestamp("2026-11-01T12:00:00.000001Z")),
        ..list("acme")
    };
    assert_eq!(listed(&server, november).await.len(), 24);
    let filtered = ListUsageEventsRequest {
        services: vec!["sms".into()],
        operations: vec!["a".into()],
        models: vec!["m".into()],
        subjects: vec!["u1".into(), "u2".into()],
        ..list("acme")
    };
    assert_eq!(listed(&server, filtered).await.len(), 4);
    server.stop().await;
}

#[tokio::test]
async fn a_recorded_event_is_read_as_sent_with_defaults_filled_in() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-10T12:00:00.123456Z"))).await;
    server.create_client_in_zone("acme", "Pacific/Kiritimati").await;
    let kind = prost_types::value::Kind::StringValue("\u{1f4de} \"quoted\"".into());
    let metadata = prost_types::Struct { fields: [("k".into(), prost_types::Value { kind: Some(kind) })].into() };
    let sent = UsageEvent {
        operation: "chat".into(),
        model: "gpt-4o".into(),
        input_tokens: 10,
        cached_input_tokens: 3,
        output_tokens: 5,
        amount: "0.10".into(),
        subject: "u1".into(),
        external_id: "SM1".into(),
        idempotency_key: "k1".into(),
        metadata: Some(metadata),
        ..event("acme", "openai", "")
    };
    let result = server.track(sent.clone()).await.unwrap();
    let request = GetUsageEventRequest { client_id: "acme".into(), event_id: result.event_id.clone() };
    let read = server.usage().get_usage_event(request).await.unwrap().into_inner().event.unwrap();
    let event_time = Some(timestamp("2026-11-10T12:00:00.123456Z"));
    let expected = UsageEvent { units: "1".into(), amount: "0.1".into(), event_time, ..sent };
    assert_eq!(read.event, Some(expected));
    assert_eq!((&read.event_id, &*read.day), (&result.event_id, "2026-11-11"));
    assert_eq!((&read.charge, &read.price_id), (&result.charge, &result.price_id));
    assert_eq!(amount(&read.charge), "0.00007125");
    assert_eq!(listed(&server, list("acme")).await, [read]);
    server.stop().await;
}

#[tokio::test]
async fn a_response_includes_all_events_acknowledged_before_complete_as_of() {
    let server = Arc::new(TestServer::start().await);
    let stop = Arc::new(AtomicBool::new(false));
    // Writers of two clients and two readers run for a while. Each acknowledgement has the time of the database's
    // clock.
    let writer = |client: &'static str| {
        let (server, stop) = (server.clone(), stop.clone());
        tokio::spawn(async move {
            let mut acknowledged: Vec<DateTime<Utc>> = vec![];
            while !stop.load(Ordering::Relaxed) {
                server.track(event(client, "sms", "1")).await.unwrap();
                let now = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&server.pool).await.unwrap();
                acknowledged.push(now);
            }
            acknowledged
        })
    };
    let writers = [writer("acme"), writer("beta")];
    let mut reads: Vec<(&str, Timestamp, i64)> = vec![];
    server.create_client_in_zone("none", "UTC").await;
    for _ in 0..40 {
        let month = server.usage().get_platform_usage(GetPlatformUsageRequest::default()).await.unwrap().into_inner();
        reads.push(("", month.complete_as_of_time.unwrap(), month.totals.unwrap().request_count));
        let today = server.clock.now().date_naive().to_string();
        let query = QueryUsageRequest {
            client_ids: vec!["acme".into()],
            start_date: today.clone(),
            end_date: today,
            ..Default::default()
        };
        let rows = server.usage().query_usage(query).await.unwrap().into_inner();
        reads.push(("acme", rows.complete_as_of_time.unwrap(), sum(&rows.rows).0));
    }
    stop.store(true, Ordering::Relaxed);
    let [acme, beta] = writers;
    let (acme, beta) = (acme.await.unwrap(), beta.await.unwrap());
    assert!(acme.len() > 10 && beta.len() > 10);
    for (client, complete_as_of, count) in reads {
        let complete_as_of =
            DateTime::<Utc>::from_timestamp(complete_as_of.seconds, complete_as_of.nanos as u32).unwrap();
        let before = |times: &[DateTime<Utc>]| times.iter().filter(|time| **time < complete_as_of).count() as i64;
        let promised = if client.is_empty() { before(&acme) + before(&beta) } else { before(&acme) };
        assert!(count >= promised, "{count} of {promised} events acknowledged before {complete_as_of}");
    }
}
