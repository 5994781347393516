//! The sentences that describe alerts.

use super::unpriced::whole;
use super::{AlertType, Finding, Severity, SilenceFacts, Unit, UnpricedSample};
use crate::decimal::Total;
use crate::period::Month;
use chrono::NaiveDate;

/// Maximum number of models that a message names.
pub const MODELS_SHOWN: usize = 5;
/// Maximum number of characters of a model's name in a message.
const MODEL_CHARS_MAX: usize = 60;

/// What a message says in addition to the finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Details {
    #[default]
    None,
    Unpriced(UnpricedSample),
    Silence(SilenceFacts),
}

impl Finding {
    /// Returns a sentence that describes the finding.
    pub fn message(&self, client: &str, currency: &str) -> String {
        self.message_with(client, currency, &Details::None)
    }

    /// Returns a sentence that describes the finding, with details.
    pub fn message_with(&self, client: &str, currency: &str, details: &Details) -> String {
        let month = |day: NaiveDate| day.format("%B %Y").to_string();
        let money = |amount: Total| format!("{} {currency}", amount.to_short_string());
        let (period, current, threshold) = (month(self.period), money(self.current), money(self.threshold));
        let level = match self.severity {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        match self.kind {
            AlertType::Threshold => {
                format!("{client} has used {current} in {period}: the {level} threshold of {threshold} is reached.")
            }
            AlertType::Spike => {
                let before = month(Month::of(self.period).previous().first_day());
                let previous = money(self.previous.unwrap_or_default());
                let percent = self.percent.unwrap_or_default();
                format!(
                    "{client} has used {current} in {period}, {percent} % more than in all of {before} ({previous})."
                )
            }
            AlertType::Projection => {
                let projected = money(self.projected.unwrap_or_default());
                format!(
                    "{client} is heading for {projected} in {period}, with {current} used so far: the line is {threshold}."
                )
            }
            AlertType::Anomaly => {
                let day = self.period.format("%-d %B %Y");
                let mean = self.previous.unwrap_or_default();
                if self.service.is_empty() {
                    let mean = money(mean);
                    return format!("{client} used {current} on {day}; the days before had {mean} on average.");
                }
                let (current, mean, service) = (self.current, mean.to_short_string(), &self.service);
                format!("{client} used {current} units of {service} on {day}; the days before had {mean} on average.")
            }
            AlertType::Unpriced => {
                let events = if self.current == whole(1) { "event" } else { "events" };
                let (count, service) = (self.current, &self.service);
                let why = match details {
                    Details::Unpriced(sample) => unpriced_details(sample),
                    _ => String::new(),
                };
                format!("{client} has {count} {events} of {service} without a charge in {period}{why}.")
            }
            AlertType::Limit => {
                let Some(limit) = &self.limit else { return format!("{client} has reached a limit.") };
                let unit = self.unit();
                let shown = |value: Total| match unit {
                    Unit::Money => money(value),
                    unit if value == whole(1) => format!("{value} {}", unit.word(currency).trim_end_matches('s')),
                    unit => format!("{value} {}", unit.word(currency)),
                };
                let period = match self.is_of_day() {
                    true => format!("on {}", self.period.format("%-d %B %Y")),
                    false => format!("in {period}"),
                };
                let (name, percent, kind) = (limit.name(), limit.percent, if limit.is_hard { "hard" } else { "soft" });
                let (current, amount) = (shown(self.current), shown(limit.amount));
                format!("{client} has used {current} {period}: {percent} % of the {kind} limit {name} of {amount}.")
            }
            AlertType::Silence => {
                let since = match details {
                    Details::Silence(SilenceFacts { last_event_time: Some(time), zone, .. }) => {
                        time.with_timezone(zone).format("%-d %B %Y, %H:%M %Z").to_string()
                    }
                    _ => self.period.format("%-d %B %Y").to_string(),
                };
                let (hours, threshold) = (self.current, self.threshold);
                format!(
                    "{client} has sent no events for {hours} hours: the last one was on {since}. The threshold is {threshold} hours."
                )
            }
        }
    }
}

/// Returns the reasons and the models of unpriced events, as a part of a sentence.
fn unpriced_details(sample: &UnpricedSample) -> String {
    let reasons = sample.reasons();
    let models = sample.models();
    let shown: Vec<String> = models.iter().take(MODELS_SHOWN).map(|model| shortened(model)).collect();
    let more = models.len() - shown.len();
    let mut text = match reasons.len() {
        0 => String::new(),
        1 => format!(": reason {}", reasons[0]),
        _ => format!(": reasons {}", reasons.join(", ")),
    };
    if !shown.is_empty() {
        text += if text.is_empty() { ": " } else { "; " };
        text += if models.len() == 1 { "model " } else { "models " };
        text += &shown.join(", ");
    }
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

/// Returns a name with at most [`MODEL_CHARS_MAX`] characters.
fn shortened(name: &str) -> String {
    if name.chars().count() <= MODEL_CHARS_MAX {
        return name.to_owned();
    }
    name.chars().take(MODEL_CHARS_MAX - 1).chain(['…']).collect()
}
