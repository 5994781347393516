use super::*;
use clap::Parser;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    mapping: MappingArgs,
}

fn args(flags: &[&str]) -> MappingArgs {
    Flags::try_parse_from([&["test"], flags].concat()).unwrap().mapping
}

fn header(names: &str) -> Vec<String> {
    names.split(',').map(str::to_owned).collect()
}

#[test]
fn columns_with_the_names_of_fields_are_mapped_automatically() {
    let mapping = Mapping::for_csv(&args(&[]), &header("x,event_time,service,client_id,model")).unwrap();
    assert_eq!(mapping.source(Field::Client), &FieldSource::Cell(3, "client_id".into()));
    assert_eq!(mapping.source(Field::Model), &FieldSource::Cell(4, "model".into()));
    assert_eq!(mapping.source(Field::Units), &FieldSource::Unmapped);
    assert!(!mapping.is_export);
}

#[test]
fn flags_have_precedence_over_names() {
    let flags = ["--client", "acme", "--service-column", "kind", "--time", "now", "--metadata-column", "x"];
    let mapping = Mapping::for_csv(&args(&flags), &header("x,service,client_id,kind")).unwrap();
    assert_eq!(mapping.source(Field::Client), &FieldSource::Fixed("acme".into()));
    assert_eq!(mapping.source(Field::Service), &FieldSource::Cell(3, "kind".into()));
    assert_eq!(mapping.metadata, [(FieldSource::Cell(0, "x".into()), "x".to_owned())]);
    assert_eq!(mapping.describe(), "client_id = \"acme\", service from kind, event_time = \"now\", metadata.x from x");
}

#[test]
fn the_error_of_an_unknown_column_suggests_a_similar_one() {
    let error = Mapping::for_csv(&args(&["--client-column", "tenent"]), &header("tenant,service")).unwrap_err();
    assert!(error.contains("--client-column") && error.contains("did you mean \"tenant\"?"), "{error}");
}

#[test]
fn required_fields_need_a_source() {
    let error = Mapping::for_csv(&args(&["--client", "a", "--service", "b"]), &header("x")).unwrap_err();
    assert!(error.contains("--time now"), "{error}");
}

#[test]
fn the_error_lists_all_missing_columns() {
    let flags = ["--units-column", "Mange", "--metadata-column", "x"];
    let error = Mapping::for_csv(&args(&flags), &header("Kunde,Menge")).unwrap_err();
    assert_eq!(
        error,
        "no column has the name \"client_id\" (did you mean \"Kunde\"?): add --client-column COLUMN or --client VALUE; \
         no column has the name \"service\": add --service-column COLUMN or --service VALUE; \
         --units-column \"Mange\": the file has no such column; did you mean \"Menge\"?; \
         no column has the name \"event_time\": add --time-column COLUMN or --time VALUE or --time now; \
         --metadata-column \"x\": the file has no such column (columns: Kunde, Menge)"
    );
}

#[test]
fn a_fixed_value_and_a_column_exclude_each_other() {
    assert!(Flags::try_parse_from(["test", "--client", "a", "--client-column", "b"]).is_err());
}

