//! Parses times in the usual formats of files and flags.

mod number;
mod text;

use chrono::format::{Item, Parsed, StrftimeItems, parse};
use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use meterd_domain::period::start_of_day;
use prost_types::Timestamp;

/// How to parse times.
#[derive(Clone, Debug, Default)]
pub struct TimeRules {
    /// Zone of times without an offset. `None` means UTC in [`parse_time`], and the client's zone in an import.
    pub zone: Option<Tz>,
    /// strftime formats. Empty means the usual forms.
    pub formats: Vec<String>,
}

/// A parsed time, with or without a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeValue {
    /// With an offset, or a Unix time.
    Exact(DateTime<Utc>),
    /// Date and time of day without an offset.
    Local(NaiveDateTime),
    /// A day without a time of day. Means its first moment.
    Day(NaiveDate),
}

impl TimeValue {
    /// Whether the moment depends on a time zone.
    pub fn needs_zone(self) -> bool {
        !matches!(self, TimeValue::Exact(_))
    }

    /// Returns the moment of this time in a zone.
    pub fn in_zone(self, zone: Tz) -> Result<DateTime<Utc>, String> {
        match self {
            TimeValue::Exact(time) => Ok(time),
            TimeValue::Local(local) => in_zone(local, zone),
            TimeValue::Day(day) => start_of_day(day, zone).ok_or_else(|| format!("{day} does not exist in {zone}")),
        }
    }
}

/// The result of [`read_time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedTime {
    /// The time.
    pub value: TimeValue,
    /// Whether the text was a spreadsheet date, a number of days.
    pub is_serial: bool,
}

impl From<TimeValue> for ParsedTime {
    fn from(value: TimeValue) -> Self {
        Self { value, is_serial: false }
    }
}

/// Parses a time with the matching format of `formats`. Without formats, accepts all usual forms (see [`usual_forms`]).
pub fn read_time(text: &str, formats: &[String]) -> Result<ParsedTime, String> {
    let text = text.trim();
    match formats {
        [] if number::is_number(text) => number::read(text),
        [] => text::read(text).map(ParsedTime::from),
        [format] => parse_with(text, format).map(ParsedTime::from),
        several => parse_with_any(text, several).map(ParsedTime::from),
    }
}

/// Parses a time with several formats. An error if two formats match and give different times.
fn parse_with_any(text: &str, formats: &[String]) -> Result<TimeValue, String> {
    let mut matching = formats.iter().filter_map(|format| Some((format, parse_with(text, format).ok()?)));
    let Some((format, value)) = matching.next() else {
        return Err(format!("does not match any --time-format, got {text:?}"));
    };
    match matching.find(|(_, other)| *other != value) {
        Some((other, _)) => {
            Err(format!("matches the formats {format:?} and {other:?} with different times, got {text:?}"))
        }
        None => Ok(value),
    }
}

/// Describes the forms that [`read_time`] accepts without a format, for help texts.
pub fn usual_forms() -> &'static str {
    "2026-11-20T10:15:00Z or +01:00 in any form of ISO 8601 or of databases, 20261120T101500, RFC 2822, \
     Unix seconds (10 digits), milliseconds (13), microseconds (16) or nanoseconds (19), \
     20261120 and 20261120101500, and spreadsheet dates such as 46346.5"
}

/// Parses the time of a flag in one of the usual forms. Without an offset it is in UTC. Removes hints about `--time-format`
/// from errors, because only `import` has this flag.
pub fn parse_flag_time(text: &str) -> Result<Timestamp, String> {
    parse_time(text, &TimeRules::default()).map_err(|error| {
        let rule = error.split("; use --time-format").next().unwrap_or_default();
        rule.trim_end_matches("; see --time-format").to_owned()
    })
}

/// Parses a time. Without an offset it is in the zone of the rules, or in UTC.
pub fn parse_time(text: &str, rules: &TimeRules) -> Result<Timestamp, String> {
    let time = read_time(text, &rules.formats)?.value.in_zone(rules.zone.unwrap_or(Tz::UTC))?;
    timestamp(time)
}

/// Converts a moment. It must be within the years that the API accepts.
pub fn timestamp(time: DateTime<Utc>) -> Result<Timestamp, String> {
    if !(1970..=9999).contains(&time.year()) {
        return Err(format!("must be in the years 1970 to 9999, got {}", time.to_rfc3339()));
    }
    // chrono represents a leap second as more than 10^9 nanoseconds.
    let nanos = time.timestamp_subsec_nanos();
    Ok(Timestamp {
        seconds: time.timestamp() + i64::from(nanos / 1_000_000_000),
        nanos: (nanos % 1_000_000_000) as i32,
    })
}

/// Formats a time as RFC 3339, to the second.
pub fn time_text(time: Option<&Timestamp>) -> String {
    time_of(time, SecondsFormat::Secs).unwrap_or_default()
}

/// Formats a time as RFC 3339, with the precision of `format`.
pub fn time_of(time: Option<&Timestamp>, format: SecondsFormat) -> Option<String> {
    let time = time?;
    let time = DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)?;
    Some(time.to_rfc3339_opts(format, true))
}

/// Checks a strftime format.
pub fn check_format(format: &str) -> Result<String, String> {
    match StrftimeItems::new(format).any(|item| item == Item::Error) {
        true => Err(format!("must be a strftime format such as \"%d.%m.%Y %H:%M\", got {format:?}")),
        false => Ok(format.to_owned()),
    }
}

fn parse_with(text: &str, format: &str) -> Result<TimeValue, String> {
    let wrong = |error| format!("does not match --time-format {format:?}: {error}, got {text:?}");
    let mut parsed = Parsed::new();
    parse(&mut parsed, text, StrftimeItems::new(format)).map_err(wrong)?;
    if parsed.offset().is_some() {
        return Ok(TimeValue::Exact(parsed.to_datetime().map_err(wrong)?.to_utc()));
    }
    if parsed.timestamp().is_some() {
        return parsed.to_datetime_with_timezone(&Utc).map(TimeValue::Exact).map_err(wrong);
    }
    let day = parsed.to_naive_date().map_err(wrong)?;
    Ok(match parsed.hour_mod_12().is_none() && parsed.hour_div_12().is_none() {
        true => TimeValue::Day(day),
        false => TimeValue::Local(day.and_time(parsed.to_naive_time().map_err(wrong)?)),
    })
}

fn in_zone(local: NaiveDateTime, zone: Tz) -> Result<DateTime<Utc>, String> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(time) => Ok(time.to_utc()),
        LocalResult::Ambiguous(first, second) => Err(format!(
            "{local} occurs twice in {zone} because clocks go back: write {} or {}",
            first.to_rfc3339(),
            second.to_rfc3339()
        )),
        LocalResult::None => {
            let after = zone.from_local_datetime(&(local + TimeDelta::hours(1))).earliest();
            let hint = after.map(|after| format!("; one hour later is {}", after.to_rfc3339()));
            Err(format!("{local} does not exist in {zone} because clocks go forward{}", hint.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
#[path = "time_tests.rs"]
mod tests;
