//! CSV for spreadsheets, with quotes as in RFC 4180 and protection against formulas.

use csv::{Terminator, WriterBuilder};
use meterd_engine::usage::export_file::is_formula;

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Text of users. A text that a spreadsheet would evaluate as a formula gets a leading `'`.
    Text(String),
    /// A number, a day or a constant; written unchanged.
    Plain(String),
}

impl Cell {
    /// A text of users.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A number, a day or a constant.
    pub fn plain(value: impl ToString) -> Self {
        Self::Plain(value.to_string())
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) if is_formula(text) => format!("'{text}"),
            Self::Text(text) | Self::Plain(text) => text.clone(),
        }
    }
}

/// Returns the file as text.
pub fn csv(header: &[Cell], rows: &[Vec<Cell>]) -> anyhow::Result<String> {
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(vec![]);
    writer.write_record(header.iter().map(Cell::shown))?;
    for row in rows {
        writer.write_record(row.iter().map(Cell::shown))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// Removes the last line feed, because `println!` adds one.
pub fn lines(csv: &str) -> &str {
    csv.strip_suffix('\n').unwrap_or(csv)
}

/// Returns header cells with constant names.
pub fn header(names: &[&str]) -> Vec<Cell> {
    names.iter().map(Cell::plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_and_formulas_escaped_and_negative_numbers_are_unchanged() {
        let row = vec![Cell::text("=1+1"), Cell::text("a, \"b\""), Cell::plain("-12.5")];
        let file = csv(&header(&["client_id", "name", "change_percent"]), &[row]).unwrap();
        assert_eq!(file, "client_id,name,change_percent\r\n'=1+1,\"a, \"\"b\"\"\",-12.5\r\n");
    }
}
