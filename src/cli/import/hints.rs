//! Notes of a report: assumptions, changes, and explanations of the counts.

use super::report::{NAMED_CLIENTS_MAX, Tally};
use crate::cli::chart::grouped;

const NAMED_ZONES_MAX: usize = 3;

impl Tally {
    /// Returns notes about assumptions and changes, and explanations of the counts.
    pub fn hints(&self, dry_run: bool) -> Vec<String> {
        let mut hints: Vec<String> = self
            .unused
            .iter()
            .map(|(text, rows)| match rows {
                0 => format!("unused {text}"),
                _ => format!("unused {text} (in {} rows)", grouped(*rows)),
            })
            .collect();
        let notes = &self.notes;
        let mut counted = |count: u64, text: &str| {
            if count > 0 {
                hints.push(text.replacen("{}", &grouped(count), 1));
            }
        };
        let created = if dry_run { "that would be created" } else { "created" };
        let new_clients: Vec<&str> = self.new_clients.iter().map(String::as_str).collect();
        let named = shown(&new_clients, NAMED_CLIENTS_MAX);
        counted(self.new_clients.len() as u64, &format!("new clients {created}: {{}} ({named})"));
        counted(
            notes.rows_counted_as_one,
            "rows without units, tokens or amount, each counted as 1 unit: {}; add --units 1 if this is intended",
        );
        counted(notes.rows_with_filled_units, "rows with empty units, which got the value of --empty-units: {}");
        let zones: Vec<&str> = self.zones.iter().copied().collect();
        let in_zone = match self.time_zone {
            Some(zone) => format!("in {zone} (--time-zone)"),
            None if zones.is_empty() => "in the time zone of each client".to_owned(),
            None => format!("in the time zone of each client ({})", shown(&zones, NAMED_ZONES_MAX)),
        };
        counted(notes.local_times, &format!("times without a zone, interpreted {in_zone}: {{}}"));
        counted(notes.serial_times, "times interpreted as spreadsheet dates (days since 1899-12-30): {}");
        counted(notes.trimmed_cells, "values with spaces around them, which were removed: {}");
        counted(
            notes.trimmed_ids,
            "client ids and keys among these: {}; earlier versions kept the spaces, so rows that such a version imported are \
             counted again",
        );
        counted(notes.null_cells, "values such as NULL, N/A or None, interpreted as empty: {}");
        counted(notes.formula_cells, "values such as =\"0012\", interpreted as the text in quotes: {}");
        counted(notes.rounded_quantities, "quantities rounded half to even to 12 decimals: {}");
        counted(notes.repeated_headers, "repeated header lines, which were skipped: {}");
        counted(
            notes.files_without_line_end,
            "files whose last row has no line end: {}; if a file is truncated, the last value of its last row may be incomplete",
        );
        counted(
            notes.changed_files,
            "files that changed while they were read: {}; import them again when they are complete, nothing is counted twice",
        );
        let files: Vec<&str> = self.repeated_files.iter().map(String::as_str).collect();
        counted(
            notes.repeats_of_other_files,
            &format!(
                "rows that equal a row of another file of this run ({}), interpreted as repeats and not counted again: {{}}; \
                 add --split-files to count them, if the files are parts of one file",
                shown(&files, NAMED_CLIENTS_MAX)
            ),
        );
        if self.duplicates > 0 && self.split_files {
            hints.push(
                "with --split-files, each run must name all parts; otherwise, rows of different parts can become duplicates \
                 of each other"
                    .to_owned(),
            );
        }
        if self.duplicates > notes.repeats_of_other_files {
            hints.push(
                "duplicates are already recorded: by an earlier run, by an attempt whose response was lost, or from an equal \
                 row of another file; nothing is counted twice. If equal rows of another file are different events, import \
                 that file with its own --key-prefix"
                    .to_owned(),
            );
        }
        if self.conflicts > 0 {
            hints.push(
                "conflicts are rows whose key is already recorded with other values. A row without a key is a conflict if an \
                 earlier import interpreted it differently, for example in another time zone"
                    .to_owned(),
            );
        }
        if self.too_old > 0 {
            hints.push(format!("{} rows are older than the server accepts: use --backfill", grouped(self.too_old)));
        }
        hints
    }
}

/// Lists the first names and the number of further names.
fn shown(names: &[&str], max: usize) -> String {
    let some = names.iter().take(max).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(max) {
        Some(more @ 1..) => format!("{some} and {} more", grouped(more as u64)),
        _ => some,
    }
}
