//! Days and months in the client's time zone.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, TimeDelta, Utc};
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
    use chrono::TimeZone;
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
            // A later instant is never on an earlier day, unless the clock of the zone was set back over midnight.
            let offset_now = time.with_timezone(&zone).naive_local() - time.naive_utc();
            let later = time + TimeDelta::days(2);
            let offset_later = later.with_timezone(&zone).naive_local() - later.naive_utc();
            prop_assert!(day_of(later, zone) > day || offset_later < offset_now);
        }
    }
}
