//! The clock. It is passed to all code that needs the current time.

use chrono::{DateTime, Timelike, Utc};
use std::sync::{Arc, Mutex};

/// The clock of the system, or a fixed clock that a test sets.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<Mutex<DateTime<Utc>>>>);

impl Clock {
    /// Returns the clock of the system.
    pub fn system() -> Self {
        Self(None)
    }

    /// Returns a clock that always returns this time until it is set. Clones share the time.
    pub fn fixed(time: DateTime<Utc>) -> Self {
        Self(Some(Arc::new(Mutex::new(time))))
    }

    /// Sets a fixed clock.
    ///
    /// # Panics
    /// If it is the clock of the system.
    pub fn set(&self, time: DateTime<Utc>) {
        let fixed = self.0.as_ref().expect("the clock of the system cannot be set");
        *fixed.lock().expect("clock is not poisoned") = time;
    }

    /// Returns the current time, truncated to microseconds.
    #[expect(clippy::disallowed_methods, reason = "only this function reads the clock of the system")]
    pub fn now(&self) -> DateTime<Utc> {
        let now = match &self.0 {
            None => Utc::now(),
            Some(fixed) => *fixed.lock().expect("clock is not poisoned"),
        };
        now.with_nanosecond(now.nanosecond() / 1_000 * 1_000).expect("whole microseconds are valid nanoseconds")
    }
}
