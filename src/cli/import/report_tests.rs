use super::*;
use crate::cli::import::batches::Origin;
use crate::cli::import::fields::MappingArgs;
use crate::proto::{EventError, FieldViolation, Money, UsageEvent};

fn result(outcome: EventOutcome, charge: Option<&str>) -> UsageResult {
    let charge = charge.map(|amount| Money { currency: "USD".into(), amount: amount.into() });
    UsageResult { outcome: outcome.into(), charge, ..Default::default() }
}

fn batch(count: u64) -> Batch {
    let event_time = Some(prost_types::Timestamp { seconds: 1_700_158_546, nanos: 0 });
    let event = UsageEvent { input_tokens: 10, output_tokens: 1, event_time, ..Default::default() };
    Batch {
        events: vec![event; count as usize],
        origins: (0..count).map(|index| Origin { line: 2 + index, ..Origin::default() }).collect(),
        ..Batch::default()
    }
}

#[test]
fn outcomes_are_counted_and_charges_of_accepted_events_are_summed_exactly() {
    let mut tally = Tally::default();
    let mut rejected = result(EventOutcome::Rejected, None);
    rejected.error = Some(EventError {
        reason: "EVENT_TOO_OLD".into(),
        message: "too old".into(),
        field_violations: vec![FieldViolation { field: "events[4].event_time".into(), description: "is old".into() }],
        ..Default::default()
    });
    let results = [
        result(EventOutcome::Accepted, Some("0.1")),
        result(EventOutcome::Accepted, Some("0.200000000001")),
        result(EventOutcome::Accepted, None),
        result(EventOutcome::Duplicate, Some("5")),
        rejected,
        result(EventOutcome::Conflict, None),
    ];
    let bad = tally.add(&batch(6), &results, &Mapping::for_json(&MappingArgs::default())).unwrap();
    assert_eq!((tally.accepted, tally.unpriced, tally.duplicates, tally.bad()), (3, 1, 1, 2));
    assert_eq!((tally.input_tokens, tally.output_tokens, tally.cost_text().as_str()), (30, 3, "0.300000000001"));
    assert_eq!((bad[0].line, bad[0].column.as_str()), (6, "event_time"));
    assert_eq!(
        bad_row_text("f.csv", &bad[0]),
        "f.csv:6: column event_time: EVENT_TOO_OLD: is old; add --backfill to accept it; the time was interpreted as 2023-11-16T18:15:46Z"
    );
    assert_eq!(bad[1].reason, "CONFLICT");
    let text = tally.text(Duration::from_secs(2), false);
    assert!(text.contains("use --backfill") && text.contains("0.300000000001 USD"), "{text}");
}

#[test]
fn an_error_of_the_server_names_the_columns_of_the_row_once() {
    let violation =
        |field: &str, description: &str| FieldViolation { field: field.into(), description: description.into() };
    let mut result = result(EventOutcome::Rejected, None);
    let flags = ["name", "Menge", "client_id", "service", "event_time"].map(str::to_owned);
    let mapping = Mapping::for_csv(&MappingArgs::default(), &flags).unwrap();
    let mut text = |violations: Vec<FieldViolation>, message: &str| {
        result.error = Some(EventError {
            reason: "INVALID_FIELD".into(),
            message: message.into(),
            field_violations: violations,
            ..Default::default()
        });
        let bad = Tally::default().add(&batch(1), std::slice::from_ref(&result), &mapping).unwrap();
        bad_row_text("f.csv", &bad[0])
    };
    assert_eq!(
        text(vec![violation("events[0].units", "must be x")], "events[0].units: must be x"),
        "f.csv:2: column units: INVALID_FIELD: must be x"
    );
    let both = vec![violation("events[0].units", "must be x"), violation("events[0].client_id", "is y")];
    assert_eq!(
        text(both, "events[0].units: must be x; events[0].client_id: is y"),
        "f.csv:2: INVALID_FIELD: units: must be x; client_id: is y"
    );
    assert_eq!(text(vec![], "no client"), "f.csv:2: INVALID_FIELD: no client");
}

#[test]
fn assumptions_and_changes_are_reported() {
    let mut tally = Tally { duplicates: 2, zones: ["Asia/Tokyo"].into(), ..Tally::default() };
    assert!(Tally::default().hints(false).is_empty());
    tally.notes.repeats_of_other_files = 2;
    tally.notes.local_times = 1_000;
    tally.notes.rows_counted_as_one = 3;
    tally.repeated_files.insert("a.csv".into());
    tally.new_clients.extend((0..7).map(|number| format!("c{number}")));
    let hints = tally.hints(true);
    assert_eq!(
        hints,
        [
            "new clients that would be created: 7 (c0, c1, c2, c3, c4 and 2 more)",
            "rows without units, tokens or amount, each counted as 1 unit: 3; add --units 1 if this is intended",
            "times without a zone, interpreted in the time zone of each client (Asia/Tokyo): 1,000",
            "rows that equal a row of another file of this run (a.csv), interpreted as repeats and not counted again: 2; \
             add --split-files to count them, if the files are parts of one file",
        ]
    );
}
