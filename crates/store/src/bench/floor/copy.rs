//! Floor (e): binary COPY of the events into one table with the same unique key, and nothing else. Only the benchmarks
//! use it.

use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, PricedEvent};
use sqlx::{Executor, PgConnection};

/// Header of a binary COPY: the signature, no flags and no extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// End of the data: -1 instead of a row's number of fields.
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();
/// Length of a NULL field.
const NULL: [u8; 4] = (-1i32).to_be_bytes();
const FIELDS: i16 = 19;
const STATEMENT: &str = "COPY floor_copied (client_id, idempotency_key, event_time, event_seq, day, service, operation, \
     model, units, input_tokens, output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, \
     external_id, metadata) FROM STDIN (FORMAT binary)";
/// 2000-01-01, the epoch of PostgreSQL's times, in seconds from 1970-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;
/// The same epoch as a day.
const EPOCH_DAY: NaiveDate = NaiveDate::from_ymd_opt(2000, 1, 1).expect("is a day");
/// The digits of a `numeric` have base 10,000. A decimal needs ten of them: three for its 12 decimal places and seven
/// for its integer part.
const NUMERIC_BASE: i128 = 10_000;
const NUMERIC_DIGITS: usize = 10;
const NUMERIC_FRACTION_DIGITS: usize = 3;
/// Version of the binary `jsonb` format.
const JSONB_VERSION: u8 = 1;

/// Drops the table if it exists and creates it without rows.
pub async fn create_copied(conn: &mut PgConnection) -> crate::Result<()> {
    let statements = r#"
        DROP TABLE IF EXISTS floor_copied;
        CREATE TABLE floor_copied (
            client_id            text COLLATE "C" NOT NULL,
            idempotency_key      text COLLATE "C" NOT NULL,
            event_time           timestamptz NOT NULL,
            event_seq            bigint NOT NULL,
            day                  date NOT NULL,
            service              text COLLATE "C" NOT NULL,
            operation            text COLLATE "C" NOT NULL,
            model                text COLLATE "C" NOT NULL,
            units                numeric NOT NULL,
            input_tokens         bigint NOT NULL,
            output_tokens        bigint NOT NULL,
            cached_input_tokens  bigint NOT NULL,
            amount               numeric,
            charge               numeric,
            price_id             bigint,
            unpriced_reason      smallint,
            subject              text COLLATE "C" NOT NULL,
            external_id          text COLLATE "C" NOT NULL,
            metadata             jsonb,
            record_time          timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (client_id, idempotency_key)
        )"#;
    conn.execute(statements).await.map(drop).map_err(Into::into)
}

/// Returns the number of rows in the table and the sum of their charges.
pub async fn sum_copied(conn: &mut PgConnection) -> crate::Result<(i64, bigdecimal::BigDecimal)> {
    sqlx::query_as("SELECT count(*), COALESCE(sum(charge), 0) FROM floor_copied")
        .fetch_one(conn)
        .await
        .map_err(Into::into)
}

/// Copies rows in their own transaction. Returns the number of rows.
pub async fn copy(conn: &mut PgConnection, rows: CopyRows) -> crate::Result<u64> {
    let mut copy = conn.copy_in_raw(STATEMENT).await?;
    let CopyRows(mut bytes) = rows;
    bytes.extend_from_slice(&TRAILER);
    copy.send(bytes).await?;
    copy.finish().await.map_err(Into::into)
}

/// Rows in the binary format of COPY.
pub struct CopyRows(Vec<u8>);

impl Default for CopyRows {
    fn default() -> Self {
        Self(HEADER.to_vec())
    }
}

