//! The rule about clients that no longer send events.

use super::unpriced::whole;
use super::{AlertType, Finding, Severity};
use crate::period::{day_of, widest_range};
use crate::policy::Policy;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;

/// When a client has sent its last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilenceFacts {
    /// The day of the last event that counts, as it was recorded.
    pub recorded_day: NaiveDate,
    /// Time of the last event. `None` if the events of this day were removed after their retention.
    pub last_event_time: Option<DateTime<Utc>>,
    pub now: DateTime<Utc>,
    /// The time zone of the client.
    pub zone: Tz,
}

impl SilenceFacts {
    /// Returns the day of the last event in the client's time zone: the day on which the silence began.
    pub fn day(&self) -> NaiveDate {
        self.last_event_time.map_or(self.recorded_day, |time| day_of(time, self.zone))
    }

    /// Returns the number of whole hours since the last event. If the time is not known, the silence may be longer.
    pub fn hours(&self) -> i64 {
        let since = self.last_event_time.unwrap_or_else(|| widest_range(self.recorded_day).1);
        (self.now - since).num_hours()
    }

    /// Returns the finding if the client has been silent for as long as the policy says.
    pub fn silence(&self, policy: &Policy) -> Option<Finding> {
        let hours = i64::from(policy.silence_hours.max(1));
        (policy.silence_enabled && self.hours() >= hours).then(|| Finding {
            kind: AlertType::Silence,
            severity: Severity::Warning,
            service: String::new(),
            period: self.day(),
            current: whole(self.hours()),
            previous: None,
            threshold: whole(hours),
            percent: None,
            projected: None,
            limit: None,
        })
    }

    /// Returns whether the silence of an open alert is over: the client is not silent, the rule is off, or a later silence has
    /// begun on another day.
    pub fn ends(&self, policy: &Policy, alert: &Finding) -> bool {
        self.silence(policy).is_none() || self.day() > alert.period
    }

    /// Returns whether [`Self::silence`] may have changed since a check that left an alert of the day `open` open, or none. Uses
    /// neither `last_event_time` nor `zone`.
    pub fn may_change(&self, policy: &Policy, open: Option<NaiveDate>) -> bool {
        let (earliest, latest) = widest_range(self.recorded_day);
        let hours = TimeDelta::hours(policy.silence_hours.max(1).into());
        match open {
            None => policy.silence_enabled && self.now - earliest >= hours,
            Some(day) => !policy.silence_enabled || self.now - latest < hours || self.recorded_day > day,
        }
    }
}
