//! The sentences that describe alerts.

use super::{AlertType, Finding, Severity};
use crate::decimal::Total;
use crate::period::Month;
use chrono::NaiveDate;

impl Finding {
    /// Returns a sentence that describes the finding.
    pub fn message(&self, client: &str, currency: &str) -> String {
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
        }
    }
}
