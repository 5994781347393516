//! Exports are complete, exact, safe in a spreadsheet, and limited.

use crate::harness::*;
use meterd::proto::*;
use meterd_domain::decimal::{Decimal, Total};
use meterd_engine::clock::Clock;
use std::collections::HashMap;
use std::time::Duration;
use tonic::Code;
use tonic_types::StatusExt;

/// Returns the chunks of an export.
async fn pieces(server: &TestServer, request: ExportUsageRequest) -> Vec<ExportUsageResponse> {
    let mut stream = server.usage().export_usage(request).await.unwrap().into_inner();
    let mut pieces = vec![];
    while let Some(piece) = stream.message().await.unwrap() {
        pieces.push(piece);
    }
    pieces
}

fn file(pieces: &[ExportUsageResponse]) -> String {
    String::from_utf8(pieces.iter().flat_map(|piece| piece.data.clone()).collect()).unwrap()
}

/// Returns the rows of a CSV file by column.
fn csv_rows(file: &str) -> Vec<HashMap<String, String>> {
    csv::Reader::from_reader(file.as_bytes()).deserialize().collect::<Result<_, _>>().unwrap()
}

fn ndjson(client_id: &str) -> ExportUsageRequest {
    let format = ExportFormat::Ndjson.into();
    ExportUsageRequest { client_id: client_id.into(), format, ..Default::default() }
}

#[tokio::test]
async fn a_csv_file_has_a_header_and_every_field_of_every_event() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00.5Z"))).await;
    server.create_client_in_zone("acme", "Pacific/Kiritimati").await;
    let kind = prost_types::value::Kind::StringValue("say \"hi\", twice".into());
    let metadata = prost_types::Struct { fields: [("k".into(), prost_types::Value { kind: Some(kind) })].into() };
    let sent = UsageEvent {
        operation: "chat, with a comma".into(),
        cached_input_tokens: 1,
        amount: "2.50".into(),
        subject: "u1".into(),
        external_id: "SM1".into(),
        idempotency_key: "k1".into(),
        metadata: Some(metadata),
        service_tier: "flex".into(),
        measures: [("reasoning_output_tokens".into(), "2".into())].into(),
        reported_cost: "0.1".into(),
        labels: [("project".into(), "=1".into())].into(),
        ..model_call("acme", 10, 5)
    };
    let result = server.track(sent).await.unwrap();
    server.track(event("acme", "social", "0.000000000001")).await.unwrap();
    let pieces = pieces(&server, ExportUsageRequest::default()).await;
    let file = file(&pieces);
    let header = "event_id,client_id,day,event_time,service,operation,model,units,input_tokens,output_tokens,\
                  cached_input_tokens,amount,currency,charge,price_id,unpriced_reason,subject,external_id,\
                  idempotency_key,metadata,record_time,service_tier,measures,void_time,reported_cost,labels,tier_residue";
    assert_eq!(file.split("\r\n").next().unwrap(), header);
    assert_eq!(file.matches("\r\n").count(), 3);
    let rows = csv_rows(&file);
    let first = rows.iter().find(|row| row["idempotency_key"] == "k1").unwrap();
    let cells = [
        ("event_id", &*result.event_id),
        ("client_id", "acme"),
        ("day", "2026-11-22"),
        ("event_time", "2026-11-21T12:00:00.500000Z"),
        ("service", "openai"),
        ("operation", "chat, with a comma"),
        ("model", "gpt-4o-mini"),
        ("units", "1"),
        ("input_tokens", "10"),
        ("output_tokens", "5"),
        ("cached_input_tokens", "1"),
        ("amount", "2.5"),
        ("currency", "USD"),
        ("charge", "0.000004425"),
        ("price_id", &*result.price_id),
        ("unpriced_reason", ""),
        ("subject", "u1"),
        ("external_id", "SM1"),
        ("metadata", r#"{"k": "say \"hi\", twice"}"#),
        ("service_tier", "flex"),
        ("measures", r#"{"reasoning_output_tokens": "2"}"#),
        ("reported_cost", "0.1"),
        ("labels", r#"{"project": "=1"}"#),
    ];
    for (column, cell) in cells {
        assert_eq!(first[column], cell, "{column}");
    }
    let second = rows.iter().find(|row| row["service"] == "social").unwrap();
    assert_eq!((&*second["charge"], &*second["unpriced_reason"], &*second["amount"]), ("", "NO_PRICE", ""));
    assert_eq!(second["units"], "0.000000000001");
    server.stop().await;
}

#[tokio::test]
async fn an_ndjson_file_has_one_object_per_line_without_empty_fields() {
    let server = TestServer::start().await;
    server.track(UsageEvent { subject: "=1+1".into(), ..event("acme", "social", "1.5") }).await.unwrap();
    let file = file(&pieces(&server, ndjson("acme")).await);
    assert_eq!(file.lines().count(), 1);
    let object: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&object["units"], &object["input_tokens"]), (&"1.5".into(), &0.into()));
    assert_eq!((&object["subject"], &object["unpriced_reason"]), (&"=1+1".into(), &"NO_PRICE".into()));
    for absent in [
        "charge",
        "currency",
        "price_id",
        "amount",
        "metadata",
        "external_id",
        "service_tier",
        "measures",
        "void_time",
        "labels",
    ] {
        assert!(object.get(absent).is_none(), "{absent}");
    }
    server.stop().await;
}

