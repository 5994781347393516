//! Bad requests without events: wrong ranges, time zones, pages and tokens, and texts and messages that are too large.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost_types::{FieldMask, Timestamp};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const INVALID: &str = "INVALID_FIELD";

async fn server() -> TestServer {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    for client in ["a", "b", "c"] {
        server.track(event(client, "sms", "1")).await.unwrap();
        server.track(event(client, "email", "1")).await.unwrap();
    }
    server
}

fn query(start_date: &str, end_date: &str) -> QueryUsageRequest {
    QueryUsageRequest { start_date: start_date.into(), end_date: end_date.into(), ..Default::default() }
}

fn summary(start_date: &str, end_date: &str) -> GetUsageSummaryRequest {
    let (client_id, start_date, end_date) = ("a".into(), start_date.into(), end_date.into());
    GetUsageSummaryRequest { client_id, start_date, end_date, top_operation_count: 0 }
}

#[tokio::test]
async fn wrong_days_months_and_ranges_are_rejected() {
    let server = server().await;
    let mut usage = server.usage();
    for (start, end, fields) in [
        ("", "2026-11-01", &["start_date"][..]),
        ("2026-02-30", "2026-13-01", &["start_date", "end_date"]),
        ("2026-11-1", "20261101", &["start_date", "end_date"]),
        ("2026-11-02", "2026-11-01", &["end_date"]),
    ] {
        assert_invalid(usage.query_usage(query(start, end)).await, INVALID, fields);
        assert_invalid(usage.get_usage_summary(summary(start, end)).await, INVALID, fields);
        let rebuild = RebuildRollupsRequest { start_date: start.into(), end_date: end.into(), ..Default::default() };
        assert_invalid(usage.rebuild_rollups(rebuild).await, INVALID, fields);
    }
    for month in ["2026", "2026-13", "2026-11-01", "nov"] {
        let platform = GetPlatformUsageRequest { month: month.into() };
        assert_invalid(usage.get_platform_usage(platform).await, INVALID, &["month"]);
        let list = ListMonthlySummariesRequest { month: month.into(), ..Default::default() };
        assert_invalid(usage.list_monthly_summaries(list).await, INVALID, &["month"]);
        let update = UpdateMonthlySummariesRequest { month: month.into(), ..Default::default() };
        assert_invalid(usage.update_monthly_summaries(update).await, INVALID, &["month"]);
    }
    let (early, late) = (Some(timestamp("2026-11-01T00:00:00Z")), Some(timestamp("2026-11-02T00:00:00Z")));
    let list =
        ListUsageEventsRequest { client_id: "a".into(), start_time: late, end_time: early, ..Default::default() };
    assert_invalid(usage.list_usage_events(list).await, INVALID, &["end_time"]);
    let export = ExportUsageRequest { start_time: late, end_time: early, format: 9, ..Default::default() };
    assert_invalid(usage.export_usage(export).await, INVALID, &["end_time", "format"]);
    usage.query_usage(query("2026-11-01", "2026-11-30")).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_range_above_the_limit_is_rejected_with_the_limit() {
    let server = server().await;
    let mut usage = server.usage();
    usage.query_usage(query("2026-01-01", "2027-01-01")).await.unwrap();
    let too_long = usage.query_usage(query("2026-01-01", "2027-01-02")).await;
    let max_days = |status: &Status| status.get_error_details().error_info().unwrap().metadata["max_days"].clone();
    assert_eq!(max_days(too_long.as_ref().unwrap_err()), "366");
    assert_invalid(too_long, "RANGE_TOO_LONG", &["end_date"]);
    usage.get_usage_summary(summary("2026-01-01", "2036-01-08")).await.unwrap();
    let too_long = usage.get_usage_summary(summary("2026-01-01", "2036-01-09")).await;
    assert_eq!(max_days(too_long.as_ref().unwrap_err()), "3660");
    assert_invalid(too_long, "RANGE_TOO_LONG", &["end_date"]);
    server.stop().await;
}

#[tokio::test]
async fn wrong_filters_dimensions_and_page_sizes_are_rejected() {
    let server = server().await;
    let mut usage = server.usage();
    let days = || query("2026-11-01", "2026-11-30");
    let many = vec!["x".to_string(); 101];
    let wrong = QueryUsageRequest { client_ids: many, services: vec!["a\0".into()], page_size: -1, ..days() };
    assert_invalid(usage.query_usage(wrong).await, INVALID, &["client_ids", "services[0]", "page_size"]);
    let wrong = QueryUsageRequest { group_by: vec![1, 0, 1, 99], page_size: 10_001, ..days() };
    assert_invalid(
        usage.query_usage(wrong).await,
        INVALID,
        &["group_by[1]", "group_by[2]", "group_by[3]", "page_size"],
    );
    for page_size in [-1, i32::MIN, 1_001] {
        let list = ListUsageEventsRequest { page_size, client_id: "a".into(), ..Default::default() };
        assert_invalid(usage.list_usage_events(list).await, INVALID, &["page_size"]);
        let list = ListMonthlySummariesRequest { page_size, ..Default::default() };
        assert_invalid(usage.list_monthly_summaries(list).await, INVALID, &["page_size"]);
        let list = ListPricesRequest { page_size, ..Default::default() };
        assert_invalid(server.catalog().list_prices(list).await, INVALID, &["page_size"]);
        let list = ListClientsRequest { page_size, ..Default::default() };
        assert_invalid(server.clients().list_clients(list).await, INVALID, &["page_size"]);
    }
    let top = GetUsageSummaryRequest { top_operation_count: -1, ..summary("2026-11-01", "2026-11-30") };
    assert_invalid(usage.get_usage_summary(top).await, INVALID, &["top_operation_count"]);
    server.stop().await;
}

#[tokio::test]
async fn unknown_clients_and_events_are_not_found() {
    let server = server().await;
    let mut usage = server.usage();
    let client_id = || "nobody".to_string();
    let found = usage
        .get_current_month_usage(GetCurrentMonthUsageRequest { client_id: client_id(), ..Default::default() })
        .await;
    assert_error(found, Code::NotFound, "CLIENT_NOT_FOUND");
    let found = usage.get_forecast(GetForecastRequest { client_id: client_id() }).await;
    assert_error(found, Code::NotFound, "CLIENT_NOT_FOUND");
    let found = usage.list_usage_events(ListUsageEventsRequest { client_id: client_id(), ..Default::default() }).await;
    assert_error(found, Code::NotFound, "CLIENT_NOT_FOUND");
    let found = usage.export_usage(ExportUsageRequest { client_id: client_id(), ..Default::default() }).await;
    assert_error(found, Code::NotFound, "CLIENT_NOT_FOUND");
    let recorded = server.track(event("a", "sms", "1")).await.unwrap().event_id;
    for (client_id, event_id) in [("a", "x"), ("a", &*"0".repeat(32)), ("b", &recorded)] {
        let request = GetUsageEventRequest { client_id: client_id.into(), event_id: event_id.into() };
        assert_error(usage.get_usage_event(request).await, Code::NotFound, "EVENT_NOT_FOUND");
    }
    let none = usage.get_usage_event(GetUsageEventRequest::default()).await;
    assert_invalid(none, INVALID, &["client_id", "event_id"]);
    server.stop().await;
}

#[tokio::test]
async fn a_page_token_is_valid_only_for_its_query_and_cannot_be_modified() {
    let server = server().await;
    let mut usage = server.usage();
    let base = QueryUsageRequest {
        group_by: vec![UsageDimension::Client.into()],
        page_size: 1,
        ..query("2026-11-01", "2026-11-30")
    };
    let token = usage.query_usage(base.clone()).await.unwrap().into_inner().next_page_token;
    assert!(!token.is_empty());
    let with = |page_token: &str| QueryUsageRequest { page_token: page_token.into(), ..base.clone() };
    // The page size may change between pages, but not the query.
    usage.query_usage(QueryUsageRequest { page_size: 2, ..with(&token) }).await.unwrap();
    let other = QueryUsageRequest { services: vec!["sms".into()], ..with(&token) };
    assert_invalid(usage.query_usage(other).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    let clients = ListClientsRequest { page_token: token.clone(), ..Default::default() };
    assert_invalid(server.clients().list_clients(clients).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    let mut edited = token.clone().into_bytes();
    edited[30] = if edited[30] == b'A' { b'B' } else { b'A' };
    let edited = String::from_utf8(edited).unwrap();
    for text in [&*edited, "x", "\0", &token[1..], &"A".repeat(100_000)] {
        assert_invalid(usage.query_usage(with(text)).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    }
    let stranger = TestServer::replica(&empty_database().await, &[], Clock::system()).await;
    let foreign = stranger.usage().query_usage(with(&token)).await;
    assert_invalid(foreign, "PAGE_TOKEN_INVALID", &["page_token"]);
    stranger.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn bad_time_zones_and_other_wrong_create_requests_are_rejected() {
    let server = server().await;
    let (mut clients, mut catalog) = (server.clients(), server.catalog());
    for zone in ["Mars/Olympus", "+02:00", "europe/berlin\0"] {
        let client = Client { client_id: "z".into(), time_zone: zone.into(), ..Default::default() };
        let create = CreateClientRequest { client: Some(client.clone()), request_id: "x".repeat(129) };
        assert_invalid(clients.create_client(create).await, INVALID, &["request_id", "client.time_zone"]);
        let mask = FieldMask { paths: vec!["time_zone".into(), "create_time".into()] };
        let update = UpdateClientRequest { client: Some(client), update_mask: Some(mask) };
        assert_invalid(clients.update_client(update).await, INVALID, &["client.time_zone", "update_mask"]);
    }
    let none = clients.create_client(CreateClientRequest::default()).await;
    assert_invalid(none, INVALID, &["client.client_id"]);
    let service = Service { display_name: "x".repeat(257), unit: "x".repeat(65), category: 99, ..Default::default() };
    let create = CreateServiceRequest { service: Some(service), ..Default::default() };
    let fields = ["service.service", "service.display_name", "service.unit", "service.category"];
    assert_invalid(catalog.create_service(create).await, INVALID, &fields);
    let no_rates = Price { service: "sms".into(), ..Default::default() };
    let create = CreatePriceRequest { price: Some(no_rates), ..Default::default() };
    assert_invalid(catalog.create_price(create).await, INVALID, &["price.rates"]);
    for rate in ["", "NaN", "-0.1", "1000000000", "0.0000000000000000000000001"] {
        let create = CreatePriceRequest { price: Some(unit_price("sms", "", rate)), ..Default::default() };
        assert_invalid(catalog.create_price(create).await, INVALID, &["price.rates.unit"]);
    }
    let create = CreatePriceRequest { price: Some(unit_price("smss", "", "1")), ..Default::default() };
    assert_invalid(catalog.create_price(create).await, "UNKNOWN_SERVICE", &["price.service"]);
    let estimate = EstimateCostRequest {
        service: "sms".into(),
        units: "NaN".into(),
        event_time: Some(Timestamp { seconds: 0, nanos: -1 }),
        ..Default::default()
    };
    assert_invalid(catalog.estimate_cost(estimate).await, INVALID, &["units", "event_time"]);
    server.stop().await;
}

#[tokio::test]
async fn too_long_texts_are_rejected_and_not_repeated_in_the_error() {
    let server = server().await;
    let channel = server.channel();
    let mut usage = usage_service_client::UsageServiceClient::new(channel.clone());
    let mut clients = client_service_client::ClientServiceClient::new(channel);
    let huge = "é".repeat(200_000);
    let bad = event("acme", &huge, &huge);
    let tracked = usage.track_usage(TrackUsageRequest { event: Some(bad.clone()) }).await;
    assert_invalid(tracked, INVALID, &["event.service", "event.units"]);
    let kept_key = UsageEvent { idempotency_key: huge.clone(), ..bad };
    let batch = BatchTrackUsageRequest { events: vec![kept_key], backfill: false, ..Default::default() };
    let result = usage.batch_track_usage(batch).await.unwrap().into_inner().results.remove(0);
    assert!(prost::Message::encoded_len(&result) < 2_000, "the error is too long");
    let client = Client { client_id: "z".into(), time_zone: huge.clone(), ..Default::default() };
    let create = CreateClientRequest { client: Some(client.clone()), ..Default::default() };
    assert_invalid(clients.create_client(create).await, INVALID, &["client.time_zone"]);
    let update = UpdateClientRequest { client: Some(client), update_mask: Some(FieldMask { paths: vec![huge] }) };
    assert_invalid(clients.update_client(update).await, INVALID, &["update_mask"]);
    server.stop().await;
}

#[tokio::test]
async fn thousands_of_wrong_fields_are_reported_up_to_the_size_of_a_status() {
    let server = server().await;
    let mut usage = server.usage();
    let wrong = QueryUsageRequest { group_by: vec![99; 10_000], ..query("2026-11-01", "2026-11-30") };
    let status = usage.query_usage(wrong).await.unwrap_err();
    let (code, reason, fields) = error_parts(&status);
    assert_eq!((code, &*reason), (Code::InvalidArgument, INVALID));
    let details = status.get_error_details();
    let left_out = &details.error_info().unwrap().metadata["violations_left_out"];
    assert_eq!(fields.len() + left_out.parse::<usize>().unwrap(), 10_000);
    assert_eq!(fields[0], "group_by[0]");
    usage.query_usage(query("2026-11-01", "2026-11-30")).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_message_above_16_mib_is_rejected_without_closing_the_connection() {
    let server = server().await;
    let mut usage = server.usage().max_encoding_message_size(64 << 20);
    let huge = UsageEvent { subject: "x".repeat(17 << 20), ..event("a", "sms", "1") };
    let rejected = usage.track_usage(TrackUsageRequest { event: Some(huge) }).await.unwrap_err();
    assert_eq!(rejected.code(), Code::OutOfRange);
    usage.track_usage(TrackUsageRequest { event: Some(event("a", "sms", "1")) }).await.unwrap();
    server.assert_exact(7).await;
    server.stop().await;
}
