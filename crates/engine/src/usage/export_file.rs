//! Writes the rows of an export as CSV or NDJSON, directly as bytes, because an export can have millions of rows.

use super::{ExportFormat, ExportRow};
use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::UnpricedReason;
use std::fmt::{self, Display};
use std::io::Write;

/// Columns of the CSV and keys of the NDJSON. An import maps them by these names.
const COLUMNS: [&str; 27] = [
    "event_id",
    "client_id",
    "day",
    "event_time",
    "service",
    "operation",
    "model",
    "units",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "amount",
    "currency",
    "charge",
    "price_id",
    "unpriced_reason",
    "subject",
    "external_id",
    "idempotency_key",
    "metadata",
    "record_time",
    "service_tier",
    "measures",
    "void_time",
    "reported_cost",
    "labels",
    "tier_residue",
];

/// The part of the file that has not been sent.
pub struct File {
    is_json: bool,
    currency: String,
    pub bytes: Vec<u8>,
}

impl File {
    /// Starts a file with its header.
    pub fn new(format: ExportFormat, currency: String) -> Self {
        let is_json = format == ExportFormat::Ndjson;
        let header = if is_json { String::new() } else { COLUMNS.join(",") + "\r\n" };
        Self { is_json, currency, bytes: header.into_bytes() }
    }

    /// Takes the bytes to send. The next piece is about as long, so its memory is reserved.
    pub fn take(&mut self) -> Vec<u8> {
        let length = self.bytes.len();
        std::mem::replace(&mut self.bytes, Vec::with_capacity(length))
    }

    /// Adds a row.
    pub fn write(&mut self, event: &ExportRow) {
        let mut row = Row { bytes: &mut self.bytes, is_json: self.is_json, column: 0, is_empty: true };
        let currency = event.charge.is_some().then_some(&self.currency);
        row.plain(Some(event.id()));
        row.text(&event.client_id);
        row.plain(Some(event.day));
        row.plain(Some(Micros(event.event_time)));
        row.text(&event.service);
        row.text(&event.operation);
        row.text(&event.model);
        row.plain(Some(event.units));
        row.number(event.input_tokens);
        row.number(event.output_tokens);
        row.number(event.cached_input_tokens);
        row.plain(event.amount.map(Total::from));
        row.plain(currency);
        row.plain(event.charge.map(Total::from));
        row.plain(event.price_id.filter(|_| event.charge.is_some()));
        row.plain(event.unpriced_reason.map(|reason| UnpricedReason::from_number(reason).name()));
        row.text(&event.subject);
        row.text(&event.external_id);
        row.text(&event.idempotency_key);
        row.json(event.metadata.as_deref());
        row.plain(Some(Micros(event.record_time)));
        row.text(event.service_tier.as_deref().unwrap_or_default());
        row.json(event.measures.as_deref());
        row.plain(event.void_time.map(Micros));
        row.plain(event.reported_cost.map(Total::from));
        row.json(event.labels.as_deref());
        row.plain(event.tier_residue.map(Total::from));
        row.end();
    }
}

/// A row that is being written. The caller writes its cells in the order of the columns.
struct Row<'a> {
    bytes: &'a mut Vec<u8>,
    is_json: bool,
    column: usize,
    is_empty: bool,
}

const INFALLIBLE: &str = "writing to memory cannot fail";

