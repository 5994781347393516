use super::*;
use crate::cli::import::batches::Origin;
use crate::cli::import::fields::MappingArgs;
use crate::proto::{EventError, FieldViolation, Money, UsageEvent};

fn result(outcome: EventOutcome, charge: Option<&str>) -> UsageResult {
    let charge = charge.map(|amount| Money { currency: "USD".into(), amount: amount.into() });
    UsageResult { outcome: outcome.into(), charge, ..Default::default() }
}

fn batch(count: u64) -> Batch {
    let event = UsageEvent { input_tokens: 10, output_tokens: 1, ..Default::default() };
    Batch {
        events: vec![event; count as usize],
        origins: (0..count).map(|index| Origin { line: 2 + index, text: String::new() }).collect(),
        ..Batch::default()
    }
}

#[test]
fn outcomes_are_counted_and_accepted_charges_added_exactly() {
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
        "f.csv:6: column event_time: EVENT_TOO_OLD: too old; events[4].event_time: is old"
    );
    assert_eq!(bad[1].reason, "CONFLICT");
    let text = tally.text(Duration::from_secs(2), false);
    assert!(text.contains("use --backfill") && text.contains("0.300000000001 USD"), "{text}");
}
