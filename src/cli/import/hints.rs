//! What a report says beside its counts: what was done and assumed, and what may surprise.

use super::report::{NAMED_CLIENTS_MAX, Tally};
use crate::cli::chart::grouped;

const NAMED_ZONES_MAX: usize = 3;

impl Tally {
    /// What was done and assumed, and what the counts mean where that may surprise.
    pub fn hints(&self, dry_run: bool) -> Vec<String> {
        let mut hints: Vec<String> = self
            .unused
            .iter()
            .map(|(what, rows)| match rows {
                0 => format!("nothing comes from {what}"),
                _ => format!("nothing comes from {what} (in {} rows)", grouped(*rows)),
            })
            .collect();
        let notes = &self.notes;
        let mut counted = |count: u64, what: &str| {
            if count > 0 {
                hints.push(what.replacen("{}", &grouped(count), 1));
            }
        };
        let created = if dry_run { "that would be created" } else { "created" };
        let new_clients: Vec<&str> = self.new_clients.iter().map(String::as_str).collect();
        let named = shown(&new_clients, NAMED_CLIENTS_MAX);
        counted(self.new_clients.len() as u64, &format!("new clients {created}: {{}} ({named})"));
        counted(
            notes.rows_counted_as_one,
            "rows without units, tokens or amount, each counted as 1 unit: {}; --units 1 says that this is meant",
        );
        counted(notes.rows_with_filled_units, "rows whose empty units were filled in, as --empty-units says: {}");
        let zones: Vec<&str> = self.zones.iter().copied().collect();
        let in_zone = match self.time_zone {
            Some(zone) => format!("in {zone}, as --time-zone says"),
            None if zones.is_empty() => "in each client's own time zone".to_owned(),
            None => format!("in each client's own time zone ({})", shown(&zones, NAMED_ZONES_MAX)),
        };
        counted(notes.local_times, &format!("times without a zone, taken {in_zone}: {{}}"));
        counted(notes.serial_times, "times read as spreadsheet dates, days since 1899-12-30: {}");
        counted(notes.trimmed_cells, "values with blanks around them, which were taken off: {}");
        counted(
            notes.trimmed_ids,
            "client ids and keys among these: {}; an earlier version recorded them with the blanks, and rows that it \
             imported so count again",
        );
        counted(notes.null_cells, "values such as NULL, N/A or None, taken for empty: {}");
        counted(notes.formula_cells, "values such as =\"0012\", read as the text in the quotes: {}");
        counted(notes.rounded_quantities, "quantities rounded half to even to 12 decimals: {}");
        counted(notes.repeated_headers, "lines that repeat the header, which were passed over: {}");
        counted(
            notes.open_ended_files,
            "files whose last row has no line end: {}; if one was cut off, the last value of that row may be too",
        );
        counted(
            notes.changed_files,
            "files that were changed while they were read: {}; import them again when they are complete, nothing is counted \
             twice",
        );
        let files: Vec<&str> = self.repeated_files.iter().map(String::as_str).collect();
        counted(
            notes.repeats_of_other_files,
            &format!(
                "rows that equal a row of another file of this run ({}), taken for repeats and not counted again: {{}}; \
                 --split-files counts them, as of files that are parts of one",
                shown(&files, NAMED_CLIENTS_MAX)
            ),
        );
        if self.duplicates > 0 && self.split_files {
            hints.push(
                "--split-files tells equal rows of different parts apart only if each run names all parts: rows of parts that \
                 are not named now may be among the duplicates"
                    .to_owned(),
            );
        }
        if self.duplicates > notes.repeats_of_other_files {
            hints.push(
                "duplicates are recorded already, by an earlier run, by a try whose answer was lost, or from an equal row \
                 of another file; nothing is counted twice. If equal rows of another file are events of their own, give \
                 that file its own --key-prefix"
                    .to_owned(),
            );
        }
        if self.conflicts > 0 {
            hints.push(
                "conflicts are rows whose key is recorded with other values. A row without a key of its own is one if it \
                 was imported before and is read differently now, such as in another time zone"
                    .to_owned(),
            );
        }
        if self.too_old > 0 {
            hints.push(format!("{} rows are too old for the server's window: use --backfill", grouped(self.too_old)));
        }
        hints
    }
}

/// Some of these names, and how many there are besides.
fn shown(names: &[&str], max: usize) -> String {
    let some = names.iter().take(max).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(max) {
        Some(more @ 1..) => format!("{some} and {} more", grouped(more as u64)),
        _ => some,
    }
}
