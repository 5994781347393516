//! Checks the fields of a request of any protocol. All wrong fields are collected and reported together.

use crate::refusal::{Reason, Refusal, Violation, shown};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::{Decimal, DecimalError, Rate};
use meterd_domain::event::{ID_BYTES_MAX, LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, Labels};
use meterd_domain::identifier;
use meterd_domain::period::{Month, parse_day};

/// Last second of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;
/// Maximum number of values of a filter.
pub const FILTER_VALUES_MAX: usize = 100;

/// The message that the checked fields belong to.
#[derive(Clone, Copy, Debug, Default)]
pub enum Path {
    /// The request itself.
    #[default]
    Request,
    /// Such as "policy".
    Named(&'static str),
    /// Such as "events[3]".
    Element(&'static str, usize),
    /// Such as "corrections[3].corrected".
    ElementField(&'static str, usize, &'static str),
}

impl Path {
    fn with(self, field: &str) -> String {
        match self {
            Self::Request => field.into(),
            Self::Named(message) => format!("{message}.{field}"),
            Self::Element(messages, number) => format!("{messages}[{number}].{field}"),
            Self::ElementField(messages, number, message) => format!("{messages}[{number}].{message}.{field}"),
        }
    }
}

/// A time as protocols send it: seconds since 1970 and nanoseconds. It may be out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixTime {
    pub seconds: i64,
    pub nanos: i32,
}

impl From<DateTime<Utc>> for UnixTime {
    fn from(time: DateTime<Utc>) -> Self {
        Self { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }
    }
}

/// Returns whether a text has a control character. There is a fast path for ASCII, because most texts are ASCII.
fn has_control(text: &str) -> bool {
    match text.is_ascii() {
        true => text.bytes().fold(false, |any, byte| any | byte.is_ascii_control()),
        false => text.chars().any(char::is_control),
    }
}

/// Collects the wrong fields of a request.
#[derive(Debug, Default)]
pub struct Fields {
    path: Path,
    wrong: Vec<(Reason, Violation)>,
    metadata: Vec<(&'static str, String)>,
}

impl Fields {
    /// Checks the fields of the message at this path.
    pub fn of(path: Path) -> Self {
        Self { path, ..Self::default() }
    }

    /// Adds a wrong field.
    pub fn wrong(&mut self, field: impl AsRef<str>, description: impl Into<String>) {
        self.wrong_because(Reason::InvalidField, field, description);
    }

    /// Adds a field that is wrong for another reason than [`Reason::InvalidField`].
    pub fn wrong_because(&mut self, reason: Reason, field: impl AsRef<str>, description: impl Into<String>) {
        self.wrong.push((reason, Violation::new(self.path.with(field.as_ref()), description)));
    }

    /// Adds a wrong field of the request itself, without the path of the message.
    pub fn wrong_outside(&mut self, field: &str, description: impl Into<String>) {
        self.wrong.push((Reason::InvalidField, Violation::new(field, description)));
    }

    /// Returns whether no field is wrong so far.
    pub fn is_fine(&self) -> bool {
        self.wrong.is_empty()
    }

    /// Adds the wrong fields of another message of the same request.
    pub fn and(&mut self, other: Self) {
        self.wrong.extend(other.wrong);
        self.metadata.extend(other.metadata);
    }

    /// Returns one refusal with all violations, if there are any. Its reason is the reason of all of them, or
    /// [`Reason::InvalidField`] if they differ.
    pub fn finish(self) -> Result<(), Refusal> {
        let Some((first, _)) = self.wrong.first() else { return Ok(()) };
        let shared = self.wrong.iter().all(|(reason, _)| reason == first);
        let reason = if shared { *first } else { Reason::InvalidField };
        let mut error = Refusal::invalid(reason, self.wrong.into_iter().map(|(_, violation)| violation).collect());
        error.metadata = self.metadata;
        Err(error)
    }

