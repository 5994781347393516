//! Times in ISO 8601 and in the forms of databases, logs and mail.

use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, TimeZone};
use chrono_tz::Tz;

use super::TimeValue;

/// Parses a time that is not a plain number.
pub fn read(text: &str) -> Result<TimeValue, String> {
    if let Some(read) = iso(text) {
        return read;
    }
    if let Ok(time) = DateTime::parse_from_rfc2822(text) {
        return Ok(TimeValue::Exact(time.to_utc()));
    }
    // The format of web server logs.
    let inside = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(time) = DateTime::parse_from_str(inside, "%d/%b/%Y:%H:%M:%S %z") {
        return Ok(TimeValue::Exact(time.to_utc()));
    }
    Err(format!(
        "must be a time such as 2023-11-16T18:15:46.68Z, 2023-11-16 18:15:46+01:00 or 1700158546, got {text:?}{}",
        hint(text)
    ))
}

/// Parses a date, optionally with a time of day and a zone. `None` if the text does not begin with a date.
fn iso(text: &str) -> Option<Result<TimeValue, String>> {
    // Go appends the monotonic clock to a printed time.
    let text = text.rsplit_once(" m=").map_or(text, |(time, _)| time);
    let (date, rest) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], text[at + 1..].trim_start()),
        None => (text, ""),
    };
    let formats: &[&str] = match date.bytes().all(|byte| byte.is_ascii_digit()) {
        true if date.len() == 8 => &["%Y%m%d"],
        true => return None,
        false if !date.bytes().take(4).all(|byte| byte.is_ascii_digit()) => return None,
        false if !matches!(date.as_bytes().get(4), Some(b'-' | b'/')) => return None,
        false => &["%Y-%m-%d", "%Y/%m/%d"],
    };
    // A day of one digit may be incomplete because the file is truncated.
    if date.contains('-') && date.len() != 10 {
        return None;
    }
    let day = formats.iter().find_map(|format| NaiveDate::parse_from_str(date, format).ok())?;
    if rest.is_empty() {
        return Some(Ok(TimeValue::Day(day)));
    }
    let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, ':' | '.' | ',')).unwrap_or(rest.len());
    let (clock, zone) = (&rest[..end], rest[end..].trim());
    let (zone, half) = match zone.get(..2).map(str::to_ascii_uppercase).as_deref() {
        Some(half @ ("AM" | "PM")) => (zone[2..].trim(), Some(half.to_owned())),
        _ => (zone, None),
    };
    let local = day.and_time(time_of_day(clock, half.as_deref())?);
    Some(zoned(local, zone))
}

fn time_of_day(clock: &str, half: Option<&str>) -> Option<NaiveTime> {
    let clock = clock.replace(',', ".");
    if let Some(half) = half {
        let text = format!("{clock} {half}");
        return ["%I:%M:%S%.f %p", "%I:%M %p"].iter().find_map(|format| NaiveTime::parse_from_str(&text, format).ok());
    }
    let digits = clock.find('.').unwrap_or(clock.len());
    if clock[..digits].split(':').skip(1).any(|part| part.len() != 2) {
        return None;
    }
    let formats: &[&str] = match clock[..digits].contains(':') {
        true => &["%H:%M:%S%.f", "%H:%M"],
        false if digits == 6 => &["%H%M%S%.f"],
        false if digits == 4 => &["%H%M"],
        false => &[],
    };
    formats.iter().find_map(|format| NaiveTime::parse_from_str(&clock, format).ok())
}

fn zoned(local: NaiveDateTime, zone: &str) -> Result<TimeValue, String> {
    if zone.is_empty() {
        return Ok(TimeValue::Local(local));
    }
    if let Some(offset) = offset(zone) {
        let time = offset.from_local_datetime(&local).single();
        return time.map(|time| TimeValue::Exact(time.to_utc())).ok_or_else(|| format!("is out of range: {local}"));
    }
    match zone.parse::<Tz>() {
        Ok(named) if zone.contains('/') => TimeValue::Local(local).in_zone(named).map(TimeValue::Exact),
        _ => Err(format!(
            "ends with {zone:?}, which is not an offset from UTC: write an offset such as +01:00, or remove it and add \
             --time-zone"
        )),
    }
}

/// Parses `Z`, `UTC`, `+01`, `+0100`, `+01:00`, also with a name at the end: `+0100 CET`, `+01:00[Europe/Berlin]`.
fn offset(zone: &str) -> Option<FixedOffset> {
    let is_utc = |name: &str| ["Z", "UTC", "GMT"].iter().any(|utc| utc.eq_ignore_ascii_case(name));
    if is_utc(zone) {
        return FixedOffset::east_opt(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let rest = &zone[1..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ':').unwrap_or(rest.len());
    let (digits, name) = (&rest[..end], rest[end..].trim());
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-/_[]".contains(&byte));
    let two = |at: usize| digits.get(at..at + 2)?.parse::<i32>().ok();
    let (hours, minutes) = match (digits.len(), digits.contains(':')) {
        (2, false) => (two(0)?, 0),
        (4, false) => (two(0)?, two(2)?),
        (5, true) => (two(0)?, two(3)?),
        _ => return None,
    };
    let is_possible = is_name && hours <= 18 && minutes < 60;
    is_possible.then(|| FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60)))?
}

/// Suggests a format for a date that begins with the day or the month.
fn hint(text: &str) -> String {
    let (date, clock) = text.split_once([' ', 'T']).unwrap_or((text, ""));
    let half = if clock.to_ascii_uppercase().ends_with('M') { " %p" } else { "" };
    let hour = if half.is_empty() { "%H" } else { "%I" };
    let clock = match clock.matches(':').count() {
        0 => String::new(),
        1 => format!(" {hour}:%M{half}"),
        _ => format!(" {hour}:%M:%S{half}"),
    };
    let parts = |separator: char| -> Option<usize> {
        let parts: Vec<&str> = date.split(separator).collect();
        let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        (parts.len() == 3 && parts.iter().all(|part| is_digits(part))).then(|| parts[2].len())
    };
    let year = |digits: usize| if digits == 2 { "%y" } else { "%Y" };
    if date.find(['.', '/', '-']) == Some(4) {
        let form = if parts('.').is_some() {
            format!("use --time-format \"%Y.%m.%d{clock}\"")
        } else {
            "its day or time of day is incomplete or does not exist".to_owned()
        };
        return format!("; {form}");
    }
    if let Some(digits) = parts('.') {
        return format!("; use --time-format \"%d.%m.{}{clock}\"", year(digits));
    }
    match parts('/').map(|digits| (digits, '/')).or(parts('-').map(|digits| (digits, '-'))) {
        Some((digits, between)) => {
            let year = year(digits);
            format!(
                "; use --time-format \"%m{between}%d{between}{year}{clock}\" if the month comes first, \
                 \"%d{between}%m{between}{year}{clock}\" if the day comes first"
            )
        }
        None => "; see --time-format".to_owned(),
    }
}
