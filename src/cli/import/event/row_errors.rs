//! Errors of rows that are rejected as a whole or because a value is missing, with suggestions.

use super::{Fault, RowFields};
use crate::cli::import::cells::{is_blank, is_missing, text_of};
use crate::cli::import::fields::{Field, MEASURES};
use crate::cli::import::mapping::{FieldSource, exists, find};
use crate::cli::import::names::{is_total, similar_field};
use crate::cli::import::objects::list_key;
use crate::cli::import::rows::Cells;
use crate::proto::UsageEvent;

impl RowFields<'_> {
    /// The error for a row with the sums of other rows, such as the last line of a report.
    pub(super) fn totals_row_error(&self) -> Option<String> {
        let client = match self.mapping.source(Field::Client) {
            FieldSource::Fixed(_) => None,
            source => find(source, self.cells).and_then(|found| text_of(found).ok()),
        };
        let first = match self.cells {
            Cells::Csv(cells) => cells.iter().map(|cell| cell.trim()).find(|cell| !cell.is_empty()),
            Cells::Json(_) => None,
        };
        let label = client.as_deref().into_iter().chain(first).find(|label| is_total(label))?;
        (!self.rules.total_rows && !self.mapping.is_export).then(|| {
            format!(
                "the row has the label {label:?} and is probably a sum of other rows; if it is usage, add --total-rows"
            )
        })
    }

    /// The error for an object that contains all events in a list.
    pub(super) fn nested_list_error(&self) -> Option<String> {
        let Cells::Json(object) = self.cells else { return None };
        let is_absent = |field: &Field| {
            matches!(self.mapping.source(*field), FieldSource::Path(_))
                && !exists(self.mapping.source(*field), self.cells)
        };
        let is_event = Field::ALL.iter().filter(|field| field.is_required()).any(|field| !is_absent(field));
        let key = list_key(object).filter(|_| !self.faults.is_empty() && !is_event)?;
        Some(format!(
            "the events are in the list {key:?} of the row: convert each event to a row, for example with \
             jq -c 'del(.{key:?}) + .{key:?}[]' FILE | meterd import - --format ndjson"
        ))
    }

    /// Reports a missing required field, with a suggestion.
    pub(super) fn missing(&mut self, field: Field) {
        let text = find(self.mapping.source(field), self.cells).and_then(|found| text_of(found).ok());
        let empty = match text.as_deref().map(|text| text.trim_matches(is_blank)) {
            Some(text) if !text.is_empty() => format!("is required, but {text:?} means empty"),
            _ => "is required, but empty".to_owned(),
        };
        let Cells::Json(object) = self.cells else { return self.fault(field, empty) };
        if exists(self.mapping.source(field), self.cells) {
            return self.fault(field, empty);
        }
        let keys = self.mapping.unused_keys(object);
        let similar = keys.iter().find(|key| similar_field(key, &[field]).is_some());
        let flag = field.flag();
        self.fault(
            field,
            match similar {
                Some(key) => format!("is required, but missing; did you mean {key}? Then use --{flag}-column {key:?}"),
                None => format!("is required, but missing: add --{flag}-column KEY or --{flag} VALUE"),
            },
        );
    }

    /// Fills in the units of a row without units, tokens and amount, or reports an error.
    pub(super) fn fill_units(&mut self, event: &mut UsageEvent) {
        let has_measure =
            |field: &Field| find(self.mapping.source(*field), self.cells).and_then(|found| text_of(found).ok());
        let is_value = |text: String| !is_missing(text.trim_matches(is_blank), true);
        let has_value = !event.measures.is_empty() || MEASURES.iter().filter_map(has_measure).any(is_value);
        if has_value || !self.faults.is_empty() {
            return;
        }
        match (exists(self.mapping.source(Field::Units), self.cells), &self.rules.empty_units) {
            (true, Some(units)) => {
                event.units.clone_from(units);
                self.originals.push((Field::Units, String::new()));
                self.notes.rows_with_filled_units += 1;
            }
            (true, None) => self.fault(
                Field::Units,
                "is empty, and the row has no tokens or amount: write the number of units, or add --empty-units 1 to count \
                 each such row as one unit",
            ),
            (false, _) if self.rules.strict => {
                self.fault(
                    Field::Units,
                    "is missing, and the row has no tokens or amount: add --units 1 to count each row as one unit",
                );
            }
            (false, _) => self.notes.rows_counted_as_one += 1,
        }
    }

    pub(super) fn note_unused(&mut self) {
        let Cells::Json(object) = self.cells else { return };
        for key in self.mapping.unused_keys(object) {
            match self.rules.strict {
                true => {
                    let message = format!(
                        "is not used{}; add --ignore-column if the key is unused on purpose",
                        self.mapping.unused_hint(&key)
                    );
                    self.faults.push(Fault { column: key, message });
                }
                false => self.notes.add_unused(key, 1),
            }
        }
    }

    /// Reports fields that can come from two keys.
    pub(super) fn check_ambiguous_keys(&mut self) {
        let Cells::Json(object) = self.cells else { return };
        for field in Field::ALL {
            if let Some([first, second]) = self.mapping.ambiguous_keys(field, object) {
                let flag = field.flag();
                self.fault(
                    field,
                    format!("can come from {first:?} or {second:?}: add --{flag}-column with one of them"),
                );
            }
        }
    }
}
