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

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2_000))]
    /// A dry run refuses what the server would: what it takes has numbers within the contract's bounds, and short plain texts.
    #[test]
    fn any_row_becomes_an_event_within_the_bounds_or_is_refused(
        texts in proptest::collection::vec("acme|sms|x|é|[a-z]{1,128}|\\PC{0,8}|[a-z\u{1}]{0,140}", 7),
        numbers in proptest::collection::vec("|0|1|[0-9]{1,3}|[0-9]{1,14}|[-+]?[0-9]{0,17}(\\.[0-9]{0,14})?(e-?[0-9])?|\\PC{0,4}", 5),
        time in "2026-11-21T10:00:00Z|2026-11-21 10:00|1700000000\\.5|[+-]?[0-9]{1,7}-[01]?[0-9]-[0-3]?[0-9]([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\\.[0-9]{1,12})?)?)?(Z|[+-][0-9]{2}:[0-9]{2})?|[0-9]{1,20}(\\.[0-9]{0,5})?|\\PC*",
        metadata in "||\\{\"a\":[0-9e.-]{0,6}\\}|\\PC*",
    ) {
        let names = Field::ALL.map(|field| field.name().to_owned());
        let [client, service, operation, model, key, subject, external_id] = texts.try_into().unwrap();
        let [units, input, output, cached, amount] = numbers.try_into().unwrap();
        let cells = [client, service, operation, model, units, input, output, cached, amount, time, key, subject, external_id, metadata];
        let args = Flags::try_parse_from(["test"]).unwrap().mapping;
        let mapping = Mapping::for_csv(&args, &names).unwrap();
        for zone in [None, Some(chrono_tz::America::New_York), Some(chrono_tz::Pacific::Kiritimati)] {
            let rules = TimeRules { zone, format: None };
            let Ok(event) = event_of(&Cells::Csv(cells.to_vec()), &mapping, &rules) else { continue };
            for number in [&event.units, &event.amount] {
                proptest::prop_assert!(number.is_empty() || crate::domain::decimal::Decimal::parse_rounded(number).is_ok(), "{}", number);
            }
            let tokens = [event.input_tokens, event.output_tokens, event.cached_input_tokens];
            proptest::prop_assert!(tokens.iter().all(|count| (0..=1_000_000_000_000).contains(count)));
            let time = event.event_time.unwrap_or_default();
            proptest::prop_assert!((0..=253_402_300_800).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos));
            let ids = [&event.client_id, &event.service, &event.operation, &event.model, &event.idempotency_key, &event.subject];
            proptest::prop_assert!(ids.iter().all(|id| id.len() <= 128 && !id.contains(char::is_control)));
        }
    }
}