    /// Checks a text: at most `bytes_max` bytes, no control characters.
    pub fn text(&mut self, field: &str, value: &str, bytes_max: usize) {
        if value.len() > bytes_max {
            self.wrong(field, format!("must be at most {bytes_max} bytes, has {}", value.len()));
        } else if has_control(value) {
            self.wrong(field, "must not contain control characters");
        }
    }

    /// Checks a text that must not be empty.
    pub fn required(&mut self, field: &str, value: &str, bytes_max: usize) {
        if value.is_empty() {
            self.wrong(field, "is required");
        } else {
            self.text(field, value, bytes_max);
        }
    }

    /// Checks a name in a request that writes it, by the rules of [`identifier`]. The name may be empty.
    ///
    /// Names in requests that read are checked with [`Self::text`], so that names from before these rules can still be read.
    pub fn identifier(&mut self, field: &str, value: &str, bytes_max: usize) {
        if value.len() > bytes_max {
            self.wrong(field, format!("must be at most {bytes_max} bytes, has {}", value.len()));
        } else if let Err(error) = identifier::check(value) {
            self.wrong(field, format!("{error}, got {}", shown(value)));
        }
    }

    /// Checks a name that must not be empty.
    pub fn required_identifier(&mut self, field: &str, value: &str, bytes_max: usize) {
        if value.is_empty() {
            self.wrong(field, "is required");
        } else {
            self.identifier(field, value, bytes_max);
        }
    }

    /// Checks the number of values.
    pub fn at_most(&mut self, field: &str, count: usize, max: usize) {
        if count > max {
            self.wrong(field, format!("must have at most {max} values, has {count}"));
        }
    }

    /// Checks the values of a filter.
    pub fn filter(&mut self, field: &str, values: &[String]) {
        self.at_most(field, values.len(), FILTER_VALUES_MAX);
        for (index, value) in values.iter().take(FILTER_VALUES_MAX).enumerate() {
            self.text(&format!("{field}[{index}]"), value, ID_BYTES_MAX);
        }
    }

    /// Checks labels, of an event or of a filter.
    pub fn labels(&mut self, field: &str, labels: &Labels) {
        if labels.len() > LABELS_MAX {
            return self.wrong(field, format!("must be at most {LABELS_MAX}, has {}", labels.len()));
        }
        for (name, value) in labels {
            self.label_name(field, name);
            let of = format!("{field}[{name:?}]");
            match value.is_empty() {
                true => self.wrong(of, "must not be empty: leave the label out"),
                false => self.identifier(&of, value, LABEL_VALUE_BYTES_MAX),
            }
        }
    }

    /// Checks the name of a label.
    pub fn label_name(&mut self, field: &str, name: &str) {
        if !(1..=LABEL_NAME_BYTES_MAX).contains(&name.len()) {
            let description = format!(
                "must have names of 1 to {LABEL_NAME_BYTES_MAX} bytes, has {} with {}",
                shown(name),
                name.len()
            );
            self.wrong(field, description);
        } else if let Err(error) = identifier::check(name) {
            self.wrong(field, format!("has a name that is wrong: it {error}, got {}", shown(name)));
        }
    }

    /// Parses an amount without rounding it.
    pub fn decimal(&mut self, field: &str, value: &str) -> Decimal {
        self.number(field, value, Decimal::parse(value)).unwrap_or_default()
    }

    /// Parses an amount that must be more than 0, without rounding it.
    pub fn positive(&mut self, field: &str, value: &str) -> Decimal {
        let parsed = Decimal::parse(value);
        if matches!(parsed, Ok(Decimal::ZERO) | Err(DecimalError::Negative)) {
            self.wrong(field, "must be more than 0");
            return Decimal::ZERO;
        }
        self.number(field, value, parsed).unwrap_or_default()
    }

    /// Parses a quantity or amount of an event, rounded half to even to 12 decimals. Also returns whether rounding changed it.
    pub fn quantity(&mut self, field: &str, value: &str) -> (Decimal, bool) {
        self.number(field, value, Decimal::parse_rounded(value)).unwrap_or_default()
    }

