//! A clock that the test sets to random times.

use chrono::{DateTime, NaiveDate, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use meterd_engine::clock::Clock;
use rand::RngExt;
use rand::rngs::StdRng;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

/// Time zones on both sides of the date line, with unusual offsets, and with daylight saving time that starts at
/// midnight or shifts by half an hour.
pub const ZONES: [&str; 8] = [
    "UTC",
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
    "America/New_York",
    "America/Havana",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Europe/Berlin",
];
/// The clocks stay within these years.
const YEARS: RangeInclusive<i32> = 2027..=2028;

/// A clock that the test sets, and all times that it has shown.
#[derive(Clone)]
pub struct JumpingClock {
    pub clock: Clock,
    times_shown: Arc<Mutex<Vec<DateTime<Utc>>>>,
}

impl JumpingClock {
    pub fn at(time: DateTime<Utc>) -> Self {
        Self { clock: Clock::fixed(time), times_shown: Arc::new(Mutex::new(vec![time])) }
    }

    fn set(&self, time: DateTime<Utc>) {
        let mut times_shown = self.times_shown.lock().unwrap();
        self.clock.set(time);
        times_shown.push(time);
    }

    pub fn now(&self) -> DateTime<Utc> {
        *self.times_shown.lock().unwrap().last().expect("the list is never empty")
    }

    /// Returns how many times the clock has shown.
    pub fn count(&self) -> usize {
        self.times_shown.lock().unwrap().len()
    }

    /// Returns the times that the clock has shown since it had shown `count` times, including the last of these.
    pub fn since(&self, count: usize) -> Vec<DateTime<Utc>> {
        self.times_shown.lock().unwrap()[count - 1..].to_vec()
    }

    /// Jumps by an hour, by 35 days, to the end of a month, to a change of daylight saving time, or forward by a
    /// little.
    pub fn jump(&self, rng: &mut StdRng) {
        let now = self.now();
        let sign = if rng.random() { 1 } else { -1 };
        let wanted = match rng.random_range(0..6) {
            0 => now + TimeDelta::hours(sign),
            1 => now + TimeDelta::days(35 * sign),
            2 => {
                let zone: Tz = ZONES[rng.random_range(0..ZONES.len())].parse().unwrap();
                let month = NaiveDate::from_ymd_opt(rng.random_range(YEARS), rng.random_range(1..=12), 1).unwrap();
                let midnight = zone.from_local_datetime(&month.and_hms_opt(0, 0, 0).unwrap()).earliest();
                midnight.map_or(now, |midnight| midnight.to_utc()) + TimeDelta::microseconds(rng.random_range(-1..=1))
            }
            3 => {
                let day = NaiveDate::from_ymd_opt(rng.random_range(YEARS), [3, 4, 10, 11][rng.random_range(0..4)], 1);
                Utc.from_utc_datetime(&day.unwrap().and_hms_opt(0, 0, 0).unwrap())
                    + TimeDelta::minutes(rng.random_range(0..31 * 24 * 60))
            }
            4 => now - TimeDelta::seconds(rng.random_range(1..400)),
            _ => now + TimeDelta::milliseconds(rng.random_range(1..10_000)),
        };
        let start = |year| Utc.with_ymd_and_hms(year, 1, 1, 0, 0, 0).unwrap();
        let fits = (start(*YEARS.start())..start(*YEARS.end() + 1)).contains(&wanted);
        self.set(if fits { wanted } else { start(2027) + TimeDelta::days(rng.random_range(0..700)) });
    }
}
