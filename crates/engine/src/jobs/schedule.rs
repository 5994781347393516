//! The schedule of a job: a cron expression in UTC.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use std::fmt;
use std::str::FromStr;

/// The setting that switches a job off.
pub const OFF: &str = "off";

/// A cron expression in UTC, with an optional field for seconds before the minutes. Or no expression: the job never runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    cron: Option<Cron>,
}

impl Schedule {
    /// Returns the first due time after `time`, or `None` if the job never runs.
    pub fn next_after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.as_ref()?.find_next_occurrence(&time, false).ok()
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text == OFF {
            return Ok(Self { text: String::new(), cron: None });
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| {
            format!("must be a cron expression in UTC such as \"0 30 3 * * *\" (daily at 03:30), or \"{OFF}\": {error}")
        })?;
        let schedule = Self { text: text.into(), cron: Some(cron) };
        match schedule.next_after(DateTime::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => {
                Err(format!("names a date that does not exist in any year; to switch the job off, write \"{OFF}\""))
            }
        }
    }
}

/// Writes the expression, or an empty text if the job never runs.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> Option<String> {
        let next = schedule.parse::<Schedule>().unwrap().next_after(after.parse().unwrap());
        next.map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    }

    #[test]
    fn the_next_time_is_later_than_the_argument() {
        let cases = [
            ("*/20 * * * * *", "2026-11-21T12:00:00Z", "2026-11-21T12:00:20Z"),
            ("*/20 * * * * *", "2026-11-21T12:00:59.999999Z", "2026-11-21T12:01:00Z"),
            ("0 0 * * * *", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            ("30 3 * * *", "2026-11-21T03:30:00Z", "2026-11-22T03:30:00Z"),
            ("0 0 29 2 *", "2026-11-21T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@daily", "2026-11-21T12:00:00.5Z", "2026-11-22T00:00:00Z"),
            ("0 9 * * MON", "2026-11-21T12:00:00Z", "2026-11-23T09:00:00Z"),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, after).as_deref(), Some(expected), "{schedule} after {after}");
        }
    }

    #[test]
    fn a_job_that_is_off_has_no_next_time() {
        assert_eq!(next("off", "2026-11-21T12:00:00Z"), None);
        assert_eq!(OFF.parse::<Schedule>().unwrap().to_string(), "");
    }

    #[test]
    fn invalid_expressions_are_rejected() {
        for text in ["daily", "* * * *", "61 * * * * *", "0 0 30 2 *", "0 0 0 1 1 * 2027", "* * * * * * * *"] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
