//! The time of day, passed in wherever it matters.

use chrono::{DateTime, Timelike, Utc};
use std::sync::{Arc, Mutex};

/// Tells the time: the system's, or one that a test sets.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<Mutex<DateTime<Utc>>>>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until it is set; clones are set together.
    pub fn fixed(time: DateTime<Utc>) -> Self {
        Self(Some(Arc::new(Mutex::new(time))))
    }

    /// Sets a fixed clock.
    ///
    /// # Panics
    /// If it is the system's.
    pub fn set(&self, time: DateTime<Utc>) {
        let fixed = self.0.as_ref().expect("the system's clock is not set here");
        *fixed.lock().expect("clock is not poisoned") = time;
    }

    /// Now, to the microsecond.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    pub fn now(&self) -> DateTime<Utc> {
        let now = match &self.0 {
            None => Utc::now(),
            Some(fixed) => *fixed.lock().expect("clock is not poisoned"),
        };
        now.with_nanosecond(now.nanosecond() / 1_000 * 1_000).expect("whole microseconds are valid nanoseconds")
    }
}
