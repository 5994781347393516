//! Measures that are not fields of an event, prices for service tiers, and prices for events with many input tokens.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::collections::{BTreeMap, HashMap};
use tonic::Code;

const NOW: &str = "2026-11-21T12:00:00Z";

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn scan(measures: &[(&str, &str)]) -> UsageEvent {
    UsageEvent { model: "scan-1".into(), measures: texts(measures), ..event("acme", "openai", "1") }
}

/// Rates per million tokens, and rates of measures.
fn price(model: &str, per_million: [&str; 3], measures: &[(&str, &str)]) -> Price {
    let rate = |text: &str| (!text.is_empty()).then(|| per_token(text));
    let [input, output, cached] = per_million.map(rate);
    let measures = measures.iter().map(|(name, text)| match name.ends_with("_tokens") {
        true => ((*name).to_owned(), per_token(text)),
        false => ((*name).to_owned(), (*text).to_owned()),
    });
    let rates = Rates {
        input_token: input,
        output_token: output,
        cached_input_token: cached,
        measures: measures.collect(),
        ..Default::default()
    };
    Price { service: "openai".into(), model: model.into(), rates: Some(rates), ..Default::default() }
}

/// Moves the decimal point of a rate with at most four decimals by six places.
fn per_token(per_million: &str) -> String {
    let scaled = per_million.parse::<f64>().unwrap() * 10_000.0;
    format!("0.{:010}", scaled.round() as u64)
}

async fn create(server: &TestServer, price: Price) -> Price {
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    server.catalog().create_price(request).await.unwrap().into_inner().price.unwrap()
}

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

async fn charge(server: &TestServer, event: UsageEvent) -> String {
    let result = server.track(event).await.unwrap();
    match &result.charge {
        Some(charge) => charge.amount.clone(),
        None => format!("{:?}", result.unpriced_reason()),
    }
}

async fn summary(server: &TestServer, start: &str, end: &str) -> GetUsageSummaryResponse {
    let request = GetUsageSummaryRequest {
        client_id: "acme".into(),
        start_date: start.into(),
        end_date: end.into(),
        ..Default::default()
    };
    server.usage().get_usage_summary(request).await.unwrap().into_inner()
}

