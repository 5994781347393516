//! Converts a row to an event. Errors list all wrong fields.

mod row_errors;

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono_tz::Tz;
use meterd_domain::event::{LABEL_VALUE_BYTES_MAX, LABELS_MAX};
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp, Value};
use serde::de::DeserializeOwned;

use super::cells::{
    formula_text, is_blank, is_missing, is_shortened_number, number_hint, text_of, without_formula_guard,
};
use super::fields::{Field, MEASURES};
use super::mapping::{FieldSource, Found, Mapping, find};
use super::notes::Notes;
use super::rows::Cells;
use crate::cli::decimal::{DecimalMark, NumberRules};
use crate::cli::time::{TimeRules, TimeValue, read_time, timestamp};
use crate::cli::{decimal, json};
use crate::proto::UsageEvent;

const ID_BYTES_MAX: usize = 128;
const EXTERNAL_ID_BYTES_MAX: usize = 256;

/// How to parse values.
#[derive(Clone, Debug, Default)]
pub struct EventRules {
    pub time: TimeRules,
    pub numbers: NumberRules,
    /// Units of a row with empty units. `None` rejects such a row, unless it has tokens or an amount.
    pub empty_units: Option<String>,
    /// Whether rows that look like sums of other rows are usage.
    pub total_rows: bool,
    /// Whether assumptions are errors instead of notes.
    pub strict: bool,
}

/// An error in a column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the column, or of the field if it has no column.
    pub column: String,
    /// The error and the fix.
    pub message: String,
}

/// The event of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadEvent {
    /// The event. It has a key only if a column has one. A time without a zone is interpreted as UTC.
    pub event: UsageEvent,
    /// The time, if it needs the client's time zone.
    pub local_time: Option<TimeValue>,
    /// Original texts of fields that were changed. Keys are made from them.
    originals: Vec<(Field, String)>,
    /// Assumptions and changes.
    pub notes: Notes,
}

impl ReadEvent {
    /// Returns the event with the original texts, before values were trimmed or filled in. Idempotency keys are made from it.
    /// So if a later version trims differently, a repeated row is a conflict and is not counted twice. There is one exception:
    /// keys belong to a client, so a row whose client id or key is trimmed differently is a new event.
    pub fn original(&self) -> Cow<'_, UsageEvent> {
        if self.originals.is_empty() {
            return Cow::Borrowed(&self.event);
        }
        let mut event = self.event.clone();
        for (field, text) in &self.originals {
            let target = match field {
                Field::Client => &mut event.client_id,
                Field::Service => &mut event.service,
                Field::Operation => &mut event.operation,
                Field::Model => &mut event.model,
                Field::Units => &mut event.units,
                Field::Subject => &mut event.subject,
                Field::ExternalId => &mut event.external_id,
                Field::ServiceTier => &mut event.service_tier,
                Field::ReportedCost => &mut event.reported_cost,
                _ => continue,
            };
            target.clone_from(text);
        }
        Cow::Owned(event)
    }
}

