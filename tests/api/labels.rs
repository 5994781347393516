//! Labels, hours and reported costs of events.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::collections::BTreeMap;
use tonic::Code;

const NOW: &str = "2026-11-21T12:00:00Z";

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn labelled(units: &str, labels: &[(&str, &str)]) -> UsageEvent {
    UsageEvent { labels: texts(labels), ..event("acme", "sms", units) }
}

fn at(time: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { event_time: Some(timestamp(time)), ..event }
}

fn request(group_by: &[UsageDimension], labels: &[&str]) -> QueryUsageRequest {
    QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        group_by: group_by.iter().map(|dimension| (*dimension).into()).collect(),
        group_by_labels: labels.iter().map(|name| (*name).to_owned()).collect(),
        include_measures: true,
        ..Default::default()
    }
}

async fn exported(server: &TestServer, request: ExportUsageRequest) -> String {
    let mut stream = server.usage().export_usage(request).await.unwrap().into_inner();
    let mut file = vec![];
    while let Some(piece) = stream.message().await.unwrap() {
        file.extend(piece.data);
    }
    String::from_utf8(file).unwrap()
}

/// Returns the units of each row by its labels.
fn units_by_labels(rows: &[UsageRow]) -> Vec<(BTreeMap<String, String>, String)> {
    rows.iter().map(|row| (row.labels.clone(), row.totals.as_ref().unwrap().units.clone())).collect()
}

#[tokio::test]
async fn usage_is_grouped_and_filtered_by_labels_and_agrees_on_every_page() {
    let server = november().await;
    let events = vec![
        labelled("1", &[("project", "apollo"), ("team", "search")]),
        labelled("2", &[("project", "apollo"), ("team", "ads")]),
        labelled("4", &[("project", "gemini"), ("team", "search")]),
        labelled("8", &[("team", "search")]),
        labelled("16", &[]),
        UsageEvent { client_id: "other".into(), ..labelled("32", &[("project", "apollo")]) },
    ];
    server.batch(events, false).await;
    let rows = server.query(request(&[], &["project"])).await;
    let expected = [
        (texts(&[]), "24".to_owned()),
        (texts(&[("project", "apollo")]), "35".to_owned()),
        (texts(&[("project", "gemini")]), "4".to_owned()),
    ];
    assert_eq!(units_by_labels(&rows), expected);
    let by = request(&[UsageDimension::Client], &["team", "project"]);
    let rows = server.query(by.clone()).await;
    assert_eq!(
        units_by_labels(&rows),
        [
            (texts(&[]), "16".to_owned()),
            (texts(&[("project", "apollo"), ("team", "ads")]), "2".to_owned()),
            (texts(&[("team", "search")]), "8".to_owned()),
            (texts(&[("project", "apollo"), ("team", "search")]), "1".to_owned()),
            (texts(&[("project", "gemini"), ("team", "search")]), "4".to_owned()),
            (texts(&[("project", "apollo")]), "32".to_owned()),
        ]
    );
    let mut paged = vec![];
    let mut one = QueryUsageRequest { page_size: 1, ..by.clone() };
    loop {
        let page = server.usage().query_usage(one.clone()).await.unwrap().into_inner();
        paged.extend(page.rows);
        one.page_token = page.next_page_token;
        if one.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, rows);
    let filtered = QueryUsageRequest {
        client_ids: vec!["acme".into()],
        labels: texts(&[("project", "apollo"), ("team", "ads")]),
        ..request(&[UsageDimension::Day], &[])
    };
    let rows = server.query(filtered).await;
    assert_eq!((rows.len(), rows[0].totals.as_ref().unwrap().request_count), (1, 1));

    let list =
        ListUsageEventsRequest { client_id: "acme".into(), labels: texts(&[("team", "search")]), ..Default::default() };
    for ascending in [false, true] {
        let list = ListUsageEventsRequest { ascending, ..list.clone() };
        let listed = server.usage().list_usage_events(list).await.unwrap().into_inner().events;
        assert_eq!(listed.len(), 3);
        assert!(listed.iter().all(|recorded| recorded.event.as_ref().unwrap().labels["team"] == "search"));
    }
    server.assert_exact(6).await;
    server.stop().await;
}