async fn query(server: &TestServer, group_by: &[UsageDimension], subjects: &[&str]) -> Vec<UsageRow> {
    let request = QueryUsageRequest {
        start_date: "2026-10-01".into(),
        end_date: "2026-11-30".into(),
        group_by: group_by.iter().map(|dimension| (*dimension).into()).collect(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        include_measures: true,
        ..Default::default()
    };
    server.query(request).await
}

/// The charges were computed by hand from the usage objects and the rates of the providers.
#[tokio::test]
async fn parts_of_the_tokens_are_charged_at_their_own_rates_and_the_rest_at_the_rate_of_the_whole() {
    let server = november().await;
    let cache_writes = [("cache_write_1h_input_tokens", "6"), ("cache_write_5m_input_tokens", "3.75")];
    create(&server, price("claude", ["3", "15", "0.3"], &cache_writes)).await;
    let audio = [("audio_input_tokens", "40"), ("audio_output_tokens", "80")];
    create(&server, price("audio", ["2.5", "10", "1.25"], &audio)).await;
    let call = |model: &str, tokens: [i64; 3], measures: &[(&str, &str)]| UsageEvent {
        model: model.into(),
        input_tokens: tokens[0],
        output_tokens: tokens[1],
        cached_input_tokens: tokens[2],
        measures: texts(measures),
        ..event("acme", "openai", "1")
    };
    // 3 fresh tokens, 550 read from the cache, 12,304 written to it, 500 output tokens.
    let written = |kind: &str| call("claude", [12_857, 500, 550], &[(kind, "12304")]);
    assert_eq!(charge(&server, written("cache_write_5m_input_tokens")).await, "0.053814");
    assert_eq!(charge(&server, written("cache_write_1h_input_tokens")).await, "0.081498");
    // 500 fresh, 200 cached and 300 audio tokens; 350 texts, 100 of reasoning at the same rate, and 50 audio tokens.
    let spoken = [("audio_input_tokens", "300"), ("audio_output_tokens", "50"), ("reasoning_output_tokens", "100")];
    assert_eq!(charge(&server, call("audio", [1_000, 500, 200], &spoken)).await, "0.022");

    let request = EstimateCostRequest {
        service: "openai".into(),
        model: "audio".into(),
        input_tokens: 1_000,
        output_tokens: 500,
        cached_input_tokens: 200,
        measures: texts(&spoken),
        ..Default::default()
    };
    let estimate = server.catalog().estimate_cost(request).await.unwrap().into_inner();
    let lines: Vec<_> = estimate.lines.iter().map(|line| (&*line.component, &*line.quantity, &*line.amount)).collect();
    let expected = [
        ("input_token", "500", "0.00125"),
        ("output_token", "350", "0.0035"),
        ("cached_input_token", "200", "0.00025"),
        ("audio_input_tokens", "300", "0.012"),
        ("audio_output_tokens", "50", "0.004"),
        ("reasoning_output_tokens", "100", "0.001"),
    ];
    assert_eq!(lines, expected);
    assert_eq!(amount(&estimate.charge), "0.022");
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn an_event_with_a_measure_without_a_rate_is_unpriced_until_a_price_covers_it() {
    let server = november().await;
    create(&server, price("scan-1", ["", "", ""], &[("pages", "0.0015")])).await;
    assert_eq!(charge(&server, scan(&[("pages", "3")])).await, "0.0045");
    assert_eq!(charge(&server, scan(&[("images", "2"), ("pages", "1")])).await, "MeasureNotCovered");
    // Zero is the same as absent.
    assert_eq!(charge(&server, scan(&[("images", "0.0"), ("pages", "1")])).await, "0.0015");
    let covered = price("scan-1", ["", "", ""], &[("images", "0.04"), ("pages", "0.0015")]);
    create(&server, Price { effective_time: Some(timestamp("2026-11-01T00:00:00Z")), ..covered }).await;
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 0).await;
    let month = server.month("acme").await;
    assert_eq!(amount(&month.totals.unwrap().cost), "0.0875", "0.0045 + 0.0815 + 0.0015");
    assert_eq!(month.measures, texts(&[("images", "2"), ("pages", "5")]));
    server.assert_exact(3).await;
    server.stop().await;
}

/// By a call of one statement, by statements, and by COPY, on days of two months.
#[tokio::test]
async fn measures_are_added_up_by_day_and_can_be_read_everywhere() {
    use UsageDimension::{Day, Model, Month, Service, Subject};
    let server = november().await;
    create(&server, price("scan-1", ["", "", ""], &[("pages", "0.01"), ("seconds", "0.001")])).await;
    for size in [1, 3, 70] {
        let events = (0..size).map(|number| UsageEvent {
            event_time: Some(timestamp(if number % 2 == 0 { NOW } else { "2026-10-31T12:00:00Z" })),
            subject: if number % 3 == 0 { "ann".into() } else { "bob".into() },
            ..scan(&[("pages", "2"), ("seconds", "0.25")])
        });
        server.batch(events.collect(), false).await;
    }
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.assert_exact(75).await;
    // 38 of the 74 events are of November.
    assert_eq!(server.month("acme").await.measures, texts(&[("pages", "76"), ("seconds", "9.5")]));
    let both = summary(&server, "2026-10-01", "2026-11-30").await;
    assert_eq!(both.measures, texts(&[("pages", "148"), ("seconds", "18.5")]));
    let october = summary(&server, "2026-10-31", "2026-10-31").await;
    assert_eq!(october.measures, texts(&[("pages", "72"), ("seconds", "9")]));

    let rows = query(&server, &[Month, Service], &[]).await;
    let of = |rows: &[UsageRow]| -> Vec<(String, BTreeMap<String, String>)> {
        let key = |row: &UsageRow| {
            let parts = [&row.day, &row.month, &row.service, &row.model, &row.subject];
            parts.into_iter().flatten().cloned().collect::<Vec<_>>().join(" ")
        };
        rows.iter().map(|row| (key(row), row.measures.clone())).collect()
    };
    let expected = [
        ("2026-10 openai".to_owned(), texts(&[("pages", "72"), ("seconds", "9")])),
        ("2026-11 openai".to_owned(), texts(&[("pages", "76"), ("seconds", "9.5")])),
        ("2026-11 sms".to_owned(), BTreeMap::new()),
    ];
    assert_eq!(of(&rows), expected);
    let total = query(&server, &[], &[]).await;
    assert_eq!(total[0].measures, texts(&[("pages", "148"), ("seconds", "18.5")]));
    let by_subject = query(&server, &[Day, Model, Subject], &["ann"]).await;
    let pages: Vec<_> =
        by_subject.iter().map(|row| (row.day.clone().unwrap(), row.measures["pages"].clone())).collect();
    // Of the calls of 1, 3 and 70 events, each third event is of ann: 14 in November, 12 in October.
    assert_eq!(pages, [("2026-10-31".to_owned(), "24".to_owned()), ("2026-11-21".to_owned(), "28".to_owned())]);

    let listed = ListUsageEventsRequest { client_id: "acme".into(), page_size: 100, ..Default::default() };
    let listed = server.usage().list_usage_events(listed).await.unwrap().into_inner().events;
    let listed: Vec<_> = listed.into_iter().filter_map(|recorded| recorded.event).collect();
    let with_measures = listed.iter().filter(|event| event.measures == texts(&[("pages", "2"), ("seconds", "0.25")]));
    assert_eq!(with_measures.count(), 74);
    server.stop().await;
}

#[tokio::test]
async fn damage_of_the_sums_of_measures_is_found_and_rebuilt_and_they_move_with_their_events() {
    let server = november().await;
    create(&server, price("scan-1", ["", "", ""], &[("pages", "0.01")])).await;
    let late = UsageEvent { event_time: Some(timestamp("2026-10-31T23:30:00Z")), ..scan(&[("pages", "8")]) };
    server.batch(vec![scan(&[("pages", "1")]), scan(&[("pages", "2")]), late], false).await;
    server.assert_exact(3).await;
    let rebuild = async |rezone: bool| {
        let request = RebuildRollupsRequest {
            start_date: "2026-10-01".into(),
            end_date: "2026-11-30".into(),
            rezone,
            ..Default::default()
        };
        server.usage().rebuild_rollups(request).await.unwrap().into_inner()
    };
    for (damage, differences) in [
        ("UPDATE usage_day_measures SET quantity = quantity + 0.5 WHERE day = '2026-11-21'", 1),
        ("DELETE FROM usage_day_measures", 2),
        ("INSERT INTO usage_day_measures VALUES ('acme', '2026-11-21', 'openai', '', 'scan-1', 'images', 1)", 1),
        ("UPDATE usage_day_measures SET measure = 'sheets' WHERE day = '2026-11-21'", 2),
        ("UPDATE usage_events SET measures = NULL WHERE measures ->> 'pages' = '8'", 1),
    ] {
        assert!(server.sql(damage).await > 0, "{damage}");
        assert_eq!(server.verify().await.differences, differences, "{damage}");
        assert_eq!(rebuild(false).await.corrected_row_count, differences as i64, "{damage}");
        server.assert_exact(3).await;
    }
    let sums = "SELECT day::text || ' ' || measure || ' ' || trim_scale(quantity) FROM usage_day_measures ORDER BY 1";
    let sums = async || sqlx::query_scalar::<_, String>(sums).fetch_all(&server.pool).await.unwrap();
    assert_eq!(sums().await, ["2026-11-21 pages 3"]);
    server.sql("UPDATE usage_events SET measures = '{\"pages\": \"8\"}' WHERE measures IS NULL").await;
    rebuild(false).await;
    assert_eq!(sums().await, ["2026-10-31 pages 8", "2026-11-21 pages 3"]);
    let client = Client { client_id: "acme".into(), time_zone: "Asia/Tokyo".into(), ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
    server.clients().update_client(UpdateClientRequest { client: Some(client), update_mask }).await.unwrap();
    assert_eq!(rebuild(true).await.rezoned_event_count, 1);
    assert_eq!(sums().await, ["2026-11-01 pages 8", "2026-11-21 pages 3"]);
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_repeat_may_write_measures_differently_and_another_quantity_is_a_conflict() {
    let server = november().await;
    create(&server, price("scan-1", ["", "", ""], &[("pages", "0.01")])).await;
    let keyed = |measures: &[(&str, &str)]| UsageEvent { idempotency_key: "k".into(), ..scan(measures) };
    let first = server.track(keyed(&[("pages", "1.50")])).await.unwrap();
    let repeat = server.track(keyed(&[("images", "0"), ("pages", "1.5000000000000001")])).await.unwrap();
    assert_eq!((repeat.outcome(), &repeat.event_id), (EventOutcome::Duplicate, &first.event_id));
    assert_eq!(repeat.rounded, texts(&[(r#"measures["pages"]"#, "1.5")]));
    for changed in [
        keyed(&[("pages", "1.6")]),
        keyed(&[]),
        UsageEvent { service_tier: "batch".into(), ..keyed(&[("pages", "1.5")]) },
    ] {
        let field = if changed.service_tier.is_empty() { "measures" } else { "service_tier" };
        let status = assert_error(server.track(changed).await, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
        assert!(status.message().contains(&format!("differs in {field}")), "{status}");
    }
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn wrong_measures_and_rates_are_rejected_with_their_names() {
    let server = november().await;
    let seventeen: Vec<(String, &str)> = (0..17).map(|number| (format!("m{number}"), "1")).collect();
    let seventeen: Vec<(&str, &str)> = seventeen.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    /// Measures, the wrong field, and a part of the message.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 10] = [
        (&[("Pages", "1")], "event.measures", "lower-case letters"),
        (&[("", "1")], "event.measures", "must be a name"),
        (&[("input_tokens", "1")], "event.measures", "set the field"),
        (&[("cache_wirte_tokens", "1")], "event.measures", "known are audio_input_tokens"),
        (&[("pages", "-1")], r#"event.measures["pages"]"#, "must be zero or more"),
        (&[("pages", "")], r#"event.measures["pages"]"#, ""),
        (&[("pages", "1e15")], r#"event.measures["pages"]"#, ""),
        (&[("audio_input_tokens", "1.5")], r#"event.measures["audio_input_tokens"]"#, "whole number"),
        (&[("audio_input_tokens", "11")], "event.measures", "parts of input_tokens that are together 11"),
        (&seventeen, "event.measures", "at most 16, has 17"),
    ];
    for (measures, field, part) in cases {
        let call = UsageEvent { input_tokens: 10, output_tokens: 1, ..scan(measures) };
        let status = assert_invalid(server.track(call).await, "INVALID_FIELD", &[field]);
        assert!(status.message().contains(part), "{measures:?}: {status}");
    }
    let parts = [("audio_input_tokens", "6"), ("image_input_tokens", "3"), ("reasoning_output_tokens", "2")];
    let call = UsageEvent { input_tokens: 10, output_tokens: 1, cached_input_tokens: 2, ..scan(&parts) };
    let status = assert_invalid(server.track(call).await, "INVALID_FIELD", &["event.measures"]);
    assert!(status.message().contains("together 11, which is more than input_tokens, 10"), "{status}");

    let wrong = async |price: Price| {
        let request = CreatePriceRequest { price: Some(price), ..Default::default() };
        let status = server.catalog().create_price(request).await.unwrap_err();
        (error_parts(&status).2, status.message().to_owned())
    };
    let (fields, _) = wrong(price("m", ["", "", ""], &[("pages", "x"), ("units", "1")])).await;
    assert_eq!(fields, [r#"price.rates.measures["pages"]"#, "price.rates.measures"]);
    let mut per_token = price("m", ["", "", ""], &[("audio_input_tokens", "40")]);
    per_token.rates.as_mut().unwrap().measures = texts(&[("audio_input_tokens", "40")]);
    let (fields, message) = wrong(per_token).await;
    assert_eq!(fields, [r#"price.rates.measures["audio_input_tokens"]"#]);
    assert!(message.contains("0.00004"), "the fix is named: {message}");
    let (fields, _) = wrong(Price { above_input_tokens: Some(-1), ..price("m", ["1", "", ""], &[]) }).await;
    assert_eq!(fields, ["price.above_input_tokens"]);
    server.stop().await;
}

#[tokio::test]
async fn an_event_has_the_price_for_its_service_tier_and_its_number_of_input_tokens() {
    let server = november().await;
    for (service_tier, above_input_tokens, input) in
        [("", None, "1"), ("batch", None, "0.5"), ("", Some(200_000), "2"), ("batch", Some(200_000), "0.9")]
    {
        let price = Price { service_tier: service_tier.into(), above_input_tokens, ..price("m", [input, "", ""], &[]) };
        let made = create(&server, price.clone()).await;
        assert_eq!((&made.service_tier, made.above_input_tokens), (&price.service_tier, above_input_tokens));
        let request = CreatePriceRequest { price: Some(price), ..Default::default() };
        assert_error(server.catalog().create_price(request).await, Code::AlreadyExists, "PRICE_EXISTS");
    }
    let mut expected = HashMap::new();
    for (service_tier, input_tokens, cost) in [
        ("", 200_000, "0.2"),
        ("default", 200_000, "0.2"),
        ("batch", 200_000, "0.1"),
        ("", 200_001, "0.400002"),
        ("batch", 200_001, "0.1800009"),
    ] {
        let call = UsageEvent {
            model: "m".into(),
            service_tier: service_tier.into(),
            input_tokens,
            ..event("acme", "openai", "1")
        };
        let result = server.track(call.clone()).await.unwrap();
        assert_eq!(amount(&result.charge), cost, "{service_tier} {input_tokens}");
        expected.insert(result.event_id, call.service_tier.clone());
        let request = EstimateCostRequest {
            service: "openai".into(),
            model: "m".into(),
            service_tier: call.service_tier,
            input_tokens,
            ..Default::default()
        };
        let estimate = server.catalog().estimate_cost(request).await.unwrap().into_inner();
        assert_eq!((amount(&estimate.charge), estimate.price_id), (cost, result.price_id));
    }
    let listed = ListUsageEventsRequest { client_id: "acme".into(), ..Default::default() };
    let listed = server.usage().list_usage_events(listed).await.unwrap().into_inner().events;
    let listed = listed.into_iter().map(|recorded| (recorded.event_id, recorded.event.unwrap().service_tier));
    assert_eq!(listed.collect::<HashMap<_, _>>(), expected);

    // The list can be paged through.
    let (mut page_token, mut order) = (String::new(), vec![]);
    loop {
        let request = ListPricesRequest { service: "openai".into(), page_size: 1, page_token, ..Default::default() };
        let page = server.catalog().list_prices(request).await.unwrap().into_inner();
        let of_model = page.prices.into_iter().filter(|price| price.model == "m");
        order.extend(of_model.map(|price| (price.service_tier, price.above_input_tokens)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let tier = |name: &str, bound| (name.to_owned(), bound);
    let batch = "batch";
    assert_eq!(order, [tier("", None), tier("", Some(200_000)), tier(batch, None), tier(batch, Some(200_000))]);
    server.assert_exact(5).await;
    server.stop().await;
}
