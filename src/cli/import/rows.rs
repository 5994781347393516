//! Reads the rows of CSV and JSON files one by one, each with its line number and text.

mod records;

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use clap::ValueEnum;
use csv_core::Terminator;
use sha2::{Digest, Sha256};

use super::json_scanner::{JsonScanner, Step};
use super::objects::object_of;
use super::quotes::Quotes;
use crate::cli::json::RawObject;

/// Maximum length of a row. A longer row usually has another cause, such as a quote that is not closed.
pub const ROW_BYTES_MAX: usize = 1024 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A header line, and values separated by a delimiter
    Csv,
    /// One JSON object per line
    Ndjson,
    /// An array of JSON objects, or objects over several lines
    Json,
}

/// The format of a file in detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub format: Format,
    /// Delimiter of CSV columns.
    pub delimiter: u8,
    /// Number of lines to skip before the header.
    pub skip_lines: u64,
    /// Quotes of CSV values.
    pub quotes: Quotes,
}

/// The values of a row.
#[derive(Debug)]
pub enum Cells {
    /// The cells, in the order of the header.
    Csv(Vec<String>),
    /// The object.
    Json(RawObject),
}

/// One row of a file.
#[derive(Debug)]
pub struct Row {
    /// Number of the first line, from 1.
    pub line: u64,
    /// The text without the line end.
    pub text: String,
    /// The values, or the error.
    pub cells: Result<Cells, String>,
    /// Further lines of the row that have the columns of a row, with their numbers. They are text, or rows inside an open quote.
    pub inner: Vec<(u64, Cells)>,
}

/// A position in a file.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Number of bytes before the position.
    pub offset: u64,
    /// Number of lines before the position.
    pub line: u64,
    /// Number of rows before the position, without the header and empty lines.
    pub rows: u64,
    /// Digest of all bytes before the position.
    pub digest: Sha256,
}

/// Reads rows one after the other. Keeps only one row in memory.
pub struct RowReader<R> {
    input: R,
    layout: Layout,
    json: JsonScanner,
    csv: Box<csv_core::Reader>,
    header: Arc<[String]>,
    position: Position,
    /// Whether the last line has no line end.
    lacks_line_end: bool,
    /// Number of repeated headers since the last call of [`Self::take_repeated_headers`].
    repeated_headers: u64,
}

impl<R: BufRead> RowReader<R> {
    /// Starts at the beginning of a file. Reads the header of a CSV file.
    pub fn new(input: R, layout: Layout) -> anyhow::Result<RowReader<R>> {
        let csv = csv_core::ReaderBuilder::new()
            .delimiter(layout.delimiter)
            .terminator(Terminator::Any(b'\n'))
            .quoting(layout.quotes != Quotes::None)
            .escape((layout.quotes == Quotes::Backslash).then_some(b'\\'))
            .build();
        let mut reader = RowReader {
            input,
            layout,
            json: JsonScanner::default(),
            csv: Box::new(csv),
            header: Arc::default(),
            position: Position::default(),
            lacks_line_end: false,
            repeated_headers: 0,
        };
        for _ in 0..layout.skip_lines {
            reader.read_line(&mut Vec::new())?;
        }
        if layout.format == Format::Csv {
            let mut header = reader.next_row()?;
            // A spreadsheet can name the delimiter in a separate line.
            if header.as_ref().is_some_and(|row| row.text.len() == 5 && row.text.starts_with("sep=")) {
                header = reader.next_row()?;
            }
            reader.position.rows = 0;
            reader.header = match header.map(|row| row.cells) {
                Some(Ok(Cells::Csv(names))) => names.iter().map(|name| name.trim().to_owned()).collect(),
                Some(Err(message)) => anyhow::bail!("the header line {message}"),
                _ => anyhow::bail!("the file is empty: it has no header line"),
            };
        }
        Ok(reader)
    }

    /// The names of the columns. Empty for JSON.
    pub fn header(&self) -> Arc<[String]> {
        Arc::clone(&self.header)
    }

    /// Whether the last row is a CSV row without a line end. It may be incomplete.
    pub fn lacks_line_end(&self) -> bool {
        self.lacks_line_end && self.layout.format == Format::Csv
    }

    /// Returns the number of repeated headers since the last call. Concatenated files contain them; they are skipped.
    pub fn take_repeated_headers(&mut self) -> u64 {
        std::mem::take(&mut self.repeated_headers)
    }