#[tokio::test]
async fn cells_that_a_spreadsheet_would_execute_are_escaped_and_can_be_restored() {
    let server = TestServer::start().await;
    let texts = ["=1+1", "+1", "-1", "@a", "'=1", "'quoted'", "a=1"];
    for text in texts {
        let event = UsageEvent { external_id: text.into(), model: text.into(), ..event("acme", "sms", "1") };
        server.track(UsageEvent { idempotency_key: text.into(), ..event }).await.unwrap();
    }
    server.track(event("=cmd|' /C calc'!A0", "sms", "1")).await.unwrap();
    // Callers cannot send control characters, but something else that writes to the table could.
    server.track(UsageEvent { idempotency_key: "control".into(), ..event("acme", "sms", "1") }).await.unwrap();
    server
        .sql("UPDATE usage_events SET subject = E'\\t1', external_id = E'\\r1' WHERE idempotency_key = 'control'")
        .await;
    let rows = csv_rows(&file(&pieces(&server, ExportUsageRequest::default()).await));
    assert_eq!(rows.len(), texts.len() + 2);
    for row in &rows {
        for cell in row.values() {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
        }
    }
    let undo = |cell: &str| match cell.strip_prefix('\'') {
        Some(rest) if rest.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']) => rest.to_string(),
        _ => cell.to_string(),
    };
    let mut read: Vec<String> = rows.iter().map(|row| undo(&row["model"])).filter(|text| !text.is_empty()).collect();
    let mut sent = texts.map(String::from).to_vec();
    read.sort();
    sent.sort();
    assert_eq!(read, sent);
    assert!(rows.iter().any(|row| row["subject"] == "'\t1" && row["external_id"] == "'\r1"));
    server.stop().await;
}

#[tokio::test]
async fn an_export_contains_the_events_that_match_its_filters() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let (first, second, third) = ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z");
    for client in ["acme", "beta"] {
        for service in ["sms", "email"] {
            let events = [first, second, third].map(|time| event_at(client, service, "1", time));
            server.batch(events.into(), false).await;
        }
    }
    let count = async |request| csv_rows(&file(&pieces(&server, request).await)).len();
    assert_eq!(count(ExportUsageRequest::default()).await, 12);
    let of_acme = ExportUsageRequest { client_id: "acme".into(), ..Default::default() };
    assert_eq!(count(of_acme.clone()).await, 6);
    let of_sms = ExportUsageRequest { services: vec!["sms".into(), "none".into()], ..of_acme };
    assert_eq!(count(of_sms.clone()).await, 3);
    let from = ExportUsageRequest { start_time: Some(timestamp(second)), ..of_sms };
    assert_eq!(count(from.clone()).await, 2);
    let until = ExportUsageRequest { end_time: Some(timestamp(third)), ..from };
    assert_eq!(count(until.clone()).await, 1);
    let none = ExportUsageRequest { end_time: Some(timestamp(second)), ..until };
    let pieces = pieces(&server, none).await;
    assert_eq!((pieces.len(), pieces[0].event_count, csv_rows(&file(&pieces)).len()), (1, 0, 0));
    server.stop().await;
}

