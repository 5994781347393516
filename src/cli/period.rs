//! `--month`, `--start` and `--end`, with the same meaning in every command. Days are in the client's time zone; both days
//! are included.

use chrono::{DateTime, NaiveDate};
use clap::Args;
use meterd_domain::period::{self, Month};
use prost_types::Timestamp;

/// A range of days. Each command has its own default.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct PeriodArgs {
    /// Only this month, such as 2026-11, in the client's time zone
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, conflicts_with_all = ["start", "end"])]
    pub month: Option<Month>,
    /// First day, in the client's time zone
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_day)]
    pub start: Option<NaiveDate>,
    /// Last day, in the client's time zone; included
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_day)]
    pub end: Option<NaiveDate>,
}

impl PeriodArgs {
    /// Returns the first and the last day.
    pub fn days(&self) -> anyhow::Result<(Option<NaiveDate>, Option<NaiveDate>)> {
        if let Some(month) = self.month {
            return Ok((Some(month.first_day()), Some(month.last_day())));
        }
        check_order(self.start, self.end)?;
        Ok((self.start, self.end))
    }
}

/// Checks that the range does not end before it starts.
pub fn check_order(start: Option<NaiveDate>, end: Option<NaiveDate>) -> anyhow::Result<()> {
    match (start, end) {
        (Some(start), Some(end)) if start > end => {
            anyhow::bail!("--start {start} is after --end {end}: the first day must not be after the last day")
        }
        _ => Ok(()),
    }
}

/// Parses the value of `--month`.
pub fn parse_month(text: &str) -> Result<Month, String> {
    let hint = if period::parse_day(text).is_some() { "; for a day use --start and --end" } else { "" };
    Month::parse(text).ok_or_else(|| format!("must be a month such as 2026-11{hint}"))
}

/// Parses the value of `--start` or `--end`.
pub fn parse_day(text: &str) -> Result<NaiveDate, String> {
    let hint = match text {
        _ if Month::parse(text).is_some() => format!("; for the whole month use --month {text}"),
        _ if text.contains('T') || text.contains(':') => "; this command accepts only whole days".to_owned(),
        _ => String::new(),
    };
    period::parse_day(text).ok_or_else(|| format!("must be a day such as 2026-11-21{hint}"))
}

/// Parses a point in time. It must have an offset, because the time zone would be unclear without it.
pub fn parse_instant(text: &str) -> Result<Timestamp, String> {
    let time = DateTime::parse_from_rfc3339(text);
    let time = time.map_err(|_| "must be a time with an offset such as 2026-11-25T00:00:00Z".to_owned())?.to_utc();
    Ok(Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 })
}

/// Formats a range of days.
pub fn days_text(start: Option<NaiveDate>, end: Option<NaiveDate>) -> String {
    match (start, end) {
        (Some(start), Some(end)) if start == end => format!("on {start}"),
        (Some(start), Some(end)) if start == Month::of(start).first_day() && end == Month::of(start).last_day() => {
            format!("in {}", Month::of(start))
        }
        (Some(start), Some(end)) => format!("from {start} to {end}"),
        (Some(start), None) => format!("from {start} on"),
        (None, Some(end)) => format!("up to {end}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        period: PeriodArgs,
    }

    fn days(arguments: &[&str]) -> anyhow::Result<String> {
        let (start, end) = Command::try_parse_from([&["x"], arguments].concat())?.period.days()?;
        Ok(days_text(start, end))
    }

    #[test]
    fn a_month_covers_all_its_days_and_a_range_includes_both_ends() {
        assert_eq!(days(&["--month", "2026-02"]).unwrap(), "in 2026-02");
        assert_eq!(days(&["--start", "2026-02-01", "--end", "2026-02-28"]).unwrap(), "in 2026-02");
        assert_eq!(days(&["--start", "2026-02-01", "--end", "2026-02-27"]).unwrap(), "from 2026-02-01 to 2026-02-27");
        assert_eq!(days(&["--start", "2026-02-05", "--end", "2026-02-05"]).unwrap(), "on 2026-02-05");
        assert_eq!(days(&["--start", "2026-02-05"]).unwrap(), "from 2026-02-05 on");
        assert_eq!(days(&[]).unwrap(), "");
    }

    #[test]
    fn the_error_of_an_invalid_period_has_the_fix() {
        let error = |arguments: &[&str]| days(arguments).unwrap_err().to_string();
        assert!(error(&["--start", "2026-11"]).contains("for the whole month use --month 2026-11"));
        assert!(error(&["--month", "2026-11-05"]).contains("for a day use --start and --end"));
        assert!(error(&["--start", "2026-11-01T10:00:00Z"]).contains("accepts only whole days"));
        assert!(error(&["--start", "2026-11-05", "--end", "2026-11-04"]).contains("is after --end"));
        assert!(error(&["--month", "2026-11", "--start", "2026-11-01"]).contains("cannot be used with"));
        assert!(error(&["--month", "2026-13"]).contains("must be a month"));
    }
}
