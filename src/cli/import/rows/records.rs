//! CSV records: cells, repeated headers, and rows inside quotes.

use std::io::{self, BufRead};

use csv_core::ReadRecordResult;

use super::{Cells, RowReader, not_utf_8};
use crate::cli::import::cells::is_blank;
use crate::cli::import::quotes::{self, Quotes};

/// Maximum number of lines of one record that are checked.
const INNER_ROWS_MAX: usize = 100;

impl<R: BufRead> RowReader<R> {
    /// Parses the record that starts with the line in `text`. Reads further lines while a quote is open.
    pub(super) fn csv_cells(&mut self, text: &mut Vec<u8>) -> io::Result<Result<Cells, String>> {
        self.csv.reset();
        let first_line = self.position.line;
        let mut output = vec![0; text.len() + 1];
        let mut ends = vec![0; self.header.len() + 16];
        let (mut fed, mut written, mut ended) = (0, 0, 0);
        loop {
            // The last line may have no line end. It is passed separately, because `text` must stay unchanged.
            let at_end = fed == text.len() && !text.ends_with(b"\n");
            let input = if at_end { b"\n" } else { &text[fed..] };
            let (result, read, wrote, closed) = self.csv.read_record(input, &mut output[written..], &mut ends[ended..]);
            fed += if at_end { 0 } else { read };
            written += wrote;
            ended += closed;
            match result {
                ReadRecordResult::Record => break,
                ReadRecordResult::OutputFull => output.resize(output.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => ends.resize(ends.len() * 2, 0),
                ReadRecordResult::InputEmpty if fed == text.len() && !at_end && !text.ends_with(b"\n") => {}
                ReadRecordResult::InputEmpty | ReadRecordResult::End => {
                    if self.read_line(text)? == 0 {
                        return Ok(Err("has a quote that is not closed".to_owned()));
                    }
                }
            }
        }
        if let Some(line) = quotes::misplaced(text, self.layout.delimiter, self.layout.quotes) {
            return Ok(Err(quotes::misplaced_text(first_line, first_line + line)));
        }
        if text.ends_with(b"\r\n") && output[..written].ends_with(b"\r") {
            written -= 1;
            ends[ended - 1] -= 1;
        }
        Ok(self.cells_of(&output[..written], &ends[..ended]))
    }

    fn cells_of(&self, output: &[u8], ends: &[usize]) -> Result<Cells, String> {
        let mut start = 0;
        let mut cells = Vec::with_capacity(ends.len());
        for end in ends {
            let cell = std::str::from_utf8(&output[start..*end]).map_err(not_utf_8)?;
            cells.push(match self.layout.quotes {
                Quotes::None => cell.to_owned(),
                _ => quotes::unquoted(cell).unwrap_or_else(|| cell.to_owned()),
            });
            start = *end;
        }
        let columns = self.header.len();
        if columns > 0 && cells.len() > columns && cells[columns..].iter().all(|cell| cell.trim().is_empty()) {
            cells.truncate(columns);
        }
        if columns > 0 && cells.len() != columns && !cells.iter().all(|cell| cell.trim().is_empty()) {
            let hint = match cells.len() > columns {
                true => "; a value that contains the delimiter must be in quotes",
                false => "",
            };
            return Err(format!("has {} columns, but the header has {columns}{hint}", cells.len()));
        }
        // For example the second part of 1,234 if the header line ends with a delimiter.
        let named = self.header.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        match cells.iter().enumerate().skip(named).find(|(_, cell)| columns > 0 && !cell.trim().is_empty()) {
            Some((index, cell)) => Err(format!(
                "has {cell:?} in column {}, which has no name: put values that contain the delimiter in quotes, or add a name \
                 to the header line",
                index + 1
            )),
            None => Ok(Cells::Csv(cells)),
        }
    }

    /// Whether a row repeats the header. A header with another order of columns is an error, because the mapping of the first
    /// header does not apply to the rows after it.
    pub(super) fn is_header(&self, cells: &[String]) -> io::Result<bool> {
        let mut cells: Vec<&str> = cells.iter().map(|cell| cell.trim_matches(is_blank)).collect();
        if !cells.iter().all(|cell| self.header.iter().any(|name| name == cell)) {
            return Ok(false);
        }
        let mut header: Vec<&str> = self.header.iter().map(String::as_str).collect();
        if cells == header {
            return Ok(true);
        }
        cells.sort_unstable();
        header.sort_unstable();
        match cells == header {
            true => Err(io::Error::other(format!(
                "line {} is a header line with the columns in another order: import it and the lines after it as a separate \
                 file",
                self.position.line
            ))),
            false => Ok(false),
        }
    }

    /// Returns the lines of a record, except the first, that have as many columns as the header.
    pub(super) fn inner_rows(&self, text: &[u8], line: u64) -> Vec<(u64, Cells)> {
        if self.header.len() < 2 || !text.trim_ascii_end().contains(&b'\n') {
            return Vec::new();
        }
        let lines = text.split(|byte| *byte == b'\n').zip(line..).skip(1);
        let cells = |text: &[u8]| {
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .delimiter(self.layout.delimiter)
                .from_reader(text);
            let record = reader.records().next()?.ok()?;
            (record.len() == self.header.len()).then(|| Cells::Csv(record.iter().map(str::to_owned).collect()))
        };
        lines.filter_map(|(text, line)| Some((line, cells(text)?))).take(INNER_ROWS_MAX).collect()
    }
}