#[tokio::test]
async fn all_chunks_together_have_the_exact_sums_of_the_month() {
    let server = TestServer::start().await;
    let events = (0..3_000_i64).map(|number| {
        let units = format!("{}.{:012}", number % 7, number * 7_919);
        UsageEvent { external_id: format!("SM{number:032}"), ..event("acme", "twilio_voice", &units) }
    });
    server.batch(events.collect(), false).await;
    let totals = server.month("acme").await.totals.unwrap();
    for format in [ExportFormat::Csv, ExportFormat::Ndjson] {
        let pieces = pieces(&server, ExportUsageRequest { format: format.into(), ..ndjson("acme") }).await;
        assert!(pieces.len() > 5, "the export must have several chunks");
        let ends = |piece: &ExportUsageResponse| piece.data.last() == Some(&b'\n');
        assert!(pieces.iter().all(ends), "each chunk must consist of complete lines");
        assert!(pieces.is_sorted_by_key(|piece| piece.event_count));
        assert_eq!(pieces.last().unwrap().event_count, 3_000);
        let rows: Vec<HashMap<String, serde_json::Value>> = match format {
            ExportFormat::Csv => {
                let rows = csv_rows(&file(&pieces)).into_iter();
                rows.map(|row| row.into_iter().map(|(column, cell)| (column, cell.into())).collect()).collect()
            }
            _ => file(&pieces).lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        };
        let sum = |column: &str| -> Total {
            rows.iter().map(|row| Total::from(Decimal::parse(row[column].as_str().unwrap()).unwrap())).sum()
        };
        assert_eq!(sum("units").to_string(), totals.units);
        assert_eq!(&sum("charge").to_string(), amount(&totals.cost));
    }
    server.stop().await;
}

/// Records so many events that their export fits into no buffer.
async fn fill(server: &TestServer) {
    let kind = prost_types::value::Kind::StringValue("x".repeat(7_000));
    let metadata = prost_types::Struct { fields: [("k".into(), prost_types::Value { kind: Some(kind) })].into() };
    let event = UsageEvent { metadata: Some(metadata), ..event("acme", "sms", "1") };
    for _ in 0..2 {
        server.batch(vec![event.clone(); 1_000], false).await;
    }
}

#[tokio::test]
async fn an_export_above_the_limit_is_rejected_until_a_reader_disconnects() {
    let server = TestServer::start_with(&["--exports-max=1"], Clock::system()).await;
    fill(&server).await;
    let mut first = server.usage().export_usage(ndjson("acme")).await.unwrap().into_inner();
    first.message().await.unwrap().unwrap();
    let refused = server.usage().export_usage(ndjson("acme")).await;
    let status = assert_error(refused, Code::ResourceExhausted, "TOO_MANY_EXPORTS");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    drop(first);
    let freed = async {
        loop {
            match server.usage().export_usage(ndjson("acme")).await {
                Ok(stream) => return stream.into_inner(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let mut again = tokio::time::timeout(Duration::from_secs(5), freed).await.expect("the slot is free in time");
    let mut last = None;
    while let Some(piece) = again.message().await.unwrap() {
        last = Some(piece);
    }
    assert_eq!(last.unwrap().event_count, 2_000);
    server.stop().await;
}

#[tokio::test]
async fn an_export_shows_the_state_at_one_moment() {
    let server = TestServer::start().await;
    fill(&server).await;
    let mut stream = server.usage().export_usage(ndjson("acme")).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let late = server.track(event("acme", "sms", "1")).await.unwrap();
    let (mut last, mut seen) = (first.clone(), false);
    while let Some(piece) = stream.message().await.unwrap() {
        assert_eq!(piece.complete_as_of_time, first.complete_as_of_time);
        seen |= String::from_utf8_lossy(&piece.data).contains(&late.event_id);
        last = piece;
    }
    assert_eq!((last.event_count, seen), (2_000, false));
    server.stop().await;
}
