//! Days and months as the client's own time zone has them.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;
use std::fmt;

/// A calendar month, held as its first day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(NaiveDate);

/// The day in `zone` on which `time` falls. Every instant falls on exactly one, also on days of 23 and 25 hours.
pub fn day_of(time: DateTime<Utc>, zone: Tz) -> NaiveDate {
    time.with_timezone(&zone).date_naive()
}

/// Instants outside this range are on another day whatever the time zone: see [`Month::widest_range`].
pub fn widest_range(day: NaiveDate) -> (DateTime<Utc>, DateTime<Utc>) {
    let midnight = day.and_time(chrono::NaiveTime::MIN).and_utc();
    (midnight - TimeDelta::days(1), midnight + TimeDelta::days(2))
}

/// Reads a day such as "2026-11-21", years 1 to 9999, and nothing but that form.
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
    /// The month of a day.
    pub fn of(day: NaiveDate) -> Self {
        Self(day.with_day(1).expect("every month has a first day"))
    }

    /// Reads a month such as "2026-11".
    pub fn parse(text: &str) -> Option<Self> {
        parse_day(&format!("{text}-01")).map(Self)
    }

    /// Its first day.
    pub fn first_day(self) -> NaiveDate {
        self.0
    }

    /// Its last day.
    pub fn last_day(self) -> NaiveDate {
        self.next().0 - Days::new(1)
    }

    /// How many days it has: 28 to 31.
    pub fn days(self) -> u32 {
        self.last_day().day()
    }

    /// The month before; December before January.
    pub fn previous(self) -> Self {
        Self(self.0 - Months::new(1))
    }

    /// The month after.
    pub fn next(self) -> Self {
        Self(self.0 + Months::new(1))
    }

    /// Instants outside this range are in another month whatever the time zone: zones lie between UTC-12 and UTC+14, and
    /// none has ever been a whole day off.
    pub fn widest_range(self) -> (DateTime<Utc>, DateTime<Utc>) {
        (widest_range(self.0).0, widest_range(self.last_day()).1)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format("%Y-%m"))
    }
}

/// Days of the month up to and with `today`, and days after it.
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
    fn the_far_ends_of_the_world_have_their_own_month() {
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
    fn months_know_leap_days_and_year_ends() {
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
    fn only_plain_days_and_months_are_read() {
        for text in ["2026-2-01", "2026-02-30", "2026-13-01", "+2026-01-01", "2026-01-01T00:00", "", "0000-01-01"] {
            assert_eq!(parse_day(text), None, "{text}");
        }
        for text in ["2026", "2026-00", "2026-1", "2026-11-01"] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
    }

    proptest! {
        /// What is read is what it says, and nothing but that form is read.
        #[test]
        fn any_text_is_a_day_that_writes_itself_so_or_none(text in "\\PC*|[+0-9-]{4,5}-[0-9 -]{2,3}-[0-9]{1,3}") {
            if let Some(day) = parse_day(&text) {
                prop_assert_eq!(day.to_string(), text.as_str());
            }
            if let Some(month) = Month::parse(&text) {
                prop_assert_eq!(month.to_string(), text);
                prop_assert_eq!((month.previous().next(), month.next().previous()), (month, month));
            }
        }

        /// Against the zone's own idea of midnight: the day holds the instant, its neighbours do not.
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
            // A later instant is never on an earlier day... unless the zone itself went back over midnight.
            let offset_now = time.with_timezone(&zone).naive_local() - time.naive_utc();
            let later = time + TimeDelta::days(2);
            let offset_later = later.with_timezone(&zone).naive_local() - later.naive_utc();
            prop_assert!(day_of(later, zone) > day || offset_later < offset_now);
        }
    }
}