impl Row<'_> {
    /// Begins a cell. Returns `false` if the value is absent. A JSON object leaves out absent values.
    fn begin(&mut self, is_absent: bool) -> bool {
        let column = COLUMNS[self.column];
        self.column += 1;
        if !self.is_json {
            if self.column > 1 {
                self.bytes.push(b',');
            }
        } else if !is_absent {
            self.bytes.push(if self.is_empty { b'{' } else { b',' });
            self.is_empty = false;
            self.bytes.push(b'"');
            self.bytes.extend_from_slice(column.as_bytes());
            self.bytes.extend_from_slice(b"\":");
        }
        !is_absent
    }

    /// Writes a text of a caller. In CSV, formulas are escaped.
    fn text(&mut self, text: &str) {
        if !self.begin(text.is_empty()) {
            return;
        }
        match self.is_json {
            true => serde_json::to_writer(&mut *self.bytes, text).expect(INFALLIBLE),
            false => self.csv(text),
        }
    }

    /// Writes a value that needs no escape: a decimal, a time, an id of meterd.
    fn plain(&mut self, value: Option<impl Display>) {
        if !self.begin(value.is_none()) {
            return;
        }
        let Some(value) = value else { return };
        match self.is_json {
            true => write!(self.bytes, "\"{value}\""),
            false => write!(self.bytes, "{value}"),
        }
        .expect(INFALLIBLE);
    }

    fn number(&mut self, number: i64) {
        self.begin(false);
        write!(self.bytes, "{number}").expect(INFALLIBLE);
    }

    /// Writes JSON in the form of the database.
    fn json(&mut self, text: Option<&str>) {
        let text = text.unwrap_or_default();
        if !self.begin(text.is_empty()) {
            return;
        }
        match self.is_json {
            true => self.bytes.extend_from_slice(text.as_bytes()),
            false => self.csv(text),
        }
    }

    /// Writes a CSV cell, with quotes if necessary (RFC 4180).
    fn csv(&mut self, text: &str) {
        let guard = if is_formula(text) { "'" } else { "" };
        if !text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n')) {
            self.bytes.extend_from_slice(guard.as_bytes());
            self.bytes.extend_from_slice(text.as_bytes());
            return;
        }
        write!(self.bytes, "\"{guard}").expect(INFALLIBLE);
        for (number, part) in text.split('"').enumerate() {
            if number > 0 {
                self.bytes.extend_from_slice(b"\"\"");
            }
            self.bytes.extend_from_slice(part.as_bytes());
        }
        self.bytes.push(b'"');
    }

    fn end(self) {
        self.bytes.extend_from_slice(if self.is_json { b"}\n" } else { b"\r\n" });
    }
}

/// Whether a spreadsheet would read the text as a formula, or the text looks like an escaped formula. Such a text is written with
/// a `'` before it. An import removes this `'`, so the text does not change.
pub fn is_formula(text: &str) -> bool {
    text.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r'])
}

/// Formats a time as RFC 3339, with microseconds.
struct Micros(DateTime<Utc>);

impl Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(year) = u32::try_from(self.0.year()).ok().filter(|year| *year <= 9_999) else {
            return f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true));
        };
        // Written by hand, because chrono is several times slower and each row has two times.
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |at: usize, digits: usize, mut number: u32| {
            for byte in text[at..at + digits].iter_mut().rev() {
                *byte = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(0, 4, year);
        put(5, 2, self.0.month());
        put(8, 2, self.0.day());
        put(11, 2, self.0.hour());
        put(14, 2, self.0.minute());
        put(17, 2, self.0.second());
        put(20, 6, self.0.timestamp_subsec_micros());
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn csv_cell(text: &str) -> String {
        let mut bytes = vec![];
        Row { bytes: &mut bytes, is_json: false, column: 0, is_empty: true }.csv(text);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn formulas_are_escaped_and_other_texts_are_not() {
        for text in ["=1+1", "+1", "-1", "@a", "\tx", "'=1", "''-"] {
            assert_eq!(csv_cell(text), format!("'{text}"));
        }
        assert_eq!(csv_cell("\rx"), "\"'\rx\"");
        for text in ["", "a=1", "'quoted'", "5"] {
            assert_eq!(csv_cell(text), text);
        }
    }

    proptest! {
        #[test]
        fn any_cell_is_read_back_as_it_was_written(text in "[-=',\"\r\n a-cß]{0,12}", other in "\\PC{0,8}") {
            let line = format!("{},{}\r\n", csv_cell(&text), csv_cell(&other));
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
            let record = reader.records().next().unwrap().unwrap();
            let guarded = |text: &str| if is_formula(text) { format!("'{text}") } else { text.to_owned() };
            prop_assert_eq!(record.iter().collect::<Vec<_>>(), [guarded(&text), guarded(&other)]);
        }

        #[test]
        fn times_have_the_same_format_as_in_chrono(micros in -62_167_219_200_000_000i64..260_000_000_000_000_000) {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            prop_assert_eq!(Micros(time).to_string(), time.to_rfc3339_opts(SecondsFormat::Micros, true));
        }
    }
}