#[test]
fn json_values_are_found_by_key_and_by_path() {
    let object: RawObject =
        serde_json::from_str(r#"{"a":{"b":{"c":1.50}},"x.y":2,"n":null,"event":{"model":"m"}}"#).unwrap();
    let cells = Cells::Json(object);
    let get = |path: &str| {
        let source = FieldSource::Path(vec![path.to_owned()]);
        match find(&source, &cells) {
            Some(Found::Json(json)) => Some(json.into_owned()),
            _ => None,
        }
    };
    assert_eq!(get("a.b.c").as_deref(), Some("1.50"));
    assert_eq!(get("x.y").as_deref(), Some("2"));
    assert_eq!(get("n"), None);
    assert_eq!(get("a.z"), None);
    let mapping = Mapping::for_json(&args(&[]));
    assert!(matches!(find(mapping.source(Field::Model), &cells), Some(Found::Json(json)) if json == "\"m\""));
}

#[test]
fn case_spaces_and_punctuation_of_a_header_are_ignored() {
    let mapping = Mapping::for_csv(&args(&[]), &header("Client ID,SERVICE,Event-Time,inputTokens")).unwrap();
    assert_eq!(mapping.source(Field::Client), &FieldSource::Cell(0, "Client ID".into()));
    assert_eq!(mapping.source(Field::InputTokens), &FieldSource::Cell(3, "inputTokens".into()));
    assert!(mapping.unused.is_empty());
    // The exact name has precedence.
    let mapping = Mapping::for_csv(&args(&[]), &header("Client ID,client_id,service,event_time")).unwrap();
    assert_eq!(mapping.source(Field::Client), &FieldSource::Cell(1, "client_id".into()));
    assert_eq!(mapping.unused, ["Client ID"]);
}

#[test]
fn unused_columns_are_listed_with_suggestions() {
    let names = header("client_id,service,event_time,input_token,region,,note");
    let mapping = Mapping::for_csv(&args(&["--ignore-column", "note"]), &names).unwrap();
    assert_eq!(mapping.unused, ["input_token", "region", "6 (without a name)"]);
    assert_eq!(
        mapping.unused_text("input_token"),
        "input_token; did you mean input_tokens? Then use --input-tokens-column \"input_token\""
    );
    assert_eq!(mapping.unused_text("region"), "region");
    let mapping = Mapping::for_csv(&args(&["--metadata-column", "region", "--units", "1"]), &names).unwrap();
    assert_eq!(mapping.unused, ["input_token", "6 (without a name)", "note"]);
}

#[test]
fn a_duplicate_column_is_an_error_if_it_is_used() {
    let names = "client_id,service,event_time,units,units,note,note";
    let error = Mapping::for_csv(&args(&[]), &header(names)).unwrap_err();
    assert!(error.contains("columns 4 and 5 both have the name \"units\""), "{error}");
    let mapping = Mapping::for_csv(&args(&["--units", "1"]), &header(names)).unwrap();
    assert_eq!(mapping.unused, ["units", "units", "note", "note"]);
    let error = Mapping::for_csv(&args(&[]), &header("Client,service,event_time")).unwrap_err();
    assert!(error.contains("no column has the name \"client_id\" (did you mean \"Client\"?)"), "{error}");
}

#[test]
fn every_column_of_an_export_is_used_or_ignored() {
    let names = "event_id,client_id,day,event_time,service,operation,model,units,input_tokens,output_tokens,\
                 cached_input_tokens,amount,currency,charge,price_id,unpriced_reason,subject,external_id,idempotency_key,\
                 metadata,record_time";
    assert!(Mapping::for_csv(&args(&[]), &header(names)).unwrap().unused.is_empty());
    let mapping = Mapping::for_json(&args(&[]));
    let row = |text: &str| mapping.unused_keys(&serde_json::from_str(text).unwrap());
    assert!(row(r#"{"event_id":"e","charge":"1","client_id":"a"}"#).is_empty());
    assert!(row(r#"{"event_id":"e","event":{"clientId":"a","units":"1"}}"#).is_empty());
    assert!(
        row(r#"{"eventId":"e","event":{"clientId":"a"},"priceId":"5","recordTime":"2026-11-20T10:00:00Z"}"#).is_empty()
    );
    assert_eq!(row(r#"{"charge":"1","event":{"clientId":"a","unit":"1"}}"#), ["charge", "event.unit"]);
}

#[test]
fn the_error_of_a_line_that_is_not_a_header_has_a_hint() {
    let error = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Mapping::for_csv(&args(&[]), &names).unwrap_err()
    };
    assert!(error(&["Usage report", "", ""]).contains("--skip-lines"));
    assert!(error(&["client_id,service,event_time"]).contains("in quotes as a whole"));
    assert!(!error(&["Kunde", "Menge"]).contains("--skip-lines"));
}
