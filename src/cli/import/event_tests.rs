use super::*;
use crate::cli::import::fields::MappingArgs;
use clap::Parser;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    mapping: MappingArgs,
}

fn csv(flags: &[&str], header: &str, row: &str) -> Result<UsageEvent, Vec<Fault>> {
    csv_by(&EventRules::default(), flags, header, row).map(|read| read.event)
}

fn csv_by(rules: &EventRules, flags: &[&str], header: &str, row: &str) -> Result<ReadEvent, Vec<Fault>> {
    let split = |line: &str| line.split(';').map(str::to_owned).collect::<Vec<_>>();
    let args = Flags::try_parse_from([&["test"], flags].concat()).unwrap().mapping;
    let mapping = Mapping::for_csv(&args, &split(header)).unwrap();
    event_of(&Cells::Csv(split(row)), &mapping, rules)
}

fn ndjson(flags: &[&str], row: &str) -> Result<UsageEvent, Vec<Fault>> {
    ndjson_by(&EventRules::default(), flags, row).map(|read| read.event)
}

fn ndjson_by(rules: &EventRules, flags: &[&str], row: &str) -> Result<ReadEvent, Vec<Fault>> {
    let args = Flags::try_parse_from([&["test"], flags].concat()).unwrap().mapping;
    let cells = Cells::Json(serde_json::from_str(row).unwrap());
    event_of(&cells, &Mapping::for_json(&args), rules)
}

#[test]
fn values_such_as_null_are_empty_and_counted() {
    let header = "client_id;service;operation;input_tokens;cached_input_tokens;event_time;idempotency_key";
    for word in ["NaN", "None", "null", "N/A", "undefined", "#N/A"] {
        let read = csv_by(&EventRules::default(), &[], header, &format!("z;openai;{word};5;{word};2026-11-20;{word}"));
        let read = read.unwrap();
        assert_eq!((read.event.operation.as_str(), read.event.idempotency_key.as_str()), ("", ""), "{word}");
        assert_eq!(read.notes.null_cells, 3, "{word}");
        let faults = csv(&[], header, &format!("{word};openai;o;5;0;2026-11-20;k")).unwrap_err();
        assert_eq!(faults[0].message, format!("is required, but {word:?} means empty"));
    }
    assert_eq!(csv(&[], HEADER, "z;sms;-;-;2026-11-20").unwrap_err()[0].column, "units");
    let event = csv(&[], HEADER, "na;sms;none;1;2026-11-20").unwrap();
    assert_eq!((event.client_id.as_str(), event.operation.as_str()), ("na", "none"));
    assert_eq!(csv(&["--client", "None"], "service;event_time", "sms;2026-11-20").unwrap().client_id, "None");
}

