//! `--month`, `--start` and `--end`: the same words with the same meaning in every command. Days are the clients' own, and
//! both ends are included.

use chrono::{DateTime, NaiveDate};
use clap::Args;
use meterd_domain::period::{self, Month};
use prost_types::Timestamp;

/// Which days. Nothing set: what the command says.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct PeriodArgs {
    /// Only this month, such as 2026-11, of the client's own calendar
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, conflicts_with_all = ["start", "end"])]
    pub month: Option<Month>,
    /// First day, of the client's own calendar
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_day)]
    pub start: Option<NaiveDate>,
    /// Last day, included
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_day)]
    pub end: Option<NaiveDate>,
}

impl PeriodArgs {
    /// The first and the last day.
    pub fn days(&self) -> anyhow::Result<(Option<NaiveDate>, Option<NaiveDate>)> {
        if let Some(month) = self.month {
            return Ok((Some(month.first_day()), Some(month.last_day())));
        }
        check_order(self.start, self.end)?;
        Ok((self.start, self.end))
    }
}

/// Refuses a range that ends before it starts.
pub fn check_order(start: Option<NaiveDate>, end: Option<NaiveDate>) -> anyhow::Result<()> {
    match (start, end) {
        (Some(start), Some(end)) if start > end => anyhow::bail!("--start {start} is after --end {end}"),
        _ => Ok(()),
    }
}

/// Reads a month of `--month`.
pub fn parse_month(text: &str) -> Result<Month, String> {
    let hint = if period::parse_day(text).is_some() { "; for a day give --start and --end" } else { "" };
    Month::parse(text).ok_or_else(|| format!("must be a month such as 2026-11{hint}"))
}

/// Reads a day of `--start` or `--end`.
pub fn parse_day(text: &str) -> Result<NaiveDate, String> {
    let hint = match text {
        _ if Month::parse(text).is_some() => format!("; for the whole month give --month {text}"),
        _ if text.contains('T') || text.contains(':') => "; this command adds up whole days".to_owned(),
        _ => String::new(),
    };
    period::parse_day(text).ok_or_else(|| format!("must be a day such as 2026-11-21{hint}"))
}

/// Reads a point in time. Without an offset it would be unsaid whose clock it is.
pub fn parse_instant(text: &str) -> Result<Timestamp, String> {
    let time = DateTime::parse_from_rfc3339(text);
    let time = time.map_err(|_| "must be a time with its offset such as 2026-11-25T00:00:00Z".to_owned())?.to_utc();
    Ok(Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 })
}

/// Days as people read them.
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
    fn a_month_is_all_its_days_and_both_ends_of_a_range_are_included() {
        assert_eq!(days(&["--month", "2026-02"]).unwrap(), "in 2026-02");
        assert_eq!(days(&["--start", "2026-02-01", "--end", "2026-02-28"]).unwrap(), "in 2026-02");
        assert_eq!(days(&["--start", "2026-02-01", "--end", "2026-02-27"]).unwrap(), "from 2026-02-01 to 2026-02-27");
        assert_eq!(days(&["--start", "2026-02-05", "--end", "2026-02-05"]).unwrap(), "on 2026-02-05");
        assert_eq!(days(&["--start", "2026-02-05"]).unwrap(), "from 2026-02-05 on");
        assert_eq!(days(&[]).unwrap(), "");
    }

    #[test]
    fn what_is_no_period_is_refused_with_the_way_out() {
        let refused = |arguments: &[&str]| days(arguments).unwrap_err().to_string();
        assert!(refused(&["--start", "2026-11"]).contains("for the whole month give --month 2026-11"));
        assert!(refused(&["--month", "2026-11-05"]).contains("for a day give --start and --end"));
        assert!(refused(&["--start", "2026-11-01T10:00:00Z"]).contains("adds up whole days"));
        assert!(refused(&["--start", "2026-11-05", "--end", "2026-11-04"]).contains("is after --end"));
        assert!(refused(&["--month", "2026-11", "--start", "2026-11-01"]).contains("cannot be used with"));
        assert!(refused(&["--month", "2026-13"]).contains("must be a month"));
    }
}
