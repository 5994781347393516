//! Counts of assumptions and changes of an import. All of them are reported.

use std::collections::BTreeMap;

/// Maximum number of reported unused keys. In files with more, the keys are data.
const UNUSED_NAMES_MAX: usize = 50;

/// Counts of assumptions and changes in a batch, a file or a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Unused keys of JSON rows, with the number of rows that have them.
    pub unused: BTreeMap<String, u64>,
    /// Cells with spaces around their value.
    pub trimmed_cells: u64,
    /// Client ids and keys among these cells.
    pub trimmed_ids: u64,
    /// Cells with a text such as `NULL`, which means empty.
    pub null_cells: u64,
    /// Cells such as `="0012"`.
    pub formula_cells: u64,
    /// Quantities that were rounded.
    pub rounded_quantities: u64,
    /// Rows without units, tokens and amount, which are counted as one unit.
    pub rows_counted_as_one: u64,
    /// Rows with empty units that got the value of `--empty-units`.
    pub rows_with_filled_units: u64,
    /// Times without an offset.
    pub local_times: u64,
    /// Spreadsheet dates.
    pub serial_times: u64,
    /// Rows that equal a row of another file of the run.
    pub repeats_of_other_files: u64,
    /// Files whose last row has no line end.
    pub files_without_line_end: u64,
    /// Files that changed while they were read.
    pub changed_files: u64,
    /// Lines that repeat the header.
    pub repeated_headers: u64,
}

impl Notes {
    /// Adds an unused key.
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
        self.files_without_line_end += other.files_without_line_end;
        self.changed_files += other.changed_files;
        self.repeated_headers += other.repeated_headers;
    }
}