#[test]
fn a_row_with_sums_is_rejected_unless_it_is_usage() {
    let flags = ["--time", "now", "--service", "sms", "--client-column", "Customer", "--units-column", "Quantity"];
    let header = "Region;Customer;Quantity";
    for row in ["eu;Total;3", "Grand total:;acme;3", "TOTAL;;3", ";Summe;3"] {
        let faults = csv(&flags, header, row).unwrap_err();
        assert!(faults.len() == 1 && faults[0].message.contains("--total-rows"), "{row}: {faults:?}");
    }
    assert!(csv(&flags, header, "eu;Total Energies;3").is_ok());
    let rules = EventRules { total_rows: true, ..EventRules::default() };
    assert_eq!(csv_by(&rules, &flags, header, "eu;Total;3").unwrap().event.client_id, "Total");
    assert!(csv(&["--client", "total"], "service;event_time", "sms;2026-11-20").is_ok());
    assert!(ndjson(&[], r#"{"client_id":"total","service":"sms","event_time":"2026-11-20"}"#).is_err());
}

#[test]
fn a_formula_around_a_text_is_removed() {
    let read = csv_by(&EventRules::default(), &[], HEADER, "=\"0012\";sms;=A1;=\"3\";2026-11-20").unwrap();
    assert_eq!((read.event.client_id.as_str(), read.event.units.as_str()), ("0012", "3"));
    assert_eq!((read.event.operation.as_str(), read.notes.formula_cells), ("=A1", 2));
}

#[test]
fn the_error_of_a_text_that_is_almost_a_number_says_what_to_remove() {
    for (units, hint) in [
        ("(3)", "parentheses mean a negative number"),
        ("\u{2212}3", "the number is negative"),
        ("$5", "currency sign"),
        ("5,00 \u{20ac}", "--decimal-comma"),
        ("50%", "percent sign"),
        ("3 sms", "the text after the number"),
        ("'3'", "must be a decimal number"),
    ] {
        let faults = csv(&[], HEADER, &format!("z;sms;o;{units};2026-11-20")).unwrap_err();
        assert!(faults[0].message.contains(hint), "{units}: {}", faults[0].message);
    }
}

#[test]
fn an_id_in_single_quotes_is_rejected() {
    let faults = csv(&[], HEADER, "'z';'sms';o;1;2026-11-20").unwrap_err();
    assert_eq!(faults.len(), 2);
    assert!(faults[0].message.contains("single quotes"), "{}", faults[0].message);
    assert!(csv(&[], HEADER, "o'z;sms;o;1;2026-11-20").is_ok());
}

#[test]
fn the_error_of_events_in_a_list_says_how_to_convert_them() {
    let faults = ndjson(&[], r#"{"object":"page","data":[{"client_id":"a"}]}"#).unwrap_err();
    assert!(faults.len() == 1 && faults[0].message.contains(r#"jq -c 'del(."data") + ."data"[]'"#), "{faults:?}");
    let faults = ndjson(&[], r#"{"client_id":"a","items":[{"x":1}]}"#).unwrap_err();
    assert_eq!(faults.iter().map(|fault| fault.column.as_str()).collect::<Vec<_>>(), ["service", "event_time"]);
}

#[test]
fn two_keys_for_one_field_are_an_error() {
    let row = r#"{"client_id":"z","service":"sms","event_time":"2026-11-20","Units":1,"UNITS":100}"#;
    let faults = ndjson(&[], row).unwrap_err();
    assert!(faults[0].message.contains(r#"can come from "UNITS" or "Units": add --units-column"#), "{faults:?}");
    assert_eq!(ndjson(&["--units-column", "Units"], row).unwrap().units, "1");
    // The exact name has precedence, and a note names the other key.
    let row = row.replace("UNITS", "units");
    let read = ndjson_by(&EventRules::default(), &[], &row).unwrap();
    assert_eq!((read.event.units.as_str(), read.notes.unused.keys().next().unwrap().as_str()), ("100", "Units"));
}

#[test]
fn values_in_a_nested_object_are_suggested_with_their_path() {
    let row = r#"{"client_id":"z","service":"openai","event_time":"2026-11-20",
        "usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":1},"total_tokens":5}}"#;
    let mapping = Mapping::for_json(&Default::default());
    let notes = ndjson_by(&EventRules::default(), &[], row).unwrap().notes;
    let unused: Vec<String> = notes.unused.keys().map(|key| mapping.unused_text(key)).collect();
    assert_eq!(
        unused,
        [
            "usage.prompt_tokens; did you mean input_tokens? Then use --input-tokens-column \"usage.prompt_tokens\"",
            "usage.prompt_tokens_details.cached_tokens; did you mean cached_input_tokens? Then use --cached-input-tokens-column \
             \"usage.prompt_tokens_details.cached_tokens\""
        ]
    );
}

const HEADER: &str = "client_id;service;operation;units;event_time";

#[test]
fn spaces_around_values_are_removed_and_counted() {
    let read = csv_by(&EventRules::default(), &[], HEADER, " z\u{a0}; sms ;\u{200b}out; 1 ; 2026-11-20 ").unwrap();
    let event = &read.event;
    assert_eq!((event.client_id.as_str(), event.service.as_str(), event.operation.as_str()), ("z", "sms", "out"));
    assert_eq!(read.notes.trimmed_cells, 5);
    let original = read.original();
    assert_eq!((original.client_id.as_str(), original.units.as_str()), (" z\u{a0}", "1"));
    let read =
        ndjson_by(&EventRules::default(), &[], r#"{"client_id":" z","service":"sms","event_time":"2026-11-20"}"#);
    assert_eq!(read.unwrap().event.client_id, "z");
}

#[test]
fn ids_that_a_spreadsheet_has_shortened_are_rejected() {
    for id in ["4.91762E+11", "4,91762E+11", "1E+15"] {
        let faults = csv(&[], HEADER, &format!("{id};sms;o;1;2026-11-20")).unwrap_err();
        assert!(faults[0].message.contains("shortened"), "{id}");
    }
    assert!(csv(&[], HEADER, "E+12;sms;1E+1;1;2026-11-20").is_ok());
}

#[test]
fn null_values_of_databases_are_empty() {
    let read = csv_by(&EventRules::default(), &[], HEADER, "z;sms;NULL;1;2026-11-20").unwrap();
    assert_eq!((read.event.operation.as_str(), read.notes.null_cells), ("", 1));
    assert_eq!(csv(&[], HEADER, "z;sms;o;\\N;2026-11-20").unwrap_err()[0].column, "units");
}

#[test]
fn a_row_with_empty_units_and_without_tokens_and_amount_is_rejected() {
    for units in ["", "  ", "NULL"] {
        let faults = csv(&[], HEADER, &format!("z;sms;o;{units};2026-11-20")).unwrap_err();
        assert_eq!(faults[0].column, "units");
        assert!(faults[0].message.contains("--empty-units 1"), "{}", faults[0].message);
    }
    for units in ["null", r#""""#, r#"" ""#] {
        let row = format!(r#"{{"client_id":"z","service":"sms","event_time":"2026-11-20","units":{units}}}"#);
        assert_eq!(ndjson(&[], &row).unwrap_err()[0].column, "units", "{units}");
    }
    // A row with tokens or an amount does not need units.
    let header = "client_id;service;units;input_tokens;amount;event_time";
    assert!(csv(&[], header, "z;openai;;5;;2026-11-20").is_ok());
    assert!(csv(&[], header, "z;openai;;0;;2026-11-20").is_ok());
    assert!(csv(&[], header, "z;stripe;;;9.99;2026-11-20").is_ok());
    assert!(csv(&[], header, "z;stripe;;;;2026-11-20").is_err());
}

#[test]
fn empty_units_are_filled_in_with_the_value_of_the_flag() {
    let rules = EventRules { empty_units: Some("1".into()), ..EventRules::default() };
    let read = csv_by(&rules, &[], HEADER, "z;sms;o;;2026-11-20").unwrap();
    assert_eq!((read.event.units.as_str(), read.notes.rows_with_filled_units), ("1", 1));
    // The row has the same key as a row that is counted as one unit by default.
    assert_eq!(read.original().units, "");
}

#[test]
fn rows_without_quantities_are_counted_as_one_unit_or_rejected() {
    let (header, row) = ("client_id;service;event_time", "z;sms;2026-11-20");
    let read = |strict, flags: &[&str]| csv_by(&EventRules { strict, ..EventRules::default() }, flags, header, row);
    assert_eq!(read(false, &[]).unwrap().notes.rows_counted_as_one, 1);
    assert!(read(true, &[]).unwrap_err()[0].message.contains("--units 1"));
    assert_eq!(read(true, &["--units", "1"]).unwrap().notes.rows_counted_as_one, 0);
}

#[test]
fn unused_keys_are_counted_or_rejected() {
    let row =
        r#"{"clientId":"z","service":"openai","eventTime":"2026-11-20","input_tokens":1,"prompt_tokens":5,"x":{}}"#;
    let read = |strict, flags: &[&str]| ndjson_by(&EventRules { strict, ..EventRules::default() }, flags, row);
    let notes = read(false, &[]).unwrap().notes;
    assert_eq!(notes.unused.keys().collect::<Vec<_>>(), ["prompt_tokens", "x"]);
    let faults = read(true, &[]).unwrap_err();
    assert_eq!(faults[0].column, "prompt_tokens");
    assert!(faults[0].message.contains("did you mean input_tokens?"), "{}", faults[0].message);
    assert!(read(true, &["--ignore-column", "prompt_tokens", "--metadata-column", "x"]).is_ok());
    assert!(read(true, &["--input-tokens-column", "prompt_tokens", "--ignore-column", "x"]).is_err());
}

#[test]
fn numbers_are_parsed_with_the_decimal_mark_of_the_file() {
    let rules = |mark| EventRules { numbers: NumberRules { mark, may_have_comma: true }, ..EventRules::default() };
    let units = |mark, units: &str| {
        csv_by(&rules(mark), &[], HEADER, &format!("z;sms;o;{units};2026-11-20")).map(|read| read.event.units)
    };
    assert_eq!(units(Some(DecimalMark::Comma), "1.234,5").unwrap(), "1234.5");
    assert_eq!(units(Some(DecimalMark::Point), "1.234").unwrap(), "1.234");
    for number in ["1.234", "2,5"] {
        assert!(units(None, number).unwrap_err()[0].message.contains("--decimal-comma"), "{number}");
    }
    // A JSON number always has a decimal point.
    let row = r#"{"client_id":"z","service":"sms","event_time":"2026-11-20","units":1.234,"amount":"1.234,5"}"#;
    let event = ndjson_by(&rules(Some(DecimalMark::Comma)), &[], row).unwrap().event;
    assert_eq!((event.units.as_str(), event.amount.as_str()), ("1.234", "1234.5"));
    let read = csv_by(&EventRules::default(), &[], HEADER, "z;sms;o;0.08333333333333333;2026-11-20").unwrap();
    assert_eq!((read.event.units.as_str(), read.notes.rounded_quantities), ("0.083333333333", 1));
}

#[test]
fn a_time_without_a_zone_gets_the_zone_of_its_client_later() {
    let read = |rules: &EventRules, time: &str| csv_by(rules, &[], HEADER, &format!("z;sms;o;1;{time}")).unwrap();
    let rules = EventRules::default();
    assert!(read(&rules, "2026-11-20").local_time.is_some());
    assert!(read(&rules, "2026-11-20 10:00").local_time.is_some());
    assert!(read(&rules, "46351.5").local_time.is_some() && read(&rules, "46351.5").notes.serial_times == 1);
    assert!(read(&rules, "2026-11-20 10:00+00").local_time.is_none());
    assert_eq!(read(&rules, "2026-11-20").notes.local_times, 1);
    let time = TimeRules { zone: Some(Tz::Asia__Tokyo), formats: Vec::new() };
    let read = read(&EventRules { time, ..rules }, "2026-11-20");
    assert_eq!((read.local_time, read.notes.local_times), (None, 1));
    assert_eq!(read.event.event_time.unwrap().seconds, 1_795_100_400);
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
fn the_error_lists_all_wrong_columns() {
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
fn nested_json_is_found_by_its_path() {
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
fn required_fields_must_not_be_missing() {
    let faults = ndjson(&[], "{}").unwrap_err();
    let columns: Vec<_> = faults.iter().map(|fault| fault.column.as_str()).collect();
    assert_eq!(columns, ["client_id", "service", "event_time"]);
    let faults = csv(&[], "client_id;service;event_time", ";sms;").unwrap_err();
    assert_eq!(faults.len(), 2);
}

#[test]
fn the_error_of_a_missing_key_suggests_a_similar_one() {
    let faults = ndjson(&[], r#"{"client_id":"z","service":"sms","ts":1795428900,"region":"eu"}"#).unwrap_err();
    assert!(faults[0].message.contains("did you mean ts? Then use --time-column \"ts\""), "{}", faults[0].message);
    let faults = ndjson(&[], r#"{"client_id":"","service":"sms","event_time":"2026-11-20"}"#).unwrap_err();
    assert_eq!(faults[0].message, "is required, but empty");
}

#[test]
fn now_leaves_the_time_to_the_server() {
    assert_eq!(csv(&["--time", "now"], "client_id;service", "a;b").unwrap().event_time, None);
}

#[test]
fn names_have_the_bounds_of_the_api() {
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
fn an_export_is_imported_unchanged() {
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
fn an_exported_json_object_is_imported_flat_or_nested() {
    let flat = r#"{"event_id":"e","client_id":"a","service":"s","units":"2.5","input_tokens":"10","event_time":"2026-11-01T00:00:00Z","idempotency_key":"k","metadata":{"n":1}}"#;
    let nested = r#"{"event_id":"e","event":{"client_id":"a","service":"s","units":"2.5","input_tokens":"10","event_time":"2026-11-01T00:00:00Z","idempotency_key":"k","metadata":{"n":1}}}"#;
    assert_eq!(ndjson(&[], flat).unwrap(), ndjson(&[], nested).unwrap());
    assert_eq!(ndjson(&[], flat).unwrap().input_tokens, 10);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2_000))]
    /// An accepted event has numbers and texts within the bounds of the API.
    #[test]
    fn any_row_is_an_event_within_the_bounds_or_an_error(
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
            let rules = EventRules { time: TimeRules { zone, formats: Vec::new() }, ..EventRules::default() };
            let Ok(ReadEvent { event, .. }) = event_of(&Cells::Csv(cells.to_vec()), &mapping, &rules) else { continue };
            for number in [&event.units, &event.amount] {
                proptest::prop_assert!(number.is_empty() || meterd_domain::decimal::Decimal::parse_rounded(number).is_ok(), "{}", number);
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