/// Converts a row to an event. Checks the bounds of the API, so that most errors are reported with their column. Only the server
/// can check services and the age of events.
pub fn event_of(cells: &Cells, mapping: &Mapping, rules: &EventRules) -> Result<ReadEvent, Vec<Fault>> {
    let mut row = RowFields {
        cells,
        mapping,
        rules,
        faults: Vec::new(),
        originals: Vec::new(),
        notes: Notes::default(),
        local_time: None,
    };
    if let Some(message) = row.totals_row_error() {
        return Err(vec![Fault { column: String::new(), message }]);
    }
    let mut event = UsageEvent {
        client_id: row.name(Field::Client),
        service: row.name(Field::Service),
        operation: row.name(Field::Operation),
        model: row.name(Field::Model),
        units: row.quantity(Field::Units),
        input_tokens: row.number(Field::InputTokens, decimal::tokens),
        output_tokens: row.number(Field::OutputTokens, decimal::tokens),
        cached_input_tokens: row.number(Field::CachedInputTokens, decimal::tokens),
        amount: row.quantity(Field::Amount),
        event_time: row.time(),
        idempotency_key: row.name(Field::Key),
        subject: row.name(Field::Subject),
        external_id: row.bounded(Field::ExternalId, EXTERNAL_ID_BYTES_MAX),
        metadata: row.metadata(),
        service_tier: row.name(Field::ServiceTier),
        measures: row.measures(),
        reported_cost: row.quantity(Field::ReportedCost),
        labels: row.labels(),
    };
    if row.text(Field::VoidTime).is_some() {
        row.fault(
            Field::VoidTime,
            "is set: the event was voided and counts in no sum, so it must not be recorded again",
        );
    }
    row.fill_units(&mut event);
    row.note_unused();
    row.check_ambiguous_keys();
    if row.faults.is_empty() && event.cached_input_tokens > event.input_tokens {
        row.fault(Field::CachedInputTokens, "must be at most input_tokens, because it is a part of them");
    }
    if let Some(message) = row.nested_list_error() {
        return Err(vec![Fault { column: String::new(), message }]);
    }
    match row.faults.is_empty() {
        true => Ok(ReadEvent { event, local_time: row.local_time, originals: row.originals, notes: row.notes }),
        false => Err(row.faults),
    }
}

struct RowFields<'a> {
    cells: &'a Cells,
    mapping: &'a Mapping,
    rules: &'a EventRules,
    faults: Vec<Fault>,
    originals: Vec<(Field, String)>,
    notes: Notes,
    local_time: Option<TimeValue>,
}

fn is_number_or_time(field: Field) -> bool {
    field == Field::Time || MEASURES.contains(&field)
}

