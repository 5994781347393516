//! Rows of CSV and JSON files, streamed, each with its line number and text.

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

/// Longest row. Beyond it something else is wrong, such as a quote that is never closed.
pub const ROW_BYTES_MAX: usize = 1024 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Values with a delimiter between them, under a header line
    Csv,
    /// One JSON object a line
    Ndjson,
    /// An array of JSON objects, or objects over several lines
    Json,
}

/// How the rows of a file stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub format: Format,
    /// Between the columns of CSV.
    pub delimiter: u8,
    /// Lines before the header that say nothing.
    pub skip_lines: u64,
    /// How CSV values are quoted.
    pub quotes: Quotes,
}

/// What a row says.
#[derive(Debug)]
pub enum Cells {
    /// In the order of the header.
    Csv(Vec<String>),
    /// The object of the line.
    Json(RawObject),
}

/// One row of a file.
#[derive(Debug)]
pub struct Row {
    /// Line that it starts on, from 1.
    pub line: u64,
    /// Its bytes without the line end, as text.
    pub text: String,
    /// What it says, or why it cannot be read.
    pub cells: Result<Cells, String>,
    /// Its later lines that have the columns of a row themselves, with their numbers: text, or rows that an open quote
    /// swallowed.
    pub inner: Vec<(u64, Cells)>,
}

/// How far a file was read.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Bytes.
    pub offset: u64,
    /// Lines.
    pub line: u64,
    /// Rows, without the header and empty lines.
    pub rows: u64,
    /// Digest of all these bytes.
    pub digest: Sha256,
}

/// Reads rows one after the other. Holds one row at a time.
pub struct RowReader<R> {
    input: R,
    layout: Layout,
    json: JsonScanner,
    csv: Box<csv_core::Reader>,
    header: Arc<[String]>,
    position: Position,
    /// The last line that was read has no end.
    is_open_ended: bool,
    /// Rows that repeat the header, since they were last asked for.
    repeated_headers: u64,
}

impl<R: BufRead> RowReader<R> {
    /// Starts at the beginning of a file; of a CSV file this reads the header.
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
            is_open_ended: false,
            repeated_headers: 0,
        };
        for _ in 0..layout.skip_lines {
            reader.read_line(&mut Vec::new())?;
        }
        if layout.format == Format::Csv {
            let mut header = reader.next_row()?;
            // A spreadsheet names the delimiter in a line of its own.
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

    /// Names of the columns. Empty for NDJSON.
    pub fn header(&self) -> Arc<[String]> {
        Arc::clone(&self.header)
    }

    /// Whether the last row is a CSV row without a line end, and may be half of one.
    pub fn is_open_ended(&self) -> bool {
        self.is_open_ended && self.layout.format == Format::Csv
    }

    /// Rows that repeat the header, as files have that were put together, since the last call. They are passed over.
    pub fn take_repeated_headers(&mut self) -> u64 {
        std::mem::take(&mut self.repeated_headers)
    }

    /// Up to where all rows were given out.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The next row, without empty ones. An error is one of reading, after which nothing more can be read.
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
            if is_empty(&text) || self.layout.format == Format::Csv && is_frame(&text) {
                continue;
            }
            let line = self.position.line;
            let cells = match self.layout.format {
                Format::Csv => self.csv_cells(&mut text)?,
                _ => json_cells(&text),
            };
            match &cells {
                // As spreadsheets write rows that were cleared.
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

    /// The next value of an array, or of values that stand one after the other.
    fn next_json(&mut self) -> io::Result<Option<Row>> {
        let mut text = Vec::new();
        let mut line = 0;
        self.position.line = self.position.line.max(1);
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                let is_whole = text.is_empty() && !self.json.is_open;
                if is_whole || (text.is_empty() && std::mem::replace(&mut self.json.has_told_end, true)) {
                    return Ok(None);
                }
                self.json.has_told_end = true;
                line = if line == 0 { self.position.line } else { line };
                let cells = Err("is not whole: the file ends before its JSON does. Is it cut off?".to_owned());
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

    /// Appends a line with its end.
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
        self.is_open_ended = read > 0 && !text.ends_with(b"\n");
        if self.position.line == 1 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
            // A line of nothing but the mark is an empty one, not the end.
            return Ok(read);
        }
        Ok(read)
    }

    fn too_long(&self) -> io::Error {
        io::Error::other(format!(
            "a row is longer than {ROW_BYTES_MAX} bytes near line {}: is a quote never closed, or is this another format?",
            self.position.line + 1
        ))
    }
}

/// Whether a line says nothing. Ctrl-Z is the end of a file of DOS.
fn is_empty(line: &[u8]) -> bool {
    line.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0x1a)
}

/// Whether a line is part of the frame that the consoles of databases draw around a table, such as `----+----` or `(2 rows)`.
pub fn is_frame(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let is_rule = line.iter().all(|byte| b"-+|=".contains(byte)) && line.windows(3).any(|three| three == b"---");
    let count = line.strip_prefix(b"(").and_then(|rest| rest.strip_suffix(b" rows)").or(rest.strip_suffix(b" row)")));
    is_rule || count.is_some_and(|count| !count.is_empty() && count.iter().all(u8::is_ascii_digit))
}

fn not_utf_8(error: std::str::Utf8Error) -> String {
    format!(
        "is not UTF-8 from byte {} on: save the file as UTF-8, or give its --encoding, such as windows-1252",
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
