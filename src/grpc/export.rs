//! ExportUsage: a file in pieces.

use super::convert::timestamp;
use super::fields::Fields;
use super::panics::answer_of_a_task;
use super::{Context, clients};
use crate::domain::event::{Charge, ID_BYTES_MAX, UnpricedReason};
use crate::error::Error;
use crate::proto::{self, ErrorReason, ExportFormat, ExportUsageRequest, ExportUsageResponse};
use crate::store::connect::allow_long_statements;
use crate::store::events::RecordedEvent;
use crate::store::export::{ExportFilter, stream};
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::TryStreamExt;
use sqlx::Connection;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A piece is sent when it has grown to this.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait for a slow reader; then the database waits too.
const PIECES_WAITING_MAX: usize = 4;
/// A reader that takes no piece for so long is cut off: it holds a snapshot and a connection.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// When to ask again for one of the places.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Columns of the CSV and keys of the NDJSON. An import maps them by these names.
const COLUMNS: [&str; 21] = [
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
];

/// Checks the request and starts the export in a task of its own.
pub async fn start(
    context: Arc<Context>,
    request: ExportUsageRequest,
) -> Result<ReceiverStream<Result<ExportUsageResponse, Status>>, Error> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    let (start_time, end_time) = fields.times(request.start_time.as_ref(), request.end_time.as_ref());
    fields.filter("services", &request.services);
    let format = ExportFormat::try_from(request.format).unwrap_or_else(|_| {
        fields.wrong("format", format!("{} is no format", request.format));
        ExportFormat::Csv
    });
    fields.finish()?;
    let client_id = (!request.client_id.is_empty()).then_some(request.client_id);
    if let Some(client_id) = &client_id {
        clients::existing(&context, client_id).await?;
    }
    let place = context.exports.clone().try_acquire_owned().map_err(|_| {
        Error::exhausted(ErrorReason::TooManyExports, "too many exports run at once; try again", RETRY_DELAY)
    })?;
    let filter = ExportFilter { client_id, start_time, end_time, services: request.services };
    Ok(answer_of_a_task(PIECES_WAITING_MAX, |pieces| async move {
        Ok(export(&context, &filter, format, &pieces, place).await?)
    }))
}

type Pieces = mpsc::Sender<Result<ExportUsageResponse, Status>>;

async fn export(
    context: &Context,
    filter: &ExportFilter,
    format: ExportFormat,
    pieces: &Pieces,
    _place: OwnedSemaphorePermit,
) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    // An export that ends early leaves rows unread: the pool would read them all before it has the connection back.
    conn.close_on_drop();
    let mut tx = conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    allow_long_statements(&mut tx).await?;
    let complete_as_of = crate::store::export::snapshot_time(&mut tx).await?;
    let mut file = File::new(format, context.currency.clone());
    let mut count = 0;
    let mut events = std::pin::pin!(stream(&mut tx, filter));
    while let Some(event) = events.try_next().await? {
        count += 1;
        file.write(event)?;
        if file.bytes.len() >= PIECE_BYTES && !send(context, pieces, file.take(), count, complete_as_of).await? {
            return Ok(());
        }
    }
    send(context, pieces, file.take(), count, complete_as_of).await?;
    Ok(())
}

/// Sends a piece. False, when nobody reads any more.
async fn send(
    context: &Context,
    pieces: &Pieces,
    data: Vec<u8>,
    event_count: i64,
    complete_as_of: DateTime<Utc>,
) -> Result<bool, Error> {
    let mut stopping = context.stopping.clone();
    let piece =
        ExportUsageResponse { data: data.into(), event_count, complete_as_of_time: Some(timestamp(complete_as_of)) };
    let sent = tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => return Err(Error::shutting_down()),
        sent = tokio::time::timeout(STALLED_AFTER, pieces.send(Ok(piece))) => sent,
    };
    match sent {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => {
            let message = format!("no piece was read for {} seconds; export again", STALLED_AFTER.as_secs());
            Err(Error::new(tonic::Code::DeadlineExceeded, ErrorReason::DeadlineExceeded, message))
        }
    }
}

/// The file as far as it has not been sent.
struct File {
    format: ExportFormat,
    currency: String,
    bytes: Vec<u8>,
}

