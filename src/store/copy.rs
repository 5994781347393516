//! Rows in PostgreSQL's binary COPY format (its manual, chapter "COPY", section "Binary Format").

use super::numeric;
use crate::domain::decimal::Decimal;
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use ethnum::I256;
use sqlx::postgres::{PgConnection, PgCopyIn};

/// Sent when so much has gathered.
const CHUNK_BYTES: usize = 128 * 1024;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// 2000-01-01, which the database counts days and microseconds from.
const EPOCH_DAYS_FROM_CE: i32 = 730_120;
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Rows on their way into a table. What is not finished is not copied.
pub struct CopyIn<'c> {
    copy: PgCopyIn<&'c mut PgConnection>,
    row: Row,
    columns: i16,
}

/// Fields of a row, in the order of the columns.
pub struct Row(Vec<u8>);

impl<'c> CopyIn<'c> {
    /// Begins `COPY ... FROM STDIN (FORMAT binary)` with so many columns.
    pub async fn begin(conn: &'c mut PgConnection, statement: &str, columns: i16) -> sqlx::Result<Self> {
        let copy = conn.copy_in_raw(statement).await?;
        let mut row = Row(Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4));
        row.0.extend_from_slice(SIGNATURE);
        // Neither flags nor an extension of the header.
        row.0.extend_from_slice(&[0; 8]);
        Ok(Self { copy, row, columns })
    }

    /// Adds a row; `fields` puts one value a column.
    pub async fn add(&mut self, fields: impl FnOnce(&mut Row)) -> sqlx::Result<()> {
        self.row.0.extend_from_slice(&self.columns.to_be_bytes());
        fields(&mut self.row);
        if self.row.0.len() >= CHUNK_BYTES {
            self.copy.send(&*self.row.0).await?;
            self.row.0.clear();
        }
        Ok(())
    }

    /// Ends the copy.
    pub async fn finish(mut self) -> sqlx::Result<()> {
        self.row.0.extend_from_slice(&(-1i16).to_be_bytes());
        self.copy.send(&*self.row.0).await?;
        self.copy.finish().await.map(drop)
    }
}

impl Row {
    /// `bytea`, and `text` as its bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.0.extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.0.extend_from_slice(value);
    }

    pub fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub fn null(&mut self) {
        self.0.extend_from_slice(&(-1i32).to_be_bytes());
    }

    /// A value, or null.
    pub fn optional<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => put(self, value),
            None => self.null(),
        }
    }

    /// `bigint`
    pub fn int8(&mut self, value: i64) {
        self.bytes(&value.to_be_bytes());
    }

    /// `smallint`
    pub fn int2(&mut self, value: i16) {
        self.bytes(&value.to_be_bytes());
    }

    /// `boolean`
    pub fn bool(&mut self, value: bool) {
        self.bytes(&[u8::from(value)]);
    }

    /// `timestamptz`
    pub fn time(&mut self, value: DateTime<Utc>) {
        self.int8(value.timestamp_micros() - EPOCH_MICROS);
    }

    /// `date`
    pub fn date(&mut self, value: NaiveDate) {
        self.bytes(&(value.num_days_from_ce() - EPOCH_DAYS_FROM_CE).to_be_bytes());
    }

    /// `jsonb`, from its text.
    pub fn jsonb(&mut self, value: &str) {
        const VERSION: u8 = 1;
        self.0.extend_from_slice(&(value.len() as i32 + 1).to_be_bytes());
        self.0.push(VERSION);
        self.0.extend_from_slice(value.as_bytes());
    }

    /// `numeric`
    pub fn numeric(&mut self, value: Decimal) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        numeric::put(&mut self.0, I256::from(value.scaled()));
        let bytes = (self.0.len() - start - 4) as i32;
        self.0[start..start + 4].copy_from_slice(&bytes.to_be_bytes());
    }
}
