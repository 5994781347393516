//! Numbered events: the same number is the same event, whoever sends it.

use meterd::proto::UsageEvent;

pub const KEY_PREFIX: &str = "key-";

/// Every other event is of one of five clients that have been there from the begin, the others of ever new ones, which cross
/// their lines after a few events: so alerts are raised all the time.
pub fn numbered(number: u64) -> UsageEvent {
    let client_id =
        if number.is_multiple_of(2) { format!("hot-{}", number % 5) } else { format!("new-{}", number / 40) };
    let event = UsageEvent { client_id, idempotency_key: format!("{KEY_PREFIX}{number}"), ..Default::default() };
    if number.is_multiple_of(3) {
        return UsageEvent {
            service: "openai".into(),
            operation: "chat_completion".into(),
            model: "gpt-4o-mini".into(),
            input_tokens: 10_000 + (number % 7) as i64,
            output_tokens: 1_001,
            ..event
        };
    }
    UsageEvent { service: "sms".into(), units: "1.5".into(), ..event }
}

/// Another event with the same key.
pub fn contradicting(number: u64) -> UsageEvent {
    UsageEvent { subject: "somebody else".into(), ..numbered(number) }
}
