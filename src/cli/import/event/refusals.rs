//! Errors of rows that are rejected as a whole or because a value is missing, with suggestions.

use super::{Fault, RowFields};
use crate::cli::import::cells::{is_blank, is_missing, text_of};
use crate::cli::import::fields::{Field, MEASURES};
use crate::cli::import::mapping::{Place, find, is_there};
use crate::cli::import::names::{is_total, meant_by};
use crate::cli::import::objects::list_key;
use crate::cli::import::rows::Cells;
use crate::proto::UsageEvent;

impl RowFields<'_> {
    /// Why the row is refused as a sum of other rows, such as the last line of a report.
    pub(super) fn sum_of_others(&self) -> Option<String> {
        let client = match self.mapping.place(Field::Client) {
            Place::Fixed(_) => None,
            place => find(place, self.cells).and_then(|found| text_of(found).ok()),
        };
        let first = match self.cells {
            Cells::Csv(cells) => cells.iter().map(|cell| cell.trim()).find(|cell| !cell.is_empty()),
            Cells::Json(_) => None,
        };
        let label = client.as_deref().into_iter().chain(first).find(|label| is_total(label))?;
        (!self.rules.total_rows && !self.mapping.is_export).then(|| {
            format!("the row is a sum of other rows by its label {label:?}; if it is usage, give --total-rows")
        })
    }

    /// Why the row is refused as one object around all events.
    pub(super) fn list_of_events(&self) -> Option<String> {
        let Cells::Json(object) = self.cells else { return None };
        let is_absent = |field: &Field| {
            matches!(self.mapping.place(*field), Place::Path(_)) && !is_there(self.mapping.place(*field), self.cells)
        };
        let is_event = Field::ALL.iter().filter(|field| field.is_required()).any(|field| !is_absent(field));
        let key = list_key(object).filter(|_| !self.faults.is_empty() && !is_event)?;
        Some(format!(
            "the row has its events in a list, {key:?}: make a row of each, such as with \
             jq -c 'del(.{key:?}) + .{key:?}[]' FILE | meterd import - --format ndjson"
        ))
    }

    /// Notes that a required field is not there, with the key that may be meant for it.
    pub(super) fn missing(&mut self, field: Field) {
        let written = find(self.mapping.place(field), self.cells).and_then(|found| text_of(found).ok());
        let empty = match written.as_deref().map(|text| text.trim_matches(is_blank)) {
            Some(text) if !text.is_empty() => format!("is required, and {text:?} is taken for empty"),
            _ => "is required, and empty here".to_owned(),
        };
        let Cells::Json(object) = self.cells else { return self.fault(field, empty) };
        if is_there(self.mapping.place(field), self.cells) {
            return self.fault(field, empty);
        }
        let keys = self.mapping.unused_keys(object);
        let meant = keys.iter().find(|key| meant_by(key, &[field]).is_some());
        let flag = field.flag();
        self.fault(
            field,
            match meant {
                Some(key) => format!(
                    "is required, and not there; did you mean {key}? --{flag}-column {key:?} takes it from there"
                ),
                None => format!("is required, and not there: give --{flag}-column KEY or --{flag} VALUE"),
            },
        );
    }

    /// A row of nothing but an empty cell for its units says nothing of how much was used.
    pub(super) fn fill_units(&mut self, event: &mut UsageEvent) {
        let has_measure =
            |field: &Field| find(self.mapping.place(*field), self.cells).and_then(|found| text_of(found).ok());
        let is_value = |text: String| !is_missing(text.trim_matches(is_blank), true);
        if MEASURES.iter().filter_map(has_measure).any(is_value) || !self.faults.is_empty() {
            return;
        }
        match (is_there(self.mapping.place(Field::Units), self.cells), &self.rules.empty_units) {
            (true, Some(units)) => {
                event.units.clone_from(units);
                self.written.push((Field::Units, String::new()));
                self.notes.rows_with_filled_units += 1;
            }
            (true, None) => self.fault(
                Field::Units,
                "is empty, and the row has no tokens or amount: write how many units it is, or give --empty-units 1 to count \
                 each such row as one",
            ),
            (false, _) if self.rules.strict => {
                self.fault(Field::Units, "is missing, as tokens and amount are: give --units 1 to count each row as one");
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
                        "nothing comes from this key{}; --ignore-column takes that as meant",
                        self.mapping.unused_hint(&key)
                    );
                    self.faults.push(Fault { column: key, message });
                }
                false => self.notes.add_unused(key, 1),
            }
        }
    }

    /// Keys that one field may come from.
    pub(super) fn refuse_twins(&mut self) {
        let Cells::Json(object) = self.cells else { return };
        for field in Field::ALL {
            if let Some([first, second]) = self.mapping.twins(field, object) {
                let flag = field.flag();
                self.fault(
                    field,
                    format!("can come from {first:?} or {second:?}: give --{flag}-column with one of them"),
                );
            }
        }
    }
}
