//! CSV for spreadsheets: quoted where it has to be (RFC 4180), and without cells that would be run as formulas.

use crate::grpc::usage::export_file::is_formula;
use csv::{Terminator, WriterBuilder};

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// From outside: a ' is put before what a spreadsheet would take for a formula.
    Text(String),
    /// A number, a day, a name of ours: as it is.
    Plain(String),
}

impl Cell {
    /// A text from outside.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A number, or nothing.
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

/// The file.
pub fn csv(header: &[Cell], rows: &[Vec<Cell>]) -> anyhow::Result<String> {
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(vec![]);
    writer.write_record(header.iter().map(Cell::shown))?;
    for row in rows {
        writer.write_record(row.iter().map(Cell::shown))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// The file as `println!` is to print it, which ends the last line itself.
pub fn lines(csv: &str) -> &str {
    csv.strip_suffix('\n').unwrap_or(csv)
}

/// Header cells of ours.
pub fn header(names: &[&str]) -> Vec<Cell> {
    names.iter().map(Cell::plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_and_defused_and_negative_numbers_stay_numbers() {
        let row = vec![Cell::text("=1+1"), Cell::text("a, \"b\""), Cell::plain("-12.5")];
        let file = csv(&header(&["client_id", "name", "change_percent"]), &[row]).unwrap();
        assert_eq!(file, "client_id,name,change_percent\r\n'=1+1,\"a, \"\"b\"\"\",-12.5\r\n");
    }
}