    /// The position after the last returned row.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Returns the next row that is not empty. After an error, no further row can be read.
    pub fn next_row(&mut self) -> io::Result<Option<Row>> {
        if self.layout.format == Format::Json {
            return self.next_json();
        }
        let mut text = Vec::new();
        let (line, cells) = loop {
            text.clear();
            if self.read_line(&mut text)? == 0 {
                return Ok(None);
            }
            if is_empty(&text) || self.layout.format == Format::Csv && is_table_border(&text) {
                continue;
            }
            let line = self.position.line;
            let cells = match self.layout.format {
                Format::Csv => self.csv_cells(&mut text)?,
                _ => json_cells(&text),
            };
            match &cells {
                // Spreadsheets write such rows for cleared rows.
                Ok(Cells::Csv(cells)) if cells.iter().all(|cell| cell.trim().is_empty()) => {}
                Ok(Cells::Csv(cells)) if self.is_header(cells)? => self.repeated_headers += 1,
                _ => break (line, cells),
            }
        };
        self.position.rows += 1;
        let inner = self.inner_rows(&text, line);
        let text = String::from_utf8_lossy(&text).trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some(Row { line, text, cells, inner }))
    }

    /// Returns the next value of an array or of a sequence of values.
    fn next_json(&mut self) -> io::Result<Option<Row>> {
        let mut text = Vec::new();
        let mut line = 0;
        self.position.line = self.position.line.max(1);
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                let is_complete = text.is_empty() && !self.json.is_open;
                if is_complete || (text.is_empty() && std::mem::replace(&mut self.json.has_reported_end, true)) {
                    return Ok(None);
                }
                self.json.has_reported_end = true;
                line = if line == 0 { self.position.line } else { line };
                let cells = Err("is incomplete: the file ends inside a JSON value; it may be truncated".to_owned());
                self.position.rows += 1;
                let text = String::from_utf8_lossy(&text).into_owned();
                return Ok(Some(Row { line, text, cells, inner: Vec::new() }));
            }
            let (mut read, mut ended) = (0, false);
            for byte in buffer {
                let step = self.json.step(*byte);
                if step == Step::EndBefore {
                    ended = true;
                    break;
                }
                read += 1;
                if line == 0 && step != Step::Between {
                    line = self.position.line;
                }
                self.position.line += u64::from(*byte == b'\n');
                if step != Step::Between {
                    text.push(*byte);
                }
                if step == Step::End {
                    ended = true;
                    break;
                }
            }
            self.position.digest.update(&buffer[..read]);
            self.position.offset += read as u64;
            self.input.consume(read);
            if text.len() > ROW_BYTES_MAX {
                return Err(self.too_long());
            }
            if ended {
                self.position.rows += 1;
                return Ok(Some(Row {
                    line,
                    cells: json_cells(&text),
                    text: String::from_utf8_lossy(&text).into_owned(),
                    inner: Vec::new(),
                }));
            }
        }
    }

    /// Appends the next line, including its line end.
    fn read_line(&mut self, text: &mut Vec<u8>) -> io::Result<usize> {
        let before = text.len();
        let bound = (ROW_BYTES_MAX + 1).saturating_sub(before) as u64;
        let read = self.input.by_ref().take(bound).read_until(b'\n', text)?;
        if text.len() > ROW_BYTES_MAX {
            return Err(self.too_long());
        }
        self.position.digest.update(&text[before..]);
        self.position.offset += read as u64;
        self.position.line += u64::from(read > 0);
        self.lacks_line_end = read > 0 && !text.ends_with(b"\n");
        if self.position.line == 1 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
            // A line that contains only the byte order mark is empty. It is not the end of the file.
            return Ok(read);
        }
        Ok(read)
    }

    fn too_long(&self) -> io::Error {
        io::Error::other(format!(
            "a row near line {} is longer than {ROW_BYTES_MAX} bytes: a quote may not be closed, or the file has another format",
            self.position.line + 1
        ))
    }
}

/// Whether a line is empty. Ctrl-Z marks the end of a DOS file.
fn is_empty(line: &[u8]) -> bool {
    line.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0x1a)
}

/// Whether a line is part of the border that database consoles print around a table, such as `----+----` or `(2 rows)`.
pub fn is_table_border(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let is_rule = line.iter().all(|byte| b"-+|=".contains(byte)) && line.windows(3).any(|three| three == b"---");
    let count = line.strip_prefix(b"(").and_then(|rest| rest.strip_suffix(b" rows)").or(rest.strip_suffix(b" row)")));
    is_rule || count.is_some_and(|count| !count.is_empty() && count.iter().all(u8::is_ascii_digit))
}

fn not_utf_8(error: std::str::Utf8Error) -> String {
    format!(
        "is not UTF-8 at byte {}: save the file as UTF-8, or set --encoding, for example to windows-1252",
        error.valid_up_to() + 1
    )
}

fn json_cells(text: &[u8]) -> Result<Cells, String> {
    let text = std::str::from_utf8(text).map_err(not_utf_8)?;
    object_of(text).map(Cells::Json)
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
