//! Fixes for usage without a price.

use crate::proto::{RecordedUsageEvent, UnpricedReason};
use meterd_domain::measures::whole_of;

/// The service, operation and model of usage without a price.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub service: String,
    pub operation: String,
    pub model: String,
}

impl Scope {
    /// Formats the scope, such as "openai gpt-9 (chat_completion)".
    pub fn text(&self) -> String {
        let operation = match self.operation.is_empty() {
            true => String::new(),
            false => format!("({})", self.operation),
        };
        let words = [self.service.as_str(), &self.model, &operation];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// Returns how to set a price for usage like this event, as a command if possible.
pub fn remedy(scope: &Scope, event: Option<&RecordedUsageEvent>) -> String {
    let reason = event.map_or(UnpricedReason::NoPrice, RecordedUsageEvent::unpriced_reason);
    let measured = event.and_then(|event| event.event.as_ref());
    let has_tokens = measured.is_some_and(|event| event.input_tokens > 0 || event.output_tokens > 0);
    let has_amount = measured.is_some_and(|event| !event.amount.is_empty() && event.amount != "0");
    match reason {
        UnpricedReason::AmountMissing => {
            "the price is a percentage, but these events have no `amount`: send it with future events. A price per unit would \
             replace the percentage for all future events"
                .to_owned()
        }
        UnpricedReason::TokensMissing => {
            "the price is per token, but these events have no tokens: send them with future events, or `units` = \"0\" if \
             nothing was used. A price per unit would replace the rates for tokens for all future events"
                .to_owned()
        }
        UnpricedReason::MeasureNotCovered => {
            let measures = measured.map(|event| event.measures.keys().filter(|name| whole_of(name).is_none()));
            let rates = measures.into_iter().flatten().map(|name| format!("--rate {name}=RATE"));
            format!(
                "the price has no rate for a measure of these events: set a price with all of its rates, and {}",
                rates.collect::<Vec<_>>().join(" ")
            )
        }
        UnpricedReason::UnknownService => {
            "the service is not in the catalogue: create it with CreateService, then set a price".to_owned()
        }
        _ => {
            let rates = match (has_tokens, has_amount) {
                (true, _) => "--input-per-million RATE --output-per-million RATE",
                (false, true) => "--percent RATE",
                (false, false) => "--unit RATE",
            };
            let mut words = vec!["meterd prices set".to_owned(), quoted(&scope.service)];
            for (flag, value) in [("--operation", &scope.operation), ("--model", &scope.model)] {
                // The price of a model applies to all its operations.
                if !value.is_empty() && (flag == "--model" || scope.model.is_empty()) {
                    words.push(format!("{flag} {}", quoted(value)));
                }
            }
            words.push(rates.to_owned());
            words.join(" ")
        }
    }
}

/// Quotes a word for the shell if necessary.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "_-./:@+".contains(char);
    match !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::UsageEvent;

    fn scope(service: &str, operation: &str, model: &str) -> Scope {
        Scope { service: service.into(), operation: operation.into(), model: model.into() }
    }

    fn event(reason: UnpricedReason, input_tokens: i64) -> RecordedUsageEvent {
        let event = Some(UsageEvent { input_tokens, ..Default::default() });
        RecordedUsageEvent { event, unpriced_reason: reason.into(), ..Default::default() }
    }

    #[test]
    fn the_fix_is_a_command_with_the_rates_of_the_usage() {
        let gpt = scope("openai", "chat_completion", "gpt-9 preview");
        assert_eq!(
            remedy(&gpt, Some(&event(UnpricedReason::NoPrice, 5))),
            "meterd prices set openai --model 'gpt-9 preview' --input-per-million RATE --output-per-million RATE"
        );
        assert_eq!(
            remedy(&scope("social", "post", ""), Some(&event(UnpricedReason::NoPrice, 0))),
            "meterd prices set social --operation post --unit RATE"
        );
        for (reason, field) in [(UnpricedReason::AmountMissing, "`amount`"), (UnpricedReason::TokensMissing, "`units`")]
        {
            let remedy = remedy(&gpt, Some(&event(reason, 0)));
            assert!(remedy.contains(field) && !remedy.contains("prices set"), "{remedy}");
        }
    }
}