impl File {
    fn new(format: ExportFormat, currency: String) -> Self {
        let header = match format {
            ExportFormat::Ndjson => String::new(),
            _ => COLUMNS.join(",") + "\r\n",
        };
        Self { format, currency, bytes: header.into_bytes() }
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    fn write(&mut self, recorded: RecordedEvent) -> Result<(), Error> {
        let cells = cells(recorded, &self.currency);
        match self.format {
            ExportFormat::Ndjson => {
                let object: serde_json::Map<_, _> = COLUMNS
                    .iter()
                    .zip(cells)
                    .filter(|(_, cell)| !cell.is_absent())
                    .map(|(column, cell)| (column.to_string(), cell.json()))
                    .collect();
                serde_json::to_writer(&mut self.bytes, &object).map_err(Error::internal)?;
                self.bytes.push(b'\n');
            }
            _ => {
                let mut writer =
                    csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(&mut self.bytes);
                writer.write_record(cells.iter().map(Cell::csv)).map_err(Error::internal)?;
                writer.flush().map_err(Error::internal)?;
            }
        }
        Ok(())
    }
}

/// One value of a row.
enum Cell {
    /// From outside: guarded in CSV.
    Text(String),
    /// Decimal in plain digits, a time, an id of ours: never a formula.
    Plain(String),
    Number(i64),
    Json(String),
}

impl Cell {
    fn is_absent(&self) -> bool {
        match self {
            Self::Text(text) | Self::Plain(text) | Self::Json(text) => text.is_empty(),
            Self::Number(_) => false,
        }
    }

    fn json(self) -> serde_json::Value {
        match self {
            Self::Text(text) | Self::Plain(text) => text.into(),
            Self::Number(number) => number.into(),
            Self::Json(text) => serde_json::from_str(&text).unwrap_or(serde_json::Value::Null),
        }
    }

    fn csv(&self) -> String {
        match self {
            Self::Text(text) | Self::Json(text) => defuse(text),
            Self::Plain(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Puts a ' before what a spreadsheet would take for a formula, and before what looks as if it had one already, so that
/// taking it off again gives the text back.
fn defuse(text: &str) -> String {
    let bare = text.trim_start_matches('\'');
    if bare.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.into() }
}

fn cells(recorded: RecordedEvent, currency: &str) -> [Cell; COLUMNS.len()] {
    let event = recorded.event;
    let (charge, currency, price_id, reason) = match recorded.charge {
        Charge::Priced { charge, price_id } => (charge.to_string(), currency.into(), price_id.to_string(), ""),
        Charge::Unpriced(reason) => (String::new(), String::new(), String::new(), reason_name(reason)),
    };
    [
        Cell::Plain(recorded.id.to_string()),
        Cell::Text(event.client_id.to_string()),
        Cell::Plain(recorded.day.to_string()),
        Cell::Plain(event.event_time.to_rfc3339_opts(SecondsFormat::Micros, true)),
        Cell::Text(event.service.to_string()),
        Cell::Text(event.operation.to_string()),
        Cell::Text(event.model.to_string()),
        Cell::Plain(event.measures.units.to_string()),
        Cell::Number(event.measures.input_tokens),
        Cell::Number(event.measures.output_tokens),
        Cell::Number(event.measures.cached_input_tokens),
        Cell::Plain(event.measures.amount.map(|amount| amount.to_string()).unwrap_or_default()),
        Cell::Plain(currency),
        Cell::Plain(charge),
        Cell::Plain(price_id),
        Cell::Plain(reason.into()),
        Cell::Text(event.subject),
        Cell::Text(event.external_id),
        Cell::Text(event.idempotency_key.to_string()),
        Cell::Json(event.metadata.unwrap_or_default()),
        Cell::Plain(recorded.record_time.to_rfc3339_opts(SecondsFormat::Micros, true)),
    ]
}

fn reason_name(reason: UnpricedReason) -> &'static str {
    let reason = proto::UnpricedReason::try_from(reason as i32).unwrap_or_default();
    reason.as_str_name().trim_start_matches("UNPRICED_REASON_")
}

#[cfg(test)]
mod tests {
    use super::defuse;

    #[test]
    fn formulas_are_defused_and_texts_are_left_alone() {
        for text in ["=1+1", "+1", "-1", "@a", "\tx", "\rx", "'=1", "''-"] {
            assert_eq!(defuse(text), format!("'{text}"));
        }
        for text in ["", "a=1", "'quoted'", "5"] {
            assert_eq!(defuse(text), text);
        }
    }
}
