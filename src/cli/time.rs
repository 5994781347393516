//! Times as files write them.

use chrono::format::{Item, Parsed, StrftimeItems, parse};
use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use prost_types::Timestamp;

use crate::cli::decimal;

/// How to read a time that does not say everything itself.
#[derive(Clone, Debug, Default)]
pub struct TimeRules {
    /// Zone of times without an offset. None: UTC.
    pub zone: Option<Tz>,
    /// strftime format. None: the usual ones.
    pub format: Option<String>,
}

/// Parses one time: with `format` if there is one, else RFC 3339, `YYYY-MM-DD[ HH:MM[:SS[.fraction]]]`, or Unix time,
/// which is seconds up to 11 digits, milliseconds up to 14, microseconds up to 17, and nanoseconds up to 19.
pub fn parse_time(text: &str, rules: &TimeRules) -> Result<Timestamp, String> {
    let text = text.trim();
    let time = match &rules.format {
        Some(format) => formatted(text, format, rules.zone)?,
        None => usual(text, rules.zone)?,
    };
    if !(1970..=9999).contains(&time.year()) {
        return Err(format!("must be in the years 1970 to 9999, got {text:?}"));
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

fn usual(text: &str, zone: Option<Tz>) -> Result<DateTime<Utc>, String> {
    if text.starts_with(|first: char| first.is_ascii_digit() || first == '+')
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"+.eE".contains(&byte))
    {
        return unix(text);
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"] {
        if let Ok(local) = NaiveDateTime::parse_from_str(text, format) {
            return in_zone(local, zone);
        }
    }
    match NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        Ok(day) => in_zone(day.and_time(chrono::NaiveTime::MIN), zone),
        Err(_) => Err(format!(
            "must be a time such as 2023-11-16T18:15:46.68Z, 2023-11-16 18:15:46 or 1700158546, got {text:?}; \
             see --time-format"
        )),
    }
}

fn unix(text: &str) -> Result<DateTime<Utc>, String> {
    let plain = decimal::plain(text)?;
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let decimals_per_second = match whole.len() {
        0..=11 => 0,
        12..=14 => 3,
        15..=17 => 6,
        18..=19 => 9,
        _ => return Err(format!("has too many digits for a Unix time: {text:?}")),
    };
    let (seconds, below) = whole.split_at(whole.len() - decimals_per_second);
    let nanos: String = below.chars().chain(fraction.chars()).chain("000000000".chars()).take(9).collect();
    let parsed = seconds.parse().ok().zip(nanos.parse().ok());
    parsed
        .and_then(|(seconds, nanos)| DateTime::from_timestamp(seconds, nanos))
        .ok_or_else(|| format!("is not a Unix time: {text:?}"))
}

fn formatted(text: &str, format: &str, zone: Option<Tz>) -> Result<DateTime<Utc>, String> {
    let wrong = |error| format!("does not fit --time-format {format:?}: {error}, got {text:?}");
    let mut parsed = Parsed::new();
    parse(&mut parsed, text, StrftimeItems::new(format)).map_err(wrong)?;
    if parsed.offset().is_some() {
        return Ok(parsed.to_datetime().map_err(wrong)?.to_utc());
    }
    if parsed.timestamp().is_some() {
        return parsed.to_datetime_with_timezone(&Utc).map_err(wrong);
    }
    let day = parsed.to_naive_date().map_err(wrong)?;
    let time = match parsed.hour_mod_12().is_none() && parsed.hour_div_12().is_none() {
        true => chrono::NaiveTime::MIN,
        false => parsed.to_naive_time().map_err(wrong)?,
    };
    in_zone(day.and_time(time), zone)
}

