use super::*;
use crate::proto::Money;
use clap::Parser;

#[derive(Parser, Debug)]
struct Command {
    #[command(flatten)]
    args: TrackArgs,
}

fn event(arguments: &[&str]) -> anyhow::Result<UsageEvent> {
    event_of(&Command::try_parse_from([&["track"], arguments].concat())?.args)
}

#[test]
fn the_short_form_and_the_flags_are_equivalent() {
    let short = event(&["acme", "sms", "2.50", "--key", "k"]).unwrap();
    let long = event(&["--client", "acme", "--service", "sms", "--units", "2.5", "--key", "k"]).unwrap();
    assert_eq!(short, long);
}

#[test]
fn all_fields_can_be_set() {
    let event = event(&[
        "--client",
        "acme",
        "--service",
        "openai",
        "--operation",
        "chat_completion",
        "--model",
        "gpt-4o-mini",
        "--input-tokens",
        "374",
        "--output-tokens",
        "44",
        "--cached-input-tokens",
        "4",
        "--amount",
        "1e-3",
        "--time",
        "2026-11-21T10:00:00Z",
        "--subject",
        "u",
        "--external-id",
        "x",
        "--metadata",
        r#"{"k":1}"#,
    ])
    .unwrap();
    assert_eq!((event.input_tokens, event.output_tokens, event.cached_input_tokens), (374, 44, 4));
    assert_eq!((event.amount.as_str(), event.units.as_str()), ("0.001", ""));
    assert!(event.metadata.is_some() && event.event_time.is_some());
    assert_eq!(event.idempotency_key.len(), "track-".len() + 32);
}

#[test]
fn the_error_names_the_missing_or_wrong_argument() {
    assert!(event(&[]).is_err());
    assert!(event(&["acme"]).unwrap_err().to_string().contains("the service is missing"));
    assert!(event(&["acme", "sms", "x"]).unwrap_err().to_string().contains("UNITS"));
    assert!(event(&["acme", "sms", "1", "--units", "2"]).is_err());
    assert!(event(&["acme", "sms", "--metadata", "[]"]).is_err());
    assert!(event(&["acme", "sms", "--input-tokens", "1.5"]).is_err());
}

#[test]
fn a_result_is_shown_as_lines() {
    let charge = Some(Money { currency: "USD".into(), amount: "0.0000825".into() });
    let priced = UsageResult {
        outcome: EventOutcome::Accepted.into(),
        event_id: "e1".into(),
        idempotency_key: "k".into(),
        charge,
        ..Default::default()
    };
    assert_eq!(result_text(&priced), "ACCEPTED   e1\ncharge     0.0000825 USD\nkey        k");
    assert_eq!(result_json(&priced)["charge"]["amount"], "0.0000825");
    let unpriced = UsageResult { charge: None, unpriced_reason: UnpricedReason::AmountMissing.into(), ..priced };
    assert!(result_text(&unpriced).contains("AMOUNT_MISSING: the price is a percentage: add --amount"));
    assert_eq!(result_json(&unpriced)["unpriced_reason"], "AMOUNT_MISSING");
}
