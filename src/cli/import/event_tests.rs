use super::*;
use crate::cli::import::fields::MappingArgs;
use clap::Parser;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    mapping: MappingArgs,
}

fn csv(flags: &[&str], header: &str, row: &str) -> Result<UsageEvent, Vec<Fault>> {
    let split = |line: &str| line.split(';').map(str::to_owned).collect::<Vec<_>>();
    let args = Flags::try_parse_from([&["test"], flags].concat()).unwrap().mapping;
    let mapping = Mapping::for_csv(&args, &split(header)).unwrap();
    event_of(&Cells::Csv(split(row)), &mapping, &TimeRules::default())
}

fn ndjson(flags: &[&str], row: &str) -> Result<UsageEvent, Vec<Fault>> {
    let args = Flags::try_parse_from([&["test"], flags].concat()).unwrap().mapping;
    let cells = Cells::Json(serde_json::from_str(row).unwrap());
    event_of(&cells, &Mapping::for_json(&args), &TimeRules::default())
}

fn text(value: &Value) -> &str {
    match &value.kind {
        Some(Kind::StringValue(text)) => text,
        _ => panic!("{value:?}"),
    }
}

const TRACE_FLAGS: [&str; 14] = [
    "--client",
    "azure-chat",
    "--service",
    "openai",
    "--operation",
    "chat_completion",
    "--model",
    "gpt-4o-mini",
    "--time-column",
    "TIMESTAMP",
    "--input-tokens-column",
    "ContextTokens",
    "--output-tokens-column",
    "GeneratedTokens",
];

#[test]
fn a_row_of_the_public_trace_becomes_an_event() {
    let event =
        csv(&TRACE_FLAGS, "TIMESTAMP;ContextTokens;GeneratedTokens", "2023-11-16 18:15:46.6805900;374;44").unwrap();
    let expected = UsageEvent {
        client_id: "azure-chat".into(),
        service: "openai".into(),
        operation: "chat_completion".into(),
        model: "gpt-4o-mini".into(),
        input_tokens: 374,
        output_tokens: 44,
        event_time: Some(Timestamp { seconds: 1_700_158_546, nanos: 680_590_000 }),
        ..Default::default()
    };
    assert_eq!(event, expected);
}

#[test]
fn every_wrong_column_is_told_at_once() {
    let faults = csv(&TRACE_FLAGS, "TIMESTAMP;ContextTokens;GeneratedTokens", "soon;374.5;-4").unwrap_err();
    let columns: Vec<_> = faults.iter().map(|fault| fault.column.as_str()).collect();
    assert_eq!(columns, ["ContextTokens", "GeneratedTokens", "TIMESTAMP"]);
}

#[test]
fn numbers_stay_exact() {
    let row = r#"{"client_id":"a","service":"s","event_time":1700158546.680590,"units":0.1,"amount":1e-7,"input_tokens":374.0}"#;
    let event = ndjson(&[], row).unwrap();
    assert_eq!((event.units.as_str(), event.amount.as_str(), event.input_tokens), ("0.1", "0.0000001", 374));
    assert_eq!(event.event_time.unwrap().nanos, 680_590_000);
    let faults = ndjson(&[], &row.replace("374.0", "12345678901234567890")).unwrap_err();
    assert_eq!(faults[0].column, "input_tokens");
}

#[test]
fn ids_that_are_numbers_in_json_keep_their_digits() {
    let row = r#"{"client_id":12345678901234567890,"service":"s","event_time":"2026-11-01"}"#;
    assert_eq!(ndjson(&[], row).unwrap().client_id, "12345678901234567890");
}

#[test]
fn nested_json_is_reached_by_path_or_told() {
    let row = r#"{"tenant":{"id":"acme"},"kind":"sms","at":"2026-11-01T00:00:00Z","tags":{"x":1}}"#;
    let flags = [
        "--client-column",
        "tenant.id",
        "--service-column",
        "kind",
        "--time-column",
        "at",
        "--metadata-column",
        "tags",
    ];
    let event = ndjson(&flags, row).unwrap();
    assert_eq!(event.client_id, "acme");
    assert!(matches!(event.metadata.unwrap().fields["tags"].kind, Some(Kind::StructValue(_))));
    let flags = ["--client-column", "tenant", "--service-column", "kind", "--time-column", "at"];
    assert!(ndjson(&flags, row).unwrap_err()[0].message.contains("dotted path"));
}

