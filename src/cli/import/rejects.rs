//! Writes bad rows to the file of `--rejects`.

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::Context;

use super::batches::BadRow;

/// The CSV file of rows that are not recorded.
#[derive(Debug)]
pub struct Rejects {
    writer: csv::Writer<File>,
}

impl Rejects {
    /// Creates the file. A resumed run appends to an existing file.
    pub fn open(path: &Path, resume: bool) -> anyhow::Result<Rejects> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(resume)
            .truncate(!resume)
            .open(path)
            .with_context(|| format!("--rejects {}: cannot write the file", path.display()))?;
        let is_new = file.metadata()?.len() == 0;
        let mut writer = csv::Writer::from_writer(file);
        if is_new {
            writer.write_record(["file", "line", "column", "reason", "message", "row"])?;
        }
        Ok(Rejects { writer })
    }

    /// Adds rows and flushes the file, so that it contains all bad rows before the checkpoint.
    pub fn add(&mut self, file: &str, bad_rows: &[BadRow]) -> anyhow::Result<()> {
        for bad in bad_rows {
            let line = bad.line.to_string();
            self.writer.write_record([file, &line, &bad.column, &bad.reason, &bad.message, &bad.text])?;
        }
        Ok(self.writer.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_and_a_resumed_run_appends_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rejects.csv");
        let bad = BadRow {
            line: 7,
            column: "units".into(),
            reason: "UNREADABLE".into(),
            message: "must be a number, got \"x\"".into(),
            text: "a,\"b\",x".into(),
        };
        Rejects::open(&path, false).unwrap().add("f.csv", std::slice::from_ref(&bad)).unwrap();
        Rejects::open(&path, true).unwrap().add("f.csv", &[bad]).unwrap();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].iter().collect::<Vec<_>>()[..3], ["f.csv", "7", "units"]);
        assert_eq!(&records[0][5], "a,\"b\",x");
        Rejects::open(&path, false).unwrap();
        assert_eq!(csv::Reader::from_path(&path).unwrap().records().count(), 0);
    }
}
