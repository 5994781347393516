//! Times that are numbers: Unix times, compact dates, and spreadsheet dates. The number of digits decides which.

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};

use super::{ParsedTime, TimeValue};
use crate::cli::decimal;

/// Unix times from 2001-09-09, when seconds reached ten digits, to 2099.
const SECONDS: std::ops::Range<i64> = 1_000_000_000..4_102_444_800;
/// Spreadsheet dates from 1970 to 2099; day 0 is 1899-12-30.
const SERIAL_DAYS: std::ops::RangeInclusive<i64> = 25_569..=73_050;
/// Minimum number of digits of a number with an exponent: Unix seconds have ten. 1.70016E+12 has lost digits.
const EXACT_DIGITS_MIN: usize = 10;
const DAY_MS: i128 = 86_400_000;

/// Whether a text is a number.
pub fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit() || first == '+')
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"+.,eE".contains(&byte))
        && text.matches(['.', ',']).count() <= 1
}

/// Parses a number as a time. Each form has its own number of digits before the point and its own plausible range.
pub fn read(text: &str) -> Result<ParsedTime, String> {
    // With more than three digits before it, the comma does not separate thousands.
    let text = match text.split_once(',') {
        Some((whole, _)) if whole.len() > 3 => text.replacen(',', ".", 1),
        _ => text.to_owned(),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, ""));
    if !exponent.is_empty() && mantissa.bytes().filter(u8::is_ascii_digit).count() < EXACT_DIGITS_MIN {
        return Err(format!(
            "is a number that a spreadsheet has shortened, got {text:?}: format the column as text and save the file again"
        ));
    }
    let plain = decimal::plain(&text)?;
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let read = match whole.len() {
        5 => serial(whole, fraction),
        8 if fraction.is_empty() => compact_day(whole).map(ParsedTime::from),
        12 | 14 | 17 => compact(whole, fraction).map(ParsedTime::from),
        10 => {
            if let Some(hour) = compact_hour(whole) {
                return Err(format!(
                    "can be the hour {hour} or Unix seconds, got {text:?}; for the hour write {hour}:00:00Z"
                ));
            }
            unix(whole, fraction, 0).map(ParsedTime::from)
        }
        13 => unix(whole, fraction, 3).map(ParsedTime::from),
        16 => unix(whole, fraction, 6).map(ParsedTime::from),
        19 => unix(whole, fraction, 9).map(ParsedTime::from),
        _ => None,
    };
    read.ok_or_else(|| implausible(&text, whole))
}

/// The error for an implausible number. Shows the number as Unix seconds.
fn implausible(text: &str, whole: &str) -> String {
    let seconds = whole.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let seconds = seconds.map_or(String::new(), |time: DateTime<Utc>| {
        format!("; as Unix seconds it would be {}", time.format("%Y-%m-%dT%H:%M:%SZ"))
    });
    format!(
        "is a number that is not a plausible time, got {text:?}{seconds}; Unix times have 10, 13, 16 or 19 digits and are \
         between 2001 and 2099, compact dates look like 20261120 or 20261120101500, spreadsheet dates like 46346.5"
    )
}

fn unix(whole: &str, fraction: &str, decimals: usize) -> Option<TimeValue> {
    let (seconds, below) = whole.split_at(whole.len() - decimals);
    let nanos: String = below.chars().chain(fraction.chars()).chain("000000000".chars()).take(9).collect();
    let seconds: i64 = seconds.parse().ok().filter(|seconds| SECONDS.contains(seconds))?;
    DateTime::from_timestamp(seconds, nanos.parse().ok()?).map(TimeValue::Exact)
}

/// Parses a spreadsheet date: days since 1899-12-30, rounded to the millisecond.
fn serial(whole: &str, fraction: &str) -> Option<ParsedTime> {
    let days: i64 = whole.parse().ok().filter(|days| SERIAL_DAYS.contains(days))?;
    let day = NaiveDate::from_ymd_opt(1899, 12, 30)? + TimeDelta::days(days);
    let fraction = &fraction[..fraction.len().min(18)];
    if fraction.is_empty() {
        return Some(ParsedTime { value: TimeValue::Day(day), is_serial: true });
    }
    let scale = 10_i128.pow(fraction.len() as u32);
    let ms = (fraction.parse::<i128>().ok()? * DAY_MS + scale / 2) / scale;
    let local = day.and_hms_opt(0, 0, 0)? + TimeDelta::milliseconds(i64::try_from(ms).ok()?);
    Some(ParsedTime { value: TimeValue::Local(local), is_serial: true })
}

fn compact_day(digits: &str) -> Option<TimeValue> {
    is_plausible_year(digits).then(|| NaiveDate::parse_from_str(digits, "%Y%m%d").ok().map(TimeValue::Day))?
}

/// Parses `20261120101500`, optionally with a fraction, `202611201015` or `20261120101500123`.
fn compact(digits: &str, fraction: &str) -> Option<TimeValue> {
    if !is_plausible_year(digits) || (digits.len() != 14 && !fraction.is_empty()) {
        return None;
    }
    let (seconds, fraction) = match digits.len() {
        12 => (format!("{digits}00"), ""),
        _ => (digits[..14].to_owned(), if digits.len() == 17 { &digits[14..] } else { fraction }),
    };
    // With a separator, because chrono would parse all digits as the year.
    let text = format!("{}-{}.{fraction}0", &seconds[..8], &seconds[8..]);
    NaiveDateTime::parse_from_str(&text, "%Y%m%d-%H%M%S%.f").ok().map(TimeValue::Local)
}

fn compact_hour(digits: &str) -> Option<String> {
    let day = compact_day(&digits[..8])?;
    let TimeValue::Day(day) = day else { return None };
    let hour: u32 = digits[8..].parse().ok()?;
    (hour < 24).then(|| format!("{day}T{hour:02}"))
}

fn is_plausible_year(digits: &str) -> bool {
    digits[..4].parse().is_ok_and(|year: i32| (1970..2100).contains(&year))
}
