//! What an import did to rows beyond taking them as they stand. All of it is reported.

use std::collections::BTreeMap;

/// Names of unused keys that are kept; files with more have keys that are data.
const UNUSED_NAMES_MAX: usize = 50;

/// Counts of what was done to the rows of a batch, a file or a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Keys of JSON rows that nothing comes from, with the rows that have them.
    pub unused: BTreeMap<String, u64>,
    /// Cells that had blanks around their value.
    pub trimmed_cells: u64,
    /// Client ids and keys among them.
    pub trimmed_ids: u64,
    /// Cells that were taken for empty because they say `NULL` or the like.
    pub null_cells: u64,
    /// Cells such as `="0012"`.
    pub formula_cells: u64,
    /// Quantities that had more decimals than are kept.
    pub rounded_quantities: u64,
    /// Rows without units, tokens and amount, which count as one unit.
    pub rows_counted_as_one: u64,
    /// Rows whose empty units were filled in as a flag says.
    pub rows_with_filled_units: u64,
    /// Times without an offset.
    pub local_times: u64,
    /// Times that were a spreadsheet's number of days.
    pub serial_times: u64,
    /// Rows that equal a row of another file of the run.
    pub repeats_of_other_files: u64,
    /// Files whose last row has no line end.
    pub open_ended_files: u64,
    /// Files that were changed while they were read.
    pub changed_files: u64,
    /// Lines that repeat the header.
    pub repeated_headers: u64,
}

impl Notes {
    /// Notes an unused key.
    pub fn add_unused(&mut self, key: String, rows: u64) {
        if self.unused.len() < UNUSED_NAMES_MAX || self.unused.contains_key(&key) {
            *self.unused.entry(key).or_default() += rows;
        }
    }

    /// Adds the notes of other rows.
    pub fn add(&mut self, other: &Notes) {
        other.unused.iter().for_each(|(key, rows)| self.add_unused(key.clone(), *rows));
        self.trimmed_cells += other.trimmed_cells;
        self.trimmed_ids += other.trimmed_ids;
        self.null_cells += other.null_cells;
        self.formula_cells += other.formula_cells;
        self.rounded_quantities += other.rounded_quantities;
        self.rows_counted_as_one += other.rows_counted_as_one;
        self.rows_with_filled_units += other.rows_with_filled_units;
        self.local_times += other.local_times;
        self.serial_times += other.serial_times;
        self.repeats_of_other_files += other.repeats_of_other_files;
        self.open_ended_files += other.open_ended_files;
        self.changed_files += other.changed_files;
        self.repeated_headers += other.repeated_headers;
    }
}
