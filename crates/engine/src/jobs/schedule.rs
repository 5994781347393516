//! When a job is due: a cron expression in UTC.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use std::fmt;
use std::str::FromStr;

/// What switches a job off.
pub const OFF: &str = "off";

/// A cron expression in UTC with optional seconds before the minutes, or never.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    cron: Option<Cron>,
}

impl Schedule {
    /// The first due time after `time`; nothing if there is none.
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

/// The expression; nothing for never.
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
    fn the_next_time_lies_after_the_given_one() {
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
    fn off_is_never() {
        assert_eq!(next("off", "2026-11-21T12:00:00Z"), None);
        assert_eq!(OFF.parse::<Schedule>().unwrap().to_string(), "");
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in ["daily", "* * * *", "61 * * * * *", "0 0 30 2 *", "0 0 0 1 1 * 2027", "* * * * * * * *"] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
