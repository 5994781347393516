//! Times as files and people write them.

mod number;
mod text;

use chrono::format::{Item, Parsed, StrftimeItems, parse};
use chrono::{
    DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, SecondsFormat, TimeDelta, TimeZone, Utc,
};
use chrono_tz::Tz;
use prost_types::Timestamp;

/// How to read a time that does not say everything itself.
#[derive(Clone, Debug, Default)]
pub struct TimeRules {
    /// Zone of times without an offset. None: UTC in [`parse_time`], each client's own in an import.
    pub zone: Option<Tz>,
    /// strftime formats. Empty: the usual forms.
    pub formats: Vec<String>,
}

/// A time as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// With an offset, or a Unix time.
    Exact(DateTime<Utc>),
    /// Date and time of day without an offset.
    Local(NaiveDateTime),
    /// A day alone: its first moment.
    Day(NaiveDate),
}

impl Written {
    /// Whether it is another moment in another time zone.
    pub fn needs_zone(self) -> bool {
        !matches!(self, Written::Exact(_))
    }

    /// The moment that it is in a zone.
    pub fn in_zone(self, zone: Tz) -> Result<DateTime<Utc>, String> {
        match self {
            Written::Exact(time) => Ok(time),
            Written::Local(local) => in_zone(local, zone),
            Written::Day(day) => start_of_day(day, zone),
        }
    }
}

/// A time that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTime {
    /// What it says.
    pub written: Written,
    /// It was a spreadsheet's number of days.
    pub is_serial: bool,
}

impl From<Written> for ReadTime {
    fn from(written: Written) -> Self {
        Self { written, is_serial: false }
    }
}

/// Reads a time with the one of `formats` that fits, or, if there are none, in any of the usual forms (see [`usual_forms`]).
pub fn read_time(text: &str, formats: &[String]) -> Result<ReadTime, String> {
    let text = text.trim();
    match formats {
        [] if number::is_number(text) => number::read(text),
        [] => text::read(text).map(ReadTime::from),
        [format] => formatted(text, format).map(ReadTime::from),
        several => one_of(text, several).map(ReadTime::from),
    }
}

/// A time that all formats that fit read alike.
fn one_of(text: &str, formats: &[String]) -> Result<Written, String> {
    let mut fitting = formats.iter().filter_map(|format| Some((format, formatted(text, format).ok()?)));
    let Some((format, written)) = fitting.next() else {
        return Err(format!("fits no --time-format, got {text:?}"));
    };
    match fitting.find(|(_, other)| *other != written) {
        Some((other, _)) => Err(format!("is one time by {format:?} and another by {other:?}, got {text:?}")),
        None => Ok(written),
    }
}

/// What [`read_time`] reads without a format, for help texts.
pub fn usual_forms() -> &'static str {
    "2026-11-20T10:15:00Z or +01:00 in any ISO 8601 or database form, 20261120T101500, RFC 2822, \
     Unix seconds (10 digits), milliseconds (13), microseconds (16) or nanoseconds (19), \
     20261120 and 20261120101500, and spreadsheet dates such as 46346.5"
}

/// Parses the time of a flag, in any of the usual forms; without an offset it is in UTC. There is no flag for another form.
pub fn parse_flag_time(text: &str) -> Result<Timestamp, String> {
    parse_time(text, &TimeRules::default()).map_err(|error| {
        let rule = error.split("; give --time-format").next().unwrap_or_default();
        rule.trim_end_matches("; see --time-format").to_owned()
    })
}

/// Parses one time; without an offset it is in the zone of the rules, or in UTC.
pub fn parse_time(text: &str, rules: &TimeRules) -> Result<Timestamp, String> {
    let time = read_time(text, &rules.formats)?.written.in_zone(rules.zone.unwrap_or(Tz::UTC))?;
    timestamp(time)
}

/// A moment within the contract's years.
pub fn timestamp(time: DateTime<Utc>) -> Result<Timestamp, String> {
    if !(1970..=9999).contains(&time.year()) {
        return Err(format!("must be in the years 1970 to 9999, got {}", time.to_rfc3339()));
    }
    // chrono writes a leap second as nanoseconds beyond a second.
    let nanos = time.timestamp_subsec_nanos();
    Ok(Timestamp {
        seconds: time.timestamp() + i64::from(nanos / 1_000_000_000),
        nanos: (nanos % 1_000_000_000) as i32,
    })
}

/// A time as RFC 3339, to the second.
pub fn time_text(time: Option<&Timestamp>) -> String {
    time_of(time, SecondsFormat::Secs).unwrap_or_default()
}

/// A time as RFC 3339, as exact as it is.
pub fn time_of(time: Option<&Timestamp>, format: SecondsFormat) -> Option<String> {
    let time = time?;
    let time = DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)?;
    Some(time.to_rfc3339_opts(format, true))
}

/// Checks a strftime format before the first row.
pub fn check_format(format: &str) -> Result<String, String> {
    match StrftimeItems::new(format).any(|item| item == Item::Error) {
        true => Err(format!("{format:?} is not a strftime format")),
        false => Ok(format.to_owned()),
    }
}

fn formatted(text: &str, format: &str) -> Result<Written, String> {
    let wrong = |error| format!("does not fit --time-format {format:?}: {error}, got {text:?}");
    let mut parsed = Parsed::new();
    parse(&mut parsed, text, StrftimeItems::new(format)).map_err(wrong)?;
    if parsed.offset().is_some() {
        return Ok(Written::Exact(parsed.to_datetime().map_err(wrong)?.to_utc()));
    }
    if parsed.timestamp().is_some() {
        return parsed.to_datetime_with_timezone(&Utc).map(Written::Exact).map_err(wrong);
    }
    let day = parsed.to_naive_date().map_err(wrong)?;
    Ok(match parsed.hour_mod_12().is_none() && parsed.hour_div_12().is_none() {
        true => Written::Day(day),
        false => Written::Local(day.and_time(parsed.to_naive_time().map_err(wrong)?)),
    })
}

fn in_zone(local: NaiveDateTime, zone: Tz) -> Result<DateTime<Utc>, String> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(time) => Ok(time.to_utc()),
        LocalResult::Ambiguous(first, second) => Err(format!(
            "{local} happens twice in {zone}, when clocks go back: write {} or {}",
            first.to_rfc3339(),
            second.to_rfc3339()
        )),
        LocalResult::None => {
            let after = zone.from_local_datetime(&(local + TimeDelta::hours(1))).earliest();
            let hint = after.map(|after| format!("; one hour later is {}", after.to_rfc3339()));
            Err(format!(
                "{local} does not exist in {zone}, where clocks go forward over it{}",
                hint.unwrap_or_default()
            ))
        }
    }
}

/// Some days begin after midnight, because clocks go forward over it; and zones have left out whole days.
fn start_of_day(day: NaiveDate, zone: Tz) -> Result<DateTime<Utc>, String> {
    let midnight = day.and_time(NaiveTime::MIN);
    let quarters = (0..24 * 4).map(|quarter| midnight + TimeDelta::minutes(15 * quarter));
    let first = quarters.into_iter().find_map(|local| zone.from_local_datetime(&local).earliest());
    first.map(|time| time.to_utc()).ok_or_else(|| format!("there is no {day} in {zone}"))
}

#[cfg(test)]
#[path = "time_tests.rs"]
mod tests;