    /// Parses a rate.
    pub fn rate(&mut self, field: &str, value: &str) -> Option<Rate> {
        self.number(field, value, Rate::parse(value))
    }

    fn number<T>(&mut self, field: &str, value: &str, parsed: Result<T, DecimalError>) -> Option<T> {
        parsed.map_err(|error| self.wrong(field, format!("{error}, got {}", shown(value)))).ok()
    }

    /// Checks a count: from zero to `max`.
    pub fn count(&mut self, field: &str, value: i64, max: i64) {
        if !(0..=max).contains(&value) {
            self.wrong(field, format!("must be from 0 to {max}, got {value}"));
        }
    }

    /// Parses a time from 1970 to 9999, truncated to microseconds. Returns `None` if it is wrong.
    pub fn time(&mut self, field: &str, value: UnixTime) -> Option<DateTime<Utc>> {
        let wrong_before = self.wrong.len();
        if !(0..=SECONDS_MAX).contains(&value.seconds) {
            self.wrong(field, "must be in the years 1970 to 9999");
        }
        if !(0..1_000_000_000).contains(&value.nanos) {
            self.wrong(field, format!("nanos must be from 0 to 999999999, got {}", value.nanos));
        }
        if self.wrong.len() > wrong_before {
            return None;
        }
        DateTime::from_timestamp(value.seconds, value.nanos as u32 / 1_000 * 1_000)
    }

    /// Parses a day.
    pub fn day(&mut self, field: &str, value: &str) -> NaiveDate {
        let day = parse_day(value);
        if day.is_none() {
            self.wrong(field, if value.is_empty() { "is required" } else { "must be a day such as 2026-11-21" });
        }
        day.unwrap_or_default()
    }

    /// Parses a range of at most `days_max` days, both ends included.
    pub fn days(&mut self, start: &str, end: &str, days_max: i64) -> (NaiveDate, NaiveDate) {
        let wrong_before = self.wrong.len();
        let (first, last) = (self.day("start_date", start), self.day("end_date", end));
        if self.wrong.len() > wrong_before {
            return (first, last);
        }
        let days = (last - first).num_days() + 1;
        if days < 1 {
            self.wrong("end_date", "must not be before start_date");
        } else if days > days_max {
            let description = format!("must be at most {days_max} days from start_date, is {days}");
            self.wrong_because(Reason::RangeTooLong, "end_date", description);
            self.metadata.push(("max_days", days_max.to_string()));
        }
        (first, last)
    }

    /// Parses two optional days, the first not after the second.
    pub fn optional_days(&mut self, start: &str, end: &str) -> (Option<NaiveDate>, Option<NaiveDate>) {
        let first = (!start.is_empty()).then(|| self.day("start_date", start));
        let last = (!end.is_empty()).then(|| self.day("end_date", end));
        if let (Some(first), Some(last)) = (first, last)
            && self.is_fine()
            && first > last
        {
            self.wrong("end_date", "must not be before start_date");
        }
        (first, last)
    }

    /// Parses a month. Returns `None` if it is wrong.
    pub fn month(&mut self, field: &str, value: &str) -> Option<Month> {
        let month = Month::parse(value);
        if month.is_none() {
            self.wrong(field, "must be a month such as 2026-11");
        }
        month
    }

    /// Parses two optional times, the first not after the second.
    pub fn times(
        &mut self,
        start: Option<UnixTime>,
        end: Option<UnixTime>,
    ) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        let start = start.and_then(|time| self.time("start_time", time));
        let end = end.and_then(|time| self.time("end_time", time));
        if let (Some(start), Some(end)) = (start, end)
            && start > end
        {
            self.wrong("end_time", "must not be before start_time");
        }
        (start, end)
    }

    /// Checks a page size and returns it, or the default if it is zero.
    pub fn page_size(&mut self, value: i32, default: i64, max: i64) -> i64 {
        if value < 0 || i64::from(value) > max {
            self.wrong("page_size", format!("must be from 1 to {max}, or 0 for {default}; got {value}"));
        }
        if value == 0 { default } else { i64::from(value) }
    }
}
