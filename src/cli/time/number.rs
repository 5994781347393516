//! Times that are numbers: Unix times, compact dates, and the days of spreadsheets. The number of digits tells which.

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};

use super::{ReadTime, Written};
use crate::cli::decimal;

/// Unix times from 2001-09-09, when seconds got their tenth digit, to 2099.
const SECONDS: std::ops::Range<i64> = 1_000_000_000..4_102_444_800;
/// Days of a spreadsheet from 1970 to 2099; day 0 is 1899-12-30.
const SERIAL_DAYS: std::ops::RangeInclusive<i64> = 25_569..=73_050;
/// Digits that a number with an exponent has at least: Unix seconds have ten. 1.70016E+12 has lost some.
const EXACT_DIGITS_MIN: usize = 10;
const DAY_MS: i128 = 86_400_000;

/// Whether a text is a number, and nothing else.
pub fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit() || first == '+')
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"+.,eE".contains(&byte))
        && text.matches(['.', ',']).count() <= 1
}

/// Reads a number as a time. Each form has a number of digits of its own before the point, and a plausible range.
pub fn read(text: &str) -> Result<ReadTime, String> {
    // Five digits and more before a comma: it does not separate thousands.
    let text = match text.split_once(',') {
        Some((whole, _)) if whole.len() > 3 => text.replacen(',', ".", 1),
        _ => text.to_owned(),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, ""));
    if !exponent.is_empty() && mantissa.bytes().filter(u8::is_ascii_digit).count() < EXACT_DIGITS_MIN {
        return Err(format!(
            "is a number that a spreadsheet has shortened, got {text:?}: format its column as text and save again"
        ));
    }
    let plain = decimal::plain(&text)?;
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let read = match whole.len() {
        5 => serial(whole, fraction),
        8 if fraction.is_empty() => compact_day(whole).map(ReadTime::from),
        12 | 14 | 17 => compact(whole, fraction).map(ReadTime::from),
        10 => {
            if let Some(hour) = compact_hour(whole) {
                return Err(format!(
                    "can be the hour {hour} or Unix seconds, got {text:?}; write it such as {hour}:00:00Z"
                ));
            }
            unix(whole, fraction, 0).map(ReadTime::from)
        }
        13 => unix(whole, fraction, 3).map(ReadTime::from),
        16 => unix(whole, fraction, 6).map(ReadTime::from),
        19 => unix(whole, fraction, 9).map(ReadTime::from),
        _ => None,
    };
    read.ok_or_else(|| refused(&text, whole))
}

/// What the number would be as Unix seconds, so that it can be seen why it is not taken for them.
fn refused(text: &str, whole: &str) -> String {
    let seconds = whole.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let seconds = seconds.map_or(String::new(), |time: DateTime<Utc>| {
        format!("; as Unix seconds it would be {}", time.format("%Y-%m-%dT%H:%M:%SZ"))
    });
    format!(
        "is a number that is not a plausible time, got {text:?}{seconds}; Unix times have 10, 13, 16 or 19 digits and lie \
         between 2001 and 2099, compact dates look like 20261120 or 20261120101500, spreadsheet dates like 46346.5"
    )
}

fn unix(whole: &str, fraction: &str, decimals: usize) -> Option<Written> {
    let (seconds, below) = whole.split_at(whole.len() - decimals);
    let nanos: String = below.chars().chain(fraction.chars()).chain("000000000".chars()).take(9).collect();
    let seconds: i64 = seconds.parse().ok().filter(|seconds| SECONDS.contains(seconds))?;
    DateTime::from_timestamp(seconds, nanos.parse().ok()?).map(Written::Exact)
}

/// Days since 1899-12-30, and a part of a day, rounded to the millisecond.
fn serial(whole: &str, fraction: &str) -> Option<ReadTime> {
    let days: i64 = whole.parse().ok().filter(|days| SERIAL_DAYS.contains(days))?;
    let day = NaiveDate::from_ymd_opt(1899, 12, 30)? + TimeDelta::days(days);
    let fraction = &fraction[..fraction.len().min(18)];
    if fraction.is_empty() {
        return Some(ReadTime { written: Written::Day(day), is_serial: true });
    }
    let scale = 10_i128.pow(fraction.len() as u32);
    let ms = (fraction.parse::<i128>().ok()? * DAY_MS + scale / 2) / scale;
    let local = day.and_hms_opt(0, 0, 0)? + TimeDelta::milliseconds(i64::try_from(ms).ok()?);
    Some(ReadTime { written: Written::Local(local), is_serial: true })
}

fn compact_day(digits: &str) -> Option<Written> {
    is_plausible_year(digits).then(|| NaiveDate::parse_from_str(digits, "%Y%m%d").ok().map(Written::Day))?
}

/// `20261120101500`, `202611201015` or `20261120101500123`, each perhaps with a fraction.
fn compact(digits: &str, fraction: &str) -> Option<Written> {
    if !is_plausible_year(digits) || (digits.len() != 14 && !fraction.is_empty()) {
        return None;
    }
    let (seconds, fraction) = match digits.len() {
        12 => (format!("{digits}00"), ""),
        _ => (digits[..14].to_owned(), if digits.len() == 17 { &digits[14..] } else { fraction }),
    };
    // A point, for chrono takes as many digits for a year as there are.
    let text = format!("{}-{}.{fraction}0", &seconds[..8], &seconds[8..]);
    NaiveDateTime::parse_from_str(&text, "%Y%m%d-%H%M%S%.f").ok().map(Written::Local)
}

fn compact_hour(digits: &str) -> Option<String> {
    let day = compact_day(&digits[..8])?;
    let Written::Day(day) = day else { return None };
    let hour: u32 = digits[8..].parse().ok()?;
    (hour < 24).then(|| format!("{day}T{hour:02}"))
}

fn is_plausible_year(digits: &str) -> bool {
    digits[..4].parse().is_ok_and(|year: i32| (1970..2100).contains(&year))
}
