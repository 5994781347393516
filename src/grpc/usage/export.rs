//! ExportUsage: streams a file in pieces.

use crate::grpc::Context;
use crate::grpc::layers::admission::AdmissionPermit;
use crate::grpc::layers::panics::stream_from_task;
use crate::grpc::layers::slots::Slot;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::convert::unix_time;
use crate::grpc::wire::status::status;
use crate::proto::{self, ExportUsageRequest, ExportUsageResponse};
use futures_util::TryStreamExt;
use meterd_engine::counters::Resource;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_engine::usage::export_file::File;
use meterd_engine::usage::{Export, ExportFormat, ExportInput, too_many_exports};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Size at which a piece is sent.
const PIECE_BYTES: usize = 64 * 1024;
/// Maximum number of pieces that wait for a slow caller. The export reads no more rows while this many wait.
const PIECES_WAITING_MAX: usize = 4;
/// A caller that reads no piece for this time is disconnected, because the export keeps a snapshot and a connection.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Takes a slot of the caller, which has at most half of all slots, and fewer while other callers have some.
pub fn slot_of_caller(context: &Context, request: &tonic::Request<ExportUsageRequest>) -> Result<Slot, Refusal> {
    AdmissionPermit::take_for_caller(request, Resource::Exports, context.engine.config.exports_max, 2)
        .ok_or_else(|| too_many_exports("of the key "))
}

/// Checks the request and starts the export in its own task.
pub async fn start(
    context: Arc<Context>,
    request: ExportUsageRequest,
    slot_of_caller: Slot,
) -> Result<ReceiverStream<Result<ExportUsageResponse, Status>>, Refusal> {
    let input = ExportInput {
        client_id: request.client_id,
        start_time: request.start_time.as_ref().map(unix_time),
        end_time: request.end_time.as_ref().map(unix_time),
        start_date: request.start_date,
        end_date: request.end_date,
        services: request.services,
        labels: request.labels,
        format: format(request.format),
    };
    let export = Export::check(&context.engine, input).await?;
    Ok(stream_from_task(PIECES_WAITING_MAX, |pieces| async move {
        let _slot_of_caller = slot_of_caller;
        send_file(&context, &export, &pieces).await.map_err(status)
    }))
}

fn format(number: i32) -> Result<ExportFormat, String> {
    match proto::ExportFormat::try_from(number) {
        Ok(proto::ExportFormat::Ndjson) => Ok(ExportFormat::Ndjson),
        Ok(_) => Ok(ExportFormat::Csv),
        Err(_) => Err(number.to_string()),
    }
}

type Pieces = mpsc::Sender<Result<ExportUsageResponse, Status>>;

async fn send_file(context: &Context, export: &Export, pieces: &Pieces) -> Result<(), Refusal> {
    let mut snapshot = export.begin(&context.engine).await?;
    let complete_as_of_time = Some(timestamp(snapshot.complete_as_of));
    let piece = |data: Vec<u8>, event_count, empty_services| {
        let data = data.into();
        ExportUsageResponse { data, event_count, complete_as_of_time, empty_services }
    };
    let mut file = File::new(export.format, context.engine.currency.clone());
    let mut tally = export.tally();
    let mut events = std::pin::pin!(snapshot.events(&export.filter));
    while let Some(event) = events.try_next().await? {
        tally.add(&event);
        file.write(&event);
        let is_full = file.bytes.len() >= PIECE_BYTES;
        if is_full && !send(context, pieces, piece(file.take(), tally.event_count, vec![])).await? {
            return Ok(());
        }
    }
    send(context, pieces, piece(file.take(), tally.event_count, tally.empty_services)).await?;
    Ok(())
}

/// Sends a piece. Returns `false` if the caller has disconnected.
async fn send(context: &Context, pieces: &Pieces, piece: ExportUsageResponse) -> Result<bool, Refusal> {
    let mut stopping = context.stopping.clone();
    let sent = tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => return Err(Refusal::shutting_down()),
        sent = tokio::time::timeout(STALLED_AFTER, pieces.send(Ok(piece))) => sent,
    };
    match sent {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => {
            let message = format!("no piece was read for {} seconds; export again", STALLED_AFTER.as_secs());
            Err(Refusal::new(Reason::DeadlineExceeded, message))
        }
    }
}