#[test]
fn what_is_required_has_to_be_there() {
    let faults = ndjson(&[], "{}").unwrap_err();
    let columns: Vec<_> = faults.iter().map(|fault| fault.column.as_str()).collect();
    assert_eq!(columns, ["client_id", "service", "event_time"]);
    let faults = csv(&[], "client_id;service;event_time", ";sms;").unwrap_err();
    assert_eq!(faults.len(), 2);
}

#[test]
fn now_leaves_the_time_to_the_server() {
    assert_eq!(csv(&["--time", "now"], "client_id;service", "a;b").unwrap().event_time, None);
}

#[test]
fn names_keep_the_contracts_bounds() {
    let long = "x".repeat(129);
    assert!(
        csv(&[], "client_id;service;event_time", &format!("{long};s;2026-11-01")).unwrap_err()[0]
            .message
            .contains("128 bytes")
    );
    assert!(
        csv(&[], "client_id;service;event_time", "a\u{7};s;2026-11-01").unwrap_err()[0].message.contains("control")
    );
    let faults = csv(&[], "client_id;service;event_time;cached_input_tokens", "a;s;2026-11-01;5").unwrap_err();
    assert_eq!(faults[0].column, "cached_input_tokens");
}

#[test]
fn metadata_comes_from_its_column_and_from_others() {
    let header = "client_id;service;event_time;metadata;region";
    let event = csv(&["--metadata-column", "region"], header, r#"a;s;2026-11-01;{"k":"v"};eu"#).unwrap();
    let metadata = event.metadata.unwrap();
    assert_eq!((text(&metadata.fields["k"]), text(&metadata.fields["region"])), ("v", "eu"));
    assert_eq!(csv(&[], header, "a;s;2026-11-01;;").unwrap().metadata, None);
    assert_eq!(csv(&[], header, "a;s;2026-11-01;[1];").unwrap_err()[0].column, "metadata");
}

#[test]
fn an_export_comes_back_as_it_was() {
    let header = "event_id;client_id;service;operation;model;units;input_tokens;output_tokens;cached_input_tokens;amount;\
                  event_time;day;currency;charge;price_id;unpriced_reason;idempotency_key;subject;external_id;metadata;record_time";
    let row = "e1;'=acme;openai;chat;'''-x;2.5;10;3;1;;2026-11-01T10:00:00.123456Z;2026-11-01;USD;0.1;p1;;k1;'plain;'@x;\
               {\"a\":1};2026-11-01T10:00:01Z";
    let event = csv(&[], header, row).unwrap();
    assert_eq!(event.client_id, "=acme");
    assert_eq!(event.model, "''-x");
    assert_eq!((event.subject.as_str(), event.external_id.as_str()), ("'plain", "@x"));
    assert_eq!((event.idempotency_key.as_str(), event.units.as_str()), ("k1", "2.5"));
    assert_eq!(event.event_time.unwrap().nanos, 123_456_000);
    let plain = csv(&[], "client_id;service;event_time", "'=acme;s;2026-11-01").unwrap();
    assert_eq!(plain.client_id, "'=acme");
}

#[test]
fn an_exported_json_object_comes_back_flat_or_nested() {
    let flat = r#"{"event_id":"e","client_id":"a","service":"s","units":"2.5","input_tokens":"10","event_time":"2026-11-01T00:00:00Z","idempotency_key":"k","metadata":{"n":1}}"#;
    let nested = r#"{"event_id":"e","event":{"client_id":"a","service":"s","units":"2.5","input_tokens":"10","event_time":"2026-11-01T00:00:00Z","idempotency_key":"k","metadata":{"n":1}}}"#;
    assert_eq!(ndjson(&[], flat).unwrap(), ndjson(&[], nested).unwrap());
    assert_eq!(ndjson(&[], flat).unwrap().input_tokens, 10);
}
