//! Days and months in the client's time zone.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use std::fmt;

/// A calendar month, stored as its first day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(NaiveDate);

/// Returns the day in `zone` that contains `time`. Every instant is in exactly one day, including days of 23 and 25
/// hours.
pub fn day_of(time: DateTime<Utc>, zone: Tz) -> NaiveDate {
    time.with_timezone(&zone).date_naive()
}

/// Returns a range outside of which every instant is on another day in any time zone. See [`Month::widest_range`].
pub fn widest_range(day: NaiveDate) -> (DateTime<Utc>, DateTime<Utc>) {
    let midnight = day.and_time(chrono::NaiveTime::MIN).and_utc();
    (midnight - TimeDelta::days(1), midnight + TimeDelta::days(2))
}

/// Returns the first moment of a day. It is after midnight if clocks go forward at midnight. `None` if the zone skipped the day.
pub fn start_of_day(day: NaiveDate, zone: Tz) -> Option<DateTime<Utc>> {
    let midnight = day.and_time(NaiveTime::MIN);
    let mut quarters = (0..24 * 4).map(|quarter| midnight + TimeDelta::minutes(15 * quarter));
    quarters.find_map(|local| zone.from_local_datetime(&local).earliest()).map(|time| time.to_utc())
}

/// The part of a day that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DayPart {
    /// Seconds that are over, at most `seconds`. A second that has begun is counted.
    pub over: u32,
    /// Seconds of the day: 86,400, and less or more if clocks go forward or back.
    pub seconds: u32,
}

impl DayPart {
    /// Returns the part of the day in `zone` that is over at `time`.
    pub fn at(time: DateTime<Utc>, zone: Tz) -> Self {
        let day = day_of(time, zone);
        let start = start_of_day(day, zone).unwrap_or(time);
        // A zone can skip the next day, but not two days.
        let next = [1, 2].into_iter().find_map(|days| start_of_day(day + Days::new(days), zone));
        let seconds = next.map_or(0, |next| (next - start).num_seconds()).max(1);
        let over = (time - start + TimeDelta::microseconds(999_999)).num_seconds().clamp(0, seconds);
        Self { over: over as u32, seconds: seconds as u32 }
    }

    /// Returns the seconds of the day that remain.
    pub fn remaining(self) -> u32 {
        self.seconds - self.over
    }
}

/// Parses a day in the form "2026-11-21" with a year from 1 to 9999. Rejects every other form.
pub fn parse_day(text: &str) -> Option<NaiveDate> {
    let plain = text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    let day = plain.then(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok())??;
    (day.year() > 0).then_some(day)
}

impl Month {
    /// Returns the month of a day.
    pub fn of(day: NaiveDate) -> Self {
        Self(day.with_day(1).expect("every month has a first day"))
    }

    /// Parses a month in the form "2026-11".
    pub fn parse(text: &str) -> Option<Self> {
        parse_day(&format!("{text}-01")).map(Self)
    }

    /// Returns the first day.
    pub fn first_day(self) -> NaiveDate {
        self.0
    }

    /// Returns the last day.
    pub fn last_day(self) -> NaiveDate {
        self.next().0 - Days::new(1)
    }

    /// Returns the number of days: 28 to 31.
    pub fn days(self) -> u32 {
        self.last_day().day()
    }

    /// Returns the month before this one.
    pub fn previous(self) -> Self {
        Self(self.0 - Months::new(1))
    }

    /// Returns the month after this one.
    pub fn next(self) -> Self {
        Self(self.0 + Months::new(1))
    }

    /// Returns a range outside of which every instant is in another month in any time zone. Time zones are between
    /// UTC-12 and UTC+14, and no zone was ever a whole day away from UTC.
    pub fn widest_range(self) -> (DateTime<Utc>, DateTime<Utc>) {
        (widest_range(self.0).0, widest_range(self.last_day()).1)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format("%Y-%m"))
    }
}

