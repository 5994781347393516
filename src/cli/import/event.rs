//! A row into an event, with every wrong field at once.

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp, Value};

use super::fields::Field;
use super::mapping::{Found, Mapping, find};
use super::rows::Cells;
use crate::cli::time::{TimeRules, parse_time};
use crate::cli::{decimal, json};
use crate::proto::UsageEvent;

const ID_BYTES_MAX: usize = 128;
const EXTERNAL_ID_BYTES_MAX: usize = 256;

/// What is wrong with a column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the column, or of the field where there is no column.
    pub column: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Makes the event that a row says, without a key unless a column has one. The contract's bounds are checked here, so
/// that a dry run finds what the server would refuse, except what only the server knows (services, how old is too old).
pub fn event_of(cells: &Cells, mapping: &Mapping, rules: &TimeRules) -> Result<UsageEvent, Vec<Fault>> {
    let mut row = RowFields { cells, mapping, faults: Vec::new() };
    let event = UsageEvent {
        client_id: row.name(Field::Client),
        service: row.name(Field::Service),
        operation: row.name(Field::Operation),
        model: row.name(Field::Model),
        units: row.parsed(Field::Units, decimal::quantity),
        input_tokens: row.parsed(Field::InputTokens, decimal::tokens),
        output_tokens: row.parsed(Field::OutputTokens, decimal::tokens),
        cached_input_tokens: row.parsed(Field::CachedInputTokens, decimal::tokens),
        amount: row.parsed(Field::Amount, decimal::quantity),
        event_time: row.time(rules),
        idempotency_key: row.name(Field::Key),
        subject: row.name(Field::Subject),
        external_id: row.bounded(Field::ExternalId, EXTERNAL_ID_BYTES_MAX),
        metadata: row.metadata(),
    };
    if row.faults.is_empty() && event.cached_input_tokens > event.input_tokens {
        row.fault(Field::CachedInputTokens, "must be a part of input_tokens, but is more");
    }
    match row.faults.is_empty() {
        true => Ok(event),
        false => Err(row.faults),
    }
}

struct RowFields<'a> {
    cells: &'a Cells,
    mapping: &'a Mapping,
    faults: Vec<Fault>,
}

impl RowFields<'_> {
    fn fault(&mut self, field: Field, message: impl Into<String>) {
        let column = self.mapping.place(field).column(field);
        self.faults.push(Fault { column, message: message.into() });
    }

    /// The text of a field. None: absent or wrong.
    fn text(&mut self, field: Field) -> Option<String> {
        let mapping = self.mapping;
        let text = find(mapping.place(field), self.cells).map(text_of).transpose();
        let text = text.unwrap_or_else(|message| {
            self.fault(field, message);
            None
        });
        text.filter(|text| !text.is_empty())
    }

    fn parsed<T: Default>(&mut self, field: Field, parse: fn(&str) -> Result<T, String>) -> T {
        let parsed = self.text(field).map(|text| parse(&text)).transpose();
        let parsed = parsed.unwrap_or_else(|message| {
            self.fault(field, message);
            None
        });
        parsed.unwrap_or_default()
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
            self.fault(field, "is required, and empty here");
        } else if text.len() > bytes_max {
            self.fault(field, format!("must be at most {bytes_max} bytes, is {}", text.len()));
        } else if text.chars().any(char::is_control) {
            self.fault(field, "must not contain control characters");
        }
        text
    }

    fn time(&mut self, rules: &TimeRules) -> Option<Timestamp> {
        let faults_before = self.faults.len();
        match self.text(Field::Time) {
            Some(text) if text == "now" => None,
            Some(text) => parse_time(&text, rules).map_err(|message| self.fault(Field::Time, message)).ok(),
            None if self.faults.len() > faults_before => None,
            None => {
                self.fault(Field::Time, "is required, and empty here");
                None
            }
        }
    }

    fn metadata(&mut self) -> Option<Struct> {
        let mut metadata = self.own_metadata().unwrap_or_default();
        for (place, name) in &self.mapping.metadata {
            let value = match find(place, self.cells) {
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
        // The encoded form is near enough to JSON's length to refuse what cannot pass; the server has the last word.
        if metadata.encoded_len() > 2 * json::METADATA_BYTES_MAX {
            self.fault(Field::Metadata, "must be at most 8 KiB as JSON");
        }
        Some(metadata).filter(|metadata| !metadata.fields.is_empty())
    }

    fn own_metadata(&mut self) -> Option<Struct> {
        let parsed = match find(self.mapping.place(Field::Metadata), self.cells)? {
            Found::Text(text) if self.mapping.is_export => json::metadata(without_formula_guard(text)),
            Found::Text(text) => json::metadata(text),
            Found::Json(text) => json::metadata(&text),
        };
        parsed.map_err(|message| self.fault(Field::Metadata, message)).ok()
    }
}

fn text_of(found: Found<'_>) -> Result<String, String> {
    match found {
        Found::Text(text) => Ok(text.to_owned()),
        Found::Json(json) if json.starts_with('"') => serde_json::from_str(&json).map_err(|error| error.to_string()),
        Found::Json(json) if json.starts_with(['{', '[']) => {
            Err("must be a text or a number; a dotted path reaches into an object".to_owned())
        }
        Found::Json(json) => Ok(json.into_owned()),
    }
}

/// Takes off the ' that an export puts before text that a spreadsheet would take for a formula.
fn without_formula_guard(text: &str) -> &str {
    match text.strip_prefix('\'') {
        Some(rest) if rest.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']) => rest,
        _ => text,
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