impl RowFields<'_> {
    fn fault(&mut self, field: Field, message: impl Into<String>) {
        let column = self.mapping.source(field).column(field);
        self.faults.push(Fault { column, message: message.into() });
    }

    /// Returns the text of a field, without spaces around it. `None` if it is missing or wrong.
    fn text(&mut self, field: Field) -> Option<String> {
        let mapping = self.mapping;
        let text = find(mapping.source(field), self.cells).map(text_of).transpose();
        let text = text.unwrap_or_else(|message| {
            self.fault(field, message);
            None
        });
        text.filter(|text| !text.is_empty()).map(|text| self.clean(field, text)).filter(|text| !text.is_empty())
    }

    /// Removes spaces and a formula around a value. Leaves the values of an export unchanged.
    fn clean(&mut self, field: Field, text: String) -> String {
        if self.mapping.is_export {
            return text;
        }
        let trimmed = text.trim_matches(is_blank);
        let is_fixed = matches!(self.mapping.source(field), FieldSource::Fixed(_));
        let cleaned = if !is_fixed && !trimmed.is_empty() && is_missing(trimmed, is_number_or_time(field)) {
            self.notes.null_cells += 1;
            ""
        } else if let Some(inner) = formula_text(trimmed).filter(|_| matches!(self.cells, Cells::Csv(_))) {
            self.notes.formula_cells += 1;
            inner
        } else {
            let is_trimmed = u64::from(trimmed.len() < text.len());
            self.notes.trimmed_cells += is_trimmed;
            self.notes.trimmed_ids += is_trimmed * u64::from(matches!(field, Field::Client | Field::Key));
            trimmed
        };
        if cleaned.len() == text.len() {
            return text;
        }
        let cleaned = cleaned.to_owned();
        // Keys use the parsed value of numbers, so their original text is not needed.
        if !MEASURES.contains(&field) {
            self.originals.push((field, text));
        }
        cleaned
    }

    fn number<T: Default>(&mut self, field: Field, parse: fn(&str) -> Result<T, String>) -> T {
        // JSON numbers always have a decimal point.
        let is_json =
            matches!(find(self.mapping.source(field), self.cells), Some(Found::Json(json)) if !json.starts_with('"'));
        let rules = if is_json { NumberRules::default() } else { self.rules.numbers };
        let read = |text: String| -> Result<T, String> {
            let number = decimal::normalized(&text, rules)?;
            parse(&number).map_err(|message| message + number_hint(&text))
        };
        let parsed = self.text(field).map(read).transpose();
        let parsed = parsed.unwrap_or_else(|message| {
            self.fault(field, message);
            None
        });
        parsed.unwrap_or_default()
    }

    fn quantity(&mut self, field: Field) -> String {
        let (quantity, was_rounded) = self.number(field, decimal::rounded_quantity);
        self.notes.rounded_quantities += u64::from(was_rounded);
        quantity
    }

    fn name(&mut self, field: Field) -> String {
        self.bounded(field, ID_BYTES_MAX)
    }

    fn bounded(&mut self, field: Field, bytes_max: usize) -> String {
        let faults_before = self.faults.len();
        let text = self.text(field).unwrap_or_default();
        let text = match self.mapping.is_export {
            true => without_formula_guard(&text).to_owned(),
            false => text,
        };
        if text.is_empty() && field.is_required() && self.faults.len() == faults_before {
            self.missing(field);
        } else if !self.mapping.is_export && is_shortened_number(&text) {
            self.fault(
                field,
                format!("is a number that a spreadsheet has shortened, got {text:?}: format the column as text and save the file again"),
            );
        } else if !self.mapping.is_export && text.len() > 2 && text.starts_with('\'') && text.ends_with('\'') {
            self.fault(field, format!("is in single quotes, got {text:?}: remove them, or write double quotes"));
        } else if text.len() > bytes_max {
            self.fault(field, format!("must have at most {bytes_max} bytes, got {}", text.len()));
        } else if text.chars().any(char::is_control) {
            self.fault(field, "must not contain control characters");
        }
        text
    }

    fn time(&mut self) -> Option<Timestamp> {
        let faults_before = self.faults.len();
        match self.text(Field::Time) {
            Some(text) if text == "now" => None,
            Some(text) => self.timestamp(&text).map_err(|message| self.fault(Field::Time, message)).ok(),
            None if self.faults.len() > faults_before => None,
            None => {
                self.missing(Field::Time);
                None
            }
        }
    }

    /// Parses a time. A time without a zone is in the zone of the flag, or gets the zone of the client later.
    fn timestamp(&mut self, text: &str) -> Result<Timestamp, String> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b',');
        let text = match self.rules.numbers.mark {
            Some(DecimalMark::Comma) if is_number => text.replace(',', "."),
            _ => text.to_owned(),
        };
        let rules = &self.rules.time;
        let read = read_time(&text, &rules.formats)?;
        self.notes.serial_times += u64::from(read.is_serial);
        if read.value.needs_zone() {
            self.notes.local_times += 1;
            if rules.zone.is_none() {
                self.local_time = Some(read.value);
            }
        }
        timestamp(read.value.in_zone(rules.zone.unwrap_or(Tz::UTC))?)
    }

    fn metadata(&mut self) -> Option<Struct> {
        let mut metadata = self.own_metadata().unwrap_or_default();
        for (source, name) in &self.mapping.metadata {
            let value = match find(source, self.cells) {
                None => continue,
                Some(Found::Text(text)) => Ok(Value { kind: Some(Kind::StringValue(text.to_owned())) }),
                Some(Found::Json(text)) => {
                    serde_json::from_str(&text).map_err(|error| error.to_string()).and_then(json::value)
                }
            };
            match value {
                Ok(value) => drop(metadata.fields.insert(name.clone(), value)),
                Err(message) => self.faults.push(Fault { column: name.clone(), message }),
            }
        }
        // A rough check, because the encoded form is about as long as JSON. The server checks exactly.
        if metadata.encoded_len() > 2 * json::METADATA_BYTES_MAX {
            self.fault(Field::Metadata, "must be at most 8 KiB as JSON");
        }
        Some(metadata).filter(|metadata| !metadata.fields.is_empty())
    }

    fn measures(&mut self) -> BTreeMap<String, String> {
        let mut measures = BTreeMap::new();
        let own = self.own_measures().unwrap_or_default();
        for (name, json) in &own {
            self.add_measure(&mut measures, name, Found::Json(json.get().into()));
        }
        let mapping = self.mapping;
        for (source, name) in &mapping.measures {
            if let Some(found) = find(source, self.cells) {
                self.add_measure(&mut measures, name, found);
            }
        }
        measures
    }

    fn own_measures(&mut self) -> Option<json::RawObject> {
        self.object(Field::Measures, r#"must be a JSON object of numbers by name, such as {"pages": 3}"#)
    }

    /// Reads the JSON object of a field.
    fn object<T: DeserializeOwned>(&mut self, field: Field, expected: &str) -> Option<T> {
        let text = match find(self.mapping.source(field), self.cells)? {
            Found::Text(text) if text.trim_matches(is_blank).is_empty() => return None,
            Found::Text(text) => Cow::Borrowed(text),
            Found::Json(text) => text,
        };
        serde_json::from_str(&text).map_err(|_| self.fault(field, expected)).ok()
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let expected = r#"must be a JSON object of texts by name, such as {"project": "apollo"}"#;
        let mut labels: BTreeMap<String, String> = self.object(Field::Labels, expected).unwrap_or_default();
        let mapping = self.mapping;
        for (source, name) in &mapping.labels {
            match find(source, self.cells).map(text_of) {
                None => {}
                Some(Ok(text)) => drop(labels.insert(name.clone(), text.trim_matches(is_blank).to_owned())),
                Some(Err(message)) => self.faults.push(Fault { column: format!("labels[{name:?}]"), message }),
            }
        }
        labels.retain(|_, value| !value.is_empty());
        if labels.len() > LABELS_MAX {
            self.fault(Field::Labels, format!("must be at most {LABELS_MAX}, has {}", labels.len()));
        }
        for (name, value) in labels.iter().filter(|(_, value)| value.len() > LABEL_VALUE_BYTES_MAX) {
            let message = format!("must be at most {LABEL_VALUE_BYTES_MAX} bytes, has {}", value.len());
            self.faults.push(Fault { column: format!("labels[{name:?}]"), message });
        }
        labels
    }

    fn add_measure(&mut self, measures: &mut BTreeMap<String, String>, name: &str, found: Found<'_>) {
        let is_json = matches!(&found, Found::Json(json) if !json.starts_with('"'));
        let rules = if is_json { NumberRules::default() } else { self.rules.numbers };
        let read = text_of(found).and_then(|text| match text.trim_matches(is_blank) {
            text if is_missing(text, true) || text.is_empty() => Ok(None),
            text => decimal::rounded_quantity(&decimal::normalized(text, rules)?)
                .map_err(|message| message + number_hint(text))
                .map(Some),
        });
        match read {
            Ok(None) => {}
            Ok(Some((quantity, was_rounded))) => {
                self.notes.rounded_quantities += u64::from(was_rounded);
                measures.insert(name.to_owned(), quantity);
            }
            Err(message) => self.faults.push(Fault { column: format!("measures[{name:?}]"), message }),
        }
    }

    fn own_metadata(&mut self) -> Option<Struct> {
        let parsed = match find(self.mapping.source(Field::Metadata), self.cells)? {
            Found::Text(text) if self.mapping.is_export => json::metadata(without_formula_guard(text)),
            Found::Text(text) => json::metadata(text),
            Found::Json(text) => json::metadata(&text),
        };
        parsed.map_err(|message| self.fault(Field::Metadata, message)).ok()
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