/// Returns the number of days of the month up to and including `today`, and the number of days after it.
pub fn elapsed_and_remaining(today: NaiveDate) -> (u32, u32) {
    (today.day(), Month::of(today).days() - today.day())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn time_zones_far_apart_can_have_different_months() {
        let new_year = utc("2026-12-31T10:30:00Z");
        assert_eq!(day_of(new_year, chrono_tz::Pacific::Kiritimati).to_string(), "2027-01-01");
        assert_eq!(day_of(new_year, chrono_tz::Pacific::Pago_Pago).to_string(), "2026-12-30");
    }

    #[test]
    fn days_of_23_and_25_hours_are_one_day() {
        let berlin = chrono_tz::Europe::Berlin;
        for (first, hours) in [("2026-03-28T23:00:00Z", 23), ("2026-10-24T22:00:00Z", 25)] {
            let start = utc(first);
            let day = day_of(start, berlin);
            assert_ne!(day_of(start - TimeDelta::microseconds(1), berlin), day);
            let end = start + TimeDelta::hours(hours);
            assert_eq!(day_of(end - TimeDelta::microseconds(1), berlin), day);
            assert_ne!(day_of(end, berlin), day);
        }
    }

    #[test]
    fn the_part_of_a_day_that_is_over_is_measured_in_the_length_of_the_day() {
        let berlin = chrono_tz::Europe::Berlin;
        let part = |time: &str, zone| DayPart::at(utc(time), zone);
        assert_eq!(part("2026-11-21T12:00:00Z", Tz::UTC), DayPart { over: 43_200, seconds: 86_400 });
        assert_eq!(part("2026-03-29T00:00:00Z", berlin), DayPart { over: 3_600, seconds: 23 * 3_600 });
        assert_eq!(part("2026-10-25T01:00:00Z", berlin), DayPart { over: 3 * 3_600, seconds: 25 * 3_600 });
        let start = part("2026-11-20T23:00:00Z", berlin);
        assert_eq!((start.over, start.remaining()), (0, 86_400));
        assert_eq!(part("2026-11-21T22:59:59.000001Z", berlin).remaining(), 0);
        // Clocks go forward at midnight, and the day begins at one o'clock.
        let santiago = chrono_tz::America::Santiago;
        assert_eq!(part("2026-09-06T04:00:00Z", santiago), DayPart { over: 0, seconds: 23 * 3_600 });
        // Samoa skipped a day.
        assert_eq!(start_of_day(parse_day("2011-12-30").unwrap(), chrono_tz::Pacific::Apia), None);
        assert_eq!(part("2011-12-29T22:00:00Z", chrono_tz::Pacific::Apia).seconds, 86_400);
    }

    #[test]
    fn months_handle_leap_days_and_year_ends() {
        let month = |text| Month::parse(text).unwrap();
        assert_eq!(month("2028-02").days(), 29);
        assert_eq!(month("2026-02").days(), 28);
        assert_eq!(month("2100-02").days(), 28);
        assert_eq!(month("2027-01").previous(), month("2026-12"));
        assert_eq!(month("2026-12").next(), month("2027-01"));
        assert_eq!(elapsed_and_remaining(parse_day("2026-10-31").unwrap()), (31, 0));
        assert_eq!(elapsed_and_remaining(parse_day("2028-02-29").unwrap()), (29, 0));
        assert_eq!(elapsed_and_remaining(parse_day("2026-10-01").unwrap()), (1, 30));
    }

    #[test]
    fn days_and_months_in_other_forms_are_rejected() {
        for text in ["2026-2-01", "2026-02-30", "2026-13-01", "+2026-01-01", "2026-01-01T00:00", "", "0000-01-01"] {
            assert_eq!(parse_day(text), None, "{text}");
        }
        for text in ["2026", "2026-00", "2026-1", "2026-11-01"] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
    }

    proptest! {
        /// A parsed day or month formats to the same text.
        #[test]
        fn any_parsed_day_formats_to_the_same_text(text in "\\PC*|[+0-9-]{4,5}-[0-9 -]{2,3}-[0-9]{1,3}") {
            if let Some(day) = parse_day(&text) {
                prop_assert_eq!(day.to_string(), text.as_str());
            }
            if let Some(month) = Month::parse(&text) {
                prop_assert_eq!(month.to_string(), text);
                prop_assert_eq!((month.previous().next(), month.next().previous()), (month, month));
            }
        }

        /// Compares with midnight as computed by the time zone: the day contains the instant, the days before and after
        /// it do not.
        #[test]
        fn every_instant_is_in_its_day_and_month_in_every_zone(
            seconds in 0i64..4_102_444_800, zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
        ) {
            let time = Utc.timestamp_opt(seconds, 0).unwrap();
            let day = day_of(time, zone);
            let local = time.with_timezone(&zone).naive_local();
            prop_assert!(local >= day.and_hms_opt(0, 0, 0).unwrap());
            prop_assert!(local < (day + Days::new(1)).and_hms_opt(0, 0, 0).unwrap());
            let month = Month::of(day);
            prop_assert!(month.first_day() <= day && day <= month.last_day());
            prop_assert_eq!(Month::parse(&month.to_string()), Some(month));
            prop_assert_eq!(month.next().previous(), month);
            let (start, end) = month.widest_range();
            prop_assert!(start <= time && time < end);
            let (elapsed, remaining) = elapsed_and_remaining(day);
            prop_assert_eq!(elapsed + remaining, month.days());
            let part = DayPart::at(time, zone);
            prop_assert!(part.over <= part.seconds && (20 * 3_600..=28 * 3_600).contains(&part.seconds), "{:?}", part);
            let second_after_start = start_of_day(day, zone).unwrap() + TimeDelta::seconds(part.over.into());
            prop_assert!(second_after_start >= time, "{:?}", part);
            // A later instant is never on an earlier day, unless the clock of the zone was set back over midnight.
            let offset_now = time.with_timezone(&zone).naive_local() - time.naive_utc();
            let later = time + TimeDelta::days(2);
            let offset_later = later.with_timezone(&zone).naive_local() - later.naive_utc();
            prop_assert!(day_of(later, zone) > day || offset_later < offset_now);
        }
    }
}