#[tokio::test]
async fn usage_is_grouped_by_hours_of_utc() {
    let server = november().await;
    server.create_client_in_zone("half", "Asia/Kolkata").await;
    let of = |client: &str, time: &str| UsageEvent { client_id: client.into(), ..at(time, event("acme", "sms", "1")) };
    let events = vec![
        of("half", "2026-11-20T18:00:00Z"),
        of("half", "2026-11-20T18:29:59.999999Z"),
        of("half", "2026-11-20T18:30:00Z"),
        of("half", "2026-11-20T18:59:59Z"),
        of("half", "2026-11-20T19:00:00Z"),
        of("acme", "2026-11-20T18:45:00Z"),
    ];
    server.batch(events, false).await;
    let hours = |rows: &[UsageRow]| -> Vec<(String, i64)> {
        rows.iter().map(|row| (row.hour.unwrap().to_string(), row.totals.as_ref().unwrap().request_count)).collect()
    };
    let rows = server.query(request(&[UsageDimension::Hour], &[])).await;
    assert_eq!(hours(&rows), [("2026-11-20T18:00:00Z".to_owned(), 5), ("2026-11-20T19:00:00Z".to_owned(), 1)]);
    // The day of a client in India begins at 18:30 UTC.
    let both = QueryUsageRequest {
        client_ids: vec!["half".into()],
        ..request(&[UsageDimension::Hour, UsageDimension::Day], &[])
    };
    let rows = server.query(both).await;
    let days: Vec<&str> = rows.iter().map(|row| row.day.as_deref().unwrap()).collect();
    assert_eq!(days, ["2026-11-20", "2026-11-21", "2026-11-21"]);
    let counts: Vec<i64> = hours(&rows).into_iter().map(|(_, count)| count).collect();
    assert_eq!(counts, [2, 2, 1]);
    let long = QueryUsageRequest { end_date: "2026-12-06".into(), ..request(&[UsageDimension::Hour], &[]) };
    let status = assert_invalid(server.usage().query_usage(long).await, "RANGE_TOO_LONG", &["end_date"]);
    assert!(status.message().contains("at most 35 days"), "{status}");
    server.stop().await;
}