impl CopyRows {
    /// Appends an event.
    pub fn push(&mut self, priced: &PricedEvent<'_>) {
        let (event, measures) = (priced.event, &priced.event.measures);
        let (charge, price_id, reason) = match priced.charge {
            Charge::Priced { charge, price_id } => (Some(charge), Some(price_id), None),
            Charge::Unpriced(reason) => (None, None, Some(reason as i16)),
        };
        self.0.extend_from_slice(&FIELDS.to_be_bytes());
        self.field(event.client_id.as_bytes());
        self.field(event.idempotency_key.as_bytes());
        self.field(&micros(priced.id.time).to_be_bytes());
        self.field(&priced.id.seq.to_be_bytes());
        self.field(&days(priced.day).to_be_bytes());
        for text in [&event.service, &event.operation, &event.model] {
            self.field(text.as_bytes());
        }
        self.numeric(measures.units);
        for tokens in [measures.input_tokens, measures.output_tokens, measures.cached_input_tokens] {
            self.field(&tokens.to_be_bytes());
        }
        for decimal in [measures.amount, charge] {
            match decimal {
                Some(decimal) => self.numeric(decimal),
                None => self.0.extend_from_slice(&NULL),
            }
        }
        self.field_or_null(price_id.map(i64::to_be_bytes));
        self.field_or_null(reason.map(i16::to_be_bytes));
        self.field(event.subject.as_bytes());
        self.field(event.external_id.as_bytes());
        self.field_or_null(event.metadata.as_ref().map(|json| [&[JSONB_VERSION], json.as_bytes()].concat()));
    }

    fn field(&mut self, bytes: &[u8]) {
        let length = i32::try_from(bytes.len()).expect("a field is shorter than a message");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn field_or_null(&mut self, bytes: Option<impl AsRef<[u8]>>) {
        match bytes {
            Some(bytes) => self.field(bytes.as_ref()),
            None => self.0.extend_from_slice(&NULL),
        }
    }

    /// Writes a `numeric`: the number of digits, the weight of the first digit, the sign, the number of decimals to
    /// show, and the digits.
    fn numeric(&mut self, value: Decimal) {
        let mut digits = [0u16; NUMERIC_DIGITS];
        let mut rest = value.scaled();
        for digit in digits.iter_mut().rev() {
            *digit = u16::try_from(rest % NUMERIC_BASE).expect("a decimal is zero or more");
            rest /= NUMERIC_BASE;
        }
        let first = digits.iter().position(|&digit| digit != 0).unwrap_or(NUMERIC_DIGITS);
        let end = digits.iter().rposition(|&digit| digit != 0).map_or(first, |last| last + 1);
        let point = NUMERIC_DIGITS - NUMERIC_FRACTION_DIGITS;
        let weight = if first == end { 0 } else { point as i16 - 1 - first as i16 };
        let decimals = 4 * if first == end { 0 } else { end.saturating_sub(point) as u16 };
        let digits = &digits[first..end];
        let length = 8 + 2 * digits.len() as i32;
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(&(digits.len() as i16).to_be_bytes());
        self.0.extend_from_slice(&weight.to_be_bytes());
        self.0.extend_from_slice(&0u16.to_be_bytes());
        self.0.extend_from_slice(&decimals.to_be_bytes());
        for digit in digits {
            self.0.extend_from_slice(&digit.to_be_bytes());
        }
    }
}

fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros() - EPOCH_SECONDS * 1_000_000
}

fn days(day: NaiveDate) -> i32 {
    i32::try_from((day - EPOCH_DAY).num_days()).expect("a day is near our time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_encoded_as_numeric() {
        // Number of digits, weight, sign, number of decimals, and the digits of base 10,000.
        for (text, expected) in [
            ("0", vec![0, 0, 0, 0]),
            ("1", vec![1, 0, 0, 0, 1]),
            ("10000", vec![1, 1, 0, 0, 1]),
            ("12345.5", vec![3, 1, 0, 4, 1, 2345, 5000]),
            ("0.0000825", vec![1, (-2i16) as u16, 0, 8, 8250]),
            ("0.000000000001", vec![1, (-3i16) as u16, 0, 12, 1]),
        ] {
            let mut rows = CopyRows(vec![]);
            rows.numeric(Decimal::parse(text).unwrap());
            let words: Vec<u16> = rows.0[4..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!(rows.0[..4], i32::try_from(rows.0.len() - 4).unwrap().to_be_bytes(), "{text}");
            assert_eq!(words, expected, "{text}");
        }
    }
}