fn in_zone(local: NaiveDateTime, zone: Option<Tz>) -> Result<DateTime<Utc>, String> {
    let Some(zone) = zone else {
        return Ok(local.and_utc());
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(text: &str, zone: Option<&str>, format: Option<&str>) -> Result<String, String> {
        let rules = TimeRules { zone: zone.map(|zone| zone.parse().unwrap()), format: format.map(str::to_owned) };
        let time = parse_time(text, &rules)?;
        let time = DateTime::from_timestamp(time.seconds, time.nanos as u32).unwrap();
        Ok(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    }

    #[test]
    fn usual_forms_are_utc_unless_they_say_otherwise() {
        for (text, expected) in [
            ("2023-11-16T18:15:46Z", "2023-11-16T18:15:46Z"),
            ("2023-11-16T19:15:46.5+01:00", "2023-11-16T18:15:46.500Z"),
            ("2023-11-16 18:15:46Z", "2023-11-16T18:15:46Z"),
            ("2023-11-16 18:15:46.6805900", "2023-11-16T18:15:46.680590Z"),
            ("2023-11-16 18:15:46", "2023-11-16T18:15:46Z"),
            ("2023-11-16T18:15:46.123456789", "2023-11-16T18:15:46.123456789Z"),
            ("2023-11-16 18:15", "2023-11-16T18:15:00Z"),
            ("2023-11-16", "2023-11-16T00:00:00Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ] {
            assert_eq!(text_of(text, None, None).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn unix_times_are_told_by_their_length_and_stay_exact() {
        for (text, expected) in [
            ("1700158546", "2023-11-16T18:15:46Z"),
            ("1700158546.680590", "2023-11-16T18:15:46.680590Z"),
            ("1700158546680", "2023-11-16T18:15:46.680Z"),
            ("1700158546680.59", "2023-11-16T18:15:46.680590Z"),
            ("1700158546680590", "2023-11-16T18:15:46.680590Z"),
            ("1700158546680590123", "2023-11-16T18:15:46.680590123Z"),
            ("1.700158546e9", "2023-11-16T18:15:46Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(text_of(text, None, None).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn local_times_are_taken_in_the_zone() {
        let berlin = Some("Europe/Berlin");
        assert_eq!(text_of("2023-11-16 19:15:46", berlin, None).unwrap(), "2023-11-16T18:15:46Z");
        assert_eq!(text_of("2023-11-16 18:15:46Z", berlin, None).unwrap(), "2023-11-16T18:15:46Z");
    }

    #[test]
    fn hours_that_a_clock_change_skips_or_repeats_are_told() {
        let berlin = Some("Europe/Berlin");
        let skipped = text_of("2026-03-29 02:30:00", berlin, None).unwrap_err();
        assert!(skipped.contains("does not exist in Europe/Berlin"), "{skipped}");
        let twice = text_of("2026-10-25 02:30:00", berlin, None).unwrap_err();
        assert!(twice.contains("happens twice") && twice.contains("2026-10-25T02:30:00+02:00"), "{twice}");
    }

    #[test]
    fn other_forms_have_a_format() {
        let read = |text, format| text_of(text, None, Some(format));
        assert_eq!(read("16/Nov/2023:18:15:46 +0100", "%d/%b/%Y:%H:%M:%S %z").unwrap(), "2023-11-16T17:15:46Z");
        assert_eq!(read("16.11.2023 18:15", "%d.%m.%Y %H:%M").unwrap(), "2023-11-16T18:15:00Z");
        assert_eq!(read("16.11.2023", "%d.%m.%Y").unwrap(), "2023-11-16T00:00:00Z");
        assert_eq!(read("1700158546", "%s").unwrap(), "2023-11-16T18:15:46Z");
        assert!(read("x", "%d.%m.%Y").unwrap_err().contains("--time-format"));
        assert!(check_format("%Y-%Q!").is_err());
        assert!(check_format("%Y").is_ok());
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "yesterday", "2023-13-01", "2023-11-16 25:00:00", "12345678901234567890", "1e300", "1969-12-31", "-5"]
        {
            assert!(text_of(text, None, None).is_err(), "{text}");
        }
    }
}
