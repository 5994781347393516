//! Numbered events. The same number always means the same event.

use meterd::proto::UsageEvent;

pub const KEY_PREFIX: &str = "key-";

/// Creates the event with this number. Half of the events belong to five clients that exist from the start. The others
/// belong to new clients, which reach their thresholds after a few events, so that alerts are raised all the time.
pub fn numbered_event(number: u64) -> UsageEvent {
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

/// Creates a different event with the same key.
pub fn conflicting_event(number: u64) -> UsageEvent {
    UsageEvent { subject: "somebody else".into(), ..numbered_event(number) }
}
