//! ExportUsage: a file in pieces.

use crate::error::Error;
use crate::grpc::Context;
use crate::grpc::clients;
use crate::grpc::layers::admission::AdmissionPermit;
use crate::grpc::layers::panics::stream_from_task;
use crate::grpc::layers::slots::Slot;
use crate::grpc::usage::export_file::File;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::Fields;
use crate::net::Resource;
use crate::proto::{ErrorReason, ExportFormat, ExportUsageRequest, ExportUsageResponse};
use futures_util::TryStreamExt;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::connect::allow_long_statements;
use meterd_store::export::{ExportFilter, stream};
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
/// When to ask again for one of the slots.
const RETRY_DELAY: Duration = Duration::from_secs(5);

fn too_many(whose: &str) -> Error {
    let message = format!("too many exports {whose}run at once; retry later");
    Error::exhausted(ErrorReason::TooManyExports, message, RETRY_DELAY)
}

/// A slot among the exports of a caller, which has at most half of them, and less while others have some.
pub fn place_of_caller(context: &Context, request: &tonic::Request<ExportUsageRequest>) -> Result<Slot, Error> {
    AdmissionPermit::take_for_caller(request, Resource::Exports, context.exports_max, 2)
        .ok_or_else(|| too_many("of the key "))
}

/// Checks the request and starts the export in a task of its own.
pub async fn start(
    context: Arc<Context>,
    request: ExportUsageRequest,
    place_of_caller: Slot,
) -> Result<ReceiverStream<Result<ExportUsageResponse, Status>>, Error> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    let (start_time, end_time) = fields.times(request.start_time.as_ref(), request.end_time.as_ref());
    let (start_day, end_day) = fields.optional_days(&request.start_date, &request.end_date);
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
    let slot = context.exports.clone().try_acquire_owned().map_err(|_| too_many(""))?;
    let filter = ExportFilter { client_id, start_time, end_time, start_day, end_day, services: request.services };
    Ok(stream_from_task(PIECES_WAITING_MAX, |pieces| async move {
        let _place_of_caller = place_of_caller;
        Ok(export(&context, &filter, format, &pieces, slot).await?)
    }))
}

type Pieces = mpsc::Sender<Result<ExportUsageResponse, Status>>;

async fn export(
    context: &Context,
    filter: &ExportFilter,
    format: ExportFormat,
    pieces: &Pieces,
    _slot: OwnedSemaphorePermit,
) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    // An export that ends early leaves rows unread: the pool would read them all before it has the connection back.
    conn.close_on_drop();
    let mut tx = conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    allow_long_statements(&mut tx).await?;
    let complete_as_of = meterd_store::export::snapshot_time(&mut tx).await?;
    let piece = |data: Vec<u8>, event_count, empty_services| ExportUsageResponse {
        data: data.into(),
        event_count,
        complete_as_of_time: Some(timestamp(complete_as_of)),
        empty_services,
    };
    let mut file = File::new(format, context.currency.clone());
    let mut count = 0;
    let mut empty_services = filter.services.clone();
    let mut events = std::pin::pin!(stream(&mut tx, filter));
    while let Some(event) = events.try_next().await? {
        count += 1;
        file.write(&event);
        if !empty_services.is_empty() {
            empty_services.retain(|service| *service != event.service);
        }
        if file.bytes.len() >= PIECE_BYTES && !send(context, pieces, piece(file.take(), count, vec![])).await? {
            return Ok(());
        }
    }
    send(context, pieces, piece(file.take(), count, empty_services)).await?;
    Ok(())
}

/// Sends a piece. False, when nobody reads any more.
async fn send(context: &Context, pieces: &Pieces, piece: ExportUsageResponse) -> Result<bool, Error> {
    let mut stopping = context.stopping.clone();
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
