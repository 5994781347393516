//! Encodes rows in PostgreSQL's binary formats.
//!
//! For COPY this is the format of the manual's chapter "COPY", section "Binary Format". For composite values it is the
//! format that `record_recv` in rowtypes.c reads, which has the type of each field before its length.

use crate::numeric;
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use ethnum::I256;
use meterd_domain::decimal::{Decimal, Total};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgCopyIn, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};

/// Number of buffered bytes at which the buffer is sent to the server.
const CHUNK_BYTES: usize = 128 * 1024;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// 2000-01-01, the epoch of PostgreSQL's dates, as [`Datelike::num_days_from_ce`] counts days.
const EPOCH_DAYS_FROM_CE: i32 = 730_120;
/// The same day in microseconds from 1970-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Length of a NULL field.
const NULL: i32 = -1;

/// Object identifiers of built-in types, from pg_type.dat.
mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const INT8: u32 = 20;
    pub const INT4: u32 = 23;
    pub const INT2: u32 = 21;
    pub const TEXT: u32 = 25;
    pub const DATE: u32 = 1082;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const NUMERIC: u32 = 1700;
    pub const JSONB: u32 = 3802;
}

/// A value that can be encoded as a row.
pub trait Fields {
    /// Name of the composite type with the same fields.
    const TYPE: &'static str;
    /// Number of fields.
    const COUNT: u16;

    /// Writes every field, in order.
    fn put(&self, row: &mut Row<'_>);
}

/// Writes the fields of one row to a buffer.
pub struct Row<'b> {
    out: &'b mut Vec<u8>,
    /// Whether the identifier of its type precedes each field, as in a composite value.
    typed: bool,
}

/// A running COPY into a table. The rows are inserted only if [`CopyIn::finish`] succeeds.
pub struct CopyIn<'c> {
    copy: PgCopyIn<&'c mut PgConnection>,
    out: Vec<u8>,
}

impl<'c> CopyIn<'c> {
    /// Starts `COPY ... FROM STDIN (FORMAT binary)`.
    pub async fn begin(conn: &'c mut PgConnection, statement: &str) -> crate::Result<Self> {
        let copy = conn.copy_in_raw(statement).await?;
        let mut out = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        out.extend_from_slice(SIGNATURE);
        // No flags and no header extension.
        out.extend_from_slice(&[0; 8]);
        Ok(Self { copy, out })
    }

    /// Appends a row. Sends the buffer if it has reached `CHUNK_BYTES`.
    pub async fn add<F: Fields>(&mut self, fields: &F) -> crate::Result<()> {
        self.out.extend_from_slice(&F::COUNT.to_be_bytes());
        fields.put(&mut Row { out: &mut self.out, typed: false });
        if self.out.len() >= CHUNK_BYTES {
            self.copy.send(&*self.out).await?;
            self.out.clear();
        }
        Ok(())
    }

    /// Sends the remaining rows and ends the COPY.
    pub async fn finish(mut self) -> crate::Result<()> {
        // The end of the data: -1 instead of a row's number of fields.
        self.out.extend_from_slice(&(-1i16).to_be_bytes());
        self.copy.send(&*self.out).await?;
        self.copy.finish().await.map(drop).map_err(Into::into)
    }
}

/// Encodes a row as a value of its composite type.
pub struct Composite<F>(pub F);

impl<F: Fields> Type<Postgres> for Composite<F> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name(F::TYPE)
    }
}

impl<F: Fields> PgHasArrayType for Composite<F> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of(F::TYPE)
    }
}

impl<F: Fields> Encode<'_, Postgres> for Composite<F> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&u32::from(F::COUNT).to_be_bytes());
        self.0.put(&mut Row { out: buffer, typed: true });
        Ok(IsNull::No)
    }
}

impl Row<'_> {
    fn field(&mut self, oid: u32, value: Option<&[u8]>) {
        self.field_with(oid, value, |out, value| out.extend_from_slice(value));
    }

    fn field_with<T>(&mut self, oid: u32, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
        if self.typed {
            self.out.extend_from_slice(&oid.to_be_bytes());
        }
        let start = self.out.len();
        self.out.extend_from_slice(&NULL.to_be_bytes());
        if let Some(value) = value {
            put(self.out, value);
            let bytes = (self.out.len() - start - NULL.to_be_bytes().len()) as i32;
            self.out[start..start + 4].copy_from_slice(&bytes.to_be_bytes());
        }
    }

    /// Writes a `text` field.
    pub fn text(&mut self, value: &str) {
        self.field(oid::TEXT, Some(value.as_bytes()));
    }

    /// Writes a `text` field that may be NULL.
    pub fn optional_text(&mut self, value: Option<&str>) {
        self.field(oid::TEXT, value.map(str::as_bytes));
    }

    /// Writes a `bytea` field.
    pub fn bytes(&mut self, value: &[u8]) {
        self.field(oid::BYTEA, Some(value));
    }

    /// Writes a `bigint` field.
    pub fn int8(&mut self, value: impl Into<Option<i64>>) {
        self.field(oid::INT8, value.into().map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
    }

    /// Writes an `integer` field.
    pub fn int4(&mut self, value: i32) {
        self.field(oid::INT4, Some(&value.to_be_bytes()));
    }

    /// Writes a `smallint` field.
    pub fn int2(&mut self, value: impl Into<Option<i16>>) {
        self.field(oid::INT2, value.into().map(i16::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
    }

    /// Writes a `boolean` field.
    pub fn bool(&mut self, value: bool) {
        self.field(oid::BOOL, Some(&[u8::from(value)]));
    }

    /// Writes a `timestamptz` field.
    pub fn time(&mut self, value: DateTime<Utc>) {
        self.field(oid::TIMESTAMPTZ, Some(&(value.timestamp_micros() - EPOCH_MICROS).to_be_bytes()));
    }

    /// Writes a `date` field.
    pub fn date(&mut self, value: impl Into<Option<NaiveDate>>) {
        let days = |day: NaiveDate| (day.num_days_from_ce() - EPOCH_DAYS_FROM_CE).to_be_bytes();
        self.field(oid::DATE, value.into().map(days).as_ref().map(|bytes| &bytes[..]));
    }

    /// Writes a `jsonb` field from JSON text.
    pub fn jsonb(&mut self, value: Option<&str>) {
        const VERSION: u8 = 1;
        self.field_with(oid::JSONB, value, |out, value| {
            out.push(VERSION);
            out.extend_from_slice(value.as_bytes());
        });
    }

    /// Writes a `numeric` field.
    pub fn decimal(&mut self, value: impl Into<Option<Decimal>>) {
        self.field_with(oid::NUMERIC, value.into(), |out, value| numeric::put(out, I256::from(value.scaled())));
    }

    /// Writes a `numeric` field.
    pub fn total(&mut self, value: impl Into<Option<Total>>) {
        self.field_with(oid::NUMERIC, value.into().map(Total::scaled), numeric::put);
    }
}
