//! The field checks of the engine, and those that need types of the wire.

use chrono::{DateTime, Utc};
use meterd_engine::Refusal;
use meterd_engine::fields::{self, UnixTime};
pub use meterd_engine::fields::{FILTER_VALUES_MAX, Path};
pub use meterd_engine::refusal::shown;
use prost_types::Timestamp;
use std::ops::{Deref, DerefMut};

/// [`fields::Fields`] with checks of timestamps.
#[derive(Debug, Default)]
pub struct Fields(fields::Fields);

impl Fields {
    /// Checks the fields of the message at this path.
    pub fn of(path: Path) -> Self {
        Self(fields::Fields::of(path))
    }

    /// See [`fields::Fields::finish`].
    pub fn finish(self) -> Result<(), Refusal> {
        self.0.finish()
    }

    /// See [`fields::Fields::time`].
    pub fn time(&mut self, field: &str, value: &Timestamp) -> Option<DateTime<Utc>> {
        self.0.time(field, unix_time(value))
    }

    /// See [`fields::Fields::times`].
    pub fn times(
        &mut self,
        start: Option<&Timestamp>,
        end: Option<&Timestamp>,
    ) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        self.0.times(start.map(unix_time), end.map(unix_time))
    }
}

impl Deref for Fields {
    type Target = fields::Fields;

    fn deref(&self) -> &fields::Fields {
        &self.0
    }
}

impl DerefMut for Fields {
    fn deref_mut(&mut self) -> &mut fields::Fields {
        &mut self.0
    }
}

/// Returns a timestamp as the engine takes it.
pub fn unix_time(time: &Timestamp) -> UnixTime {
    UnixTime { seconds: time.seconds, nanos: time.nanos }
}