#[tokio::test]
async fn a_reported_cost_is_added_up_next_to_the_charge_or_is_the_charge() {
    let server = november().await;
    let reported = |cost: &str, event: UsageEvent| UsageEvent { reported_cost: cost.into(), ..event };
    // The price of sms is 0.0075 for each.
    let first = server.track(reported("0.0081", labelled("1", &[("project", "apollo")]))).await.unwrap();
    assert_eq!(amount(&first.charge), "0.0075");
    server.track(reported("0", event("acme", "sms", "1"))).await.unwrap();
    server.track(event("acme", "sms", "1")).await.unwrap();
    let by = [UsageDimension::Day, UsageDimension::Model];
    let sums = texts(&[("reported_cost", "0.0081"), ("reported_event_count", "2")]);
    for query in [request(&by, &[]), QueryUsageRequest { count_subjects: true, ..request(&by, &[]) }] {
        let rows = server.query(query).await;
        assert_eq!((rows.len(), &rows[0].measures), (1, &sums));
        assert_eq!(amount(&rows[0].totals.as_ref().unwrap().cost), "0.0225");
    }
    let month = GetCurrentMonthUsageRequest { client_id: "acme".into(), ..Default::default() };
    assert_eq!(server.usage().get_current_month_usage(month).await.unwrap().into_inner().measures, sums);

    let rates = Rates { reported_cost: Some("1.2".into()), ..Default::default() };
    let price = Price { service: "openai".into(), model: "proxy".into(), rates: Some(rates), ..Default::default() };
    let price = server.catalog().create_price(CreatePriceRequest { price: Some(price), ..Default::default() }).await;
    assert_eq!(price.unwrap().into_inner().price.unwrap().rates.unwrap().reported_cost.as_deref(), Some("1.2"));
    let proxied = || UsageEvent { model: "proxy".into(), input_tokens: 10, ..event("acme", "openai", "1") };
    let without = server.track(proxied()).await.unwrap();
    assert_eq!(without.unpriced_reason(), UnpricedReason::ReportedCostMissing);
    let result = server.track(reported("0.05", proxied())).await.unwrap();
    assert_eq!(amount(&result.charge), "0.06");
    let explain = ExplainChargeRequest { client_id: "acme".into(), event_id: result.event_id };
    let explained = server.usage().explain_charge(explain).await.unwrap().into_inner();
    let lines: Vec<_> =
        explained.components.iter().map(|line| (&*line.component, &*line.quantity, &*line.rate)).collect();
    assert_eq!(lines, [("reported_cost", "0.05", "1.2")]);
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test]
async fn labels_and_reported_costs_are_corrected_exported_and_part_of_the_payload() {
    let server = november().await;
    let sent = UsageEvent {
        idempotency_key: "k".into(),
        reported_cost: "0.10".into(),
        ..labelled("1", &[("project", "apollo"), ("team", "a \"b\"")])
    };
    let first = server.track(sent.clone()).await.unwrap();
    assert_eq!(server.track(sent.clone()).await.unwrap().outcome(), EventOutcome::Duplicate);
    for (changed, field) in [
        (UsageEvent { reported_cost: "0.2".into(), ..sent.clone() }, "reported_cost"),
        (UsageEvent { reported_cost: String::new(), ..sent.clone() }, "reported_cost"),
        (UsageEvent { labels: texts(&[("project", "apollo")]), ..sent.clone() }, "labels"),
        (UsageEvent { labels: BTreeMap::new(), ..sent.clone() }, "labels"),
    ] {
        let status = assert_error(server.track(changed).await, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
        assert!(status.message().contains(&format!("differs in {field}")), "{status}");
    }
    let event_of = async || {
        let get = GetUsageEventRequest { client_id: "acme".into(), event_id: first.event_id.clone() };
        server.usage().get_usage_event(get).await.unwrap().into_inner().event.unwrap().event.unwrap()
    };
    let recorded = event_of().await;
    assert_eq!((&recorded.labels, recorded.reported_cost.as_str()), (&sent.labels, "0.1"));
    let export = ExportUsageRequest { labels: texts(&[("team", "a \"b\"")]), ..Default::default() };
    let csv = exported(&server, export).await;
    assert!(csv.contains(r#",0.1,"{""team"": ""a \""b\"""", ""project"": ""apollo""}""#), "{csv}");
    let none = ExportUsageRequest { labels: texts(&[("team", "b")]), ..Default::default() };
    assert_eq!(exported(&server, none).await.lines().count(), 1);

    let corrected = UsageEvent { labels: texts(&[("project", "gemini")]), reported_cost: "0.3".into(), ..recorded };
    let correction = UsageCorrection {
        event: Some(EventReference { event_id: first.event_id.clone(), ..Default::default() }),
        corrected: Some(corrected),
    };
    let request = CorrectUsageRequest {
        client_id: "acme".into(),
        corrections: vec![correction],
        reason: "wrong project".into(),
        ..Default::default()
    };
    let result = server.usage().correct_usage(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.error, None);
    let recorded = event_of().await;
    assert_eq!((&recorded.labels, recorded.reported_cost.as_str()), (&texts(&[("project", "gemini")]), "0.3"));
    let list = ListAdjustmentsRequest { client_id: "acme".into(), ..Default::default() };
    let adjustments = server.usage().list_adjustments(list).await.unwrap().into_inner().adjustments;
    let fields: Vec<&str> = adjustments[0].changes.iter().map(|change| change.field.as_str()).collect();
    assert_eq!(fields, ["labels", "reported_cost"]);
    server.assert_exact(1).await;
    let void = VoidUsageRequest {
        client_id: "acme".into(),
        events: vec![EventReference { event_id: first.event_id.clone(), ..Default::default() }],
        reason: "test".into(),
        ..Default::default()
    };
    server.usage().void_usage(void).await.unwrap();
    let sums = "SELECT count(*) FROM usage_day_measures";
    assert_eq!(sqlx::query_scalar::<_, i64>(sums).fetch_one(&server.pool).await.unwrap(), 0);
    server.stop().await;
}

#[tokio::test]
async fn damage_of_the_sums_of_reported_costs_is_found_and_rebuilt() {
    let server = november().await;
    let reported = |cost: &str| UsageEvent { reported_cost: cost.into(), ..event("acme", "sms", "1") };
    server.batch(vec![reported("0.5"), reported("0"), event("acme", "sms", "1")], false).await;
    server.assert_exact(3).await;
    for (damage, differences) in [
        ("UPDATE usage_day_measures SET quantity = 0.6 WHERE measure = 'reported_cost'", 1),
        ("DELETE FROM usage_day_measures WHERE measure = 'reported_event_count'", 1),
        ("UPDATE usage_events SET reported_cost = 0.75 WHERE reported_cost = 0.5", 1),
        ("UPDATE usage_events SET reported_cost = NULL WHERE reported_cost = 0", 1),
    ] {
        assert!(server.sql(damage).await > 0, "{damage}");
        assert_eq!(server.verify().await.differences, differences, "{damage}");
        let request = RebuildRollupsRequest {
            start_date: "2026-11-01".into(),
            end_date: "2026-11-30".into(),
            ..Default::default()
        };
        let rebuilt = server.usage().rebuild_rollups(request).await.unwrap().into_inner();
        assert_eq!(rebuilt.corrected_row_count, differences as i64, "{damage}");
        assert_eq!(server.verify().await.differences, 0, "{damage}");
    }
    server.stop().await;
}

#[tokio::test]
async fn wrong_labels_are_rejected_with_their_names() {
    let server = november().await;
    let nine: Vec<(String, &str)> = (0..9).map(|number| (format!("l{number}"), "x")).collect();
    let nine: Vec<(&str, &str)> = nine.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let (long_name, long_value) = ("n".repeat(33), "v".repeat(129));
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 7] = [
        (&nine, "labels", "at most 8, has 9"),
        (&[("", "x")], "labels", "names of 1 to 32 bytes"),
        (&[(&long_name, "x")], "labels", "names of 1 to 32 bytes"),
        (&[("a ", "x")], "labels", "a name that is wrong"),
        (&[("a", "")], r#"labels["a"]"#, "leave the label out"),
        (&[("a", &long_value)], r#"labels["a"]"#, "at most 128 bytes, has 129"),
        (&[("a", " x")], r#"labels["a"]"#, ""),
    ];
    for (labels, field, part) in cases {
        let path = format!("event.{field}");
        let status = assert_invalid(server.track(labelled("1", labels)).await, "INVALID_FIELD", &[&path]);
        assert!(status.message().contains(part), "{labels:?}: {status}");
        let filter = QueryUsageRequest { labels: texts(labels), ..request(&[], &[]) };
        assert_invalid(server.usage().query_usage(filter).await, "INVALID_FIELD", &[field]);
    }
    for names in [&["a", "a"][..], &["a", ""], &["a", &long_name]] {
        let status = server.usage().query_usage(request(&[], names)).await;
        assert_invalid(status, "INVALID_FIELD", &["group_by_labels[1]"]);
    }
    let cost = UsageEvent { reported_cost: "-1".into(), ..event("acme", "sms", "1") };
    assert_invalid(server.track(cost).await, "INVALID_FIELD", &["event.reported_cost"]);
    let measure = UsageEvent { measures: texts(&[("reported_cost", "1")]), ..event("acme", "sms", "1") };
    let status = assert_invalid(server.track(measure).await, "INVALID_FIELD", &["event.measures"]);
    assert!(status.message().contains("set the field"), "{status}");
    server.stop().await;
}
