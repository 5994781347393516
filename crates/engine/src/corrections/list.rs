//! Lists adjustments.

use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::paging::{Page, PageRequest};
use crate::refusal::Refusal;
use meterd_domain::event::{EventId, ID_BYTES_MAX};
use meterd_store::usage::adjustments::{self, AdjustmentFilter};

pub use meterd_store::usage::adjustments::{Adjustment, AdjustmentCursor};

/// Which adjustments to list. Empty filters select everything.
#[derive(Debug, Default)]
pub struct AdjustmentListInput {
    pub client_id: String,
    pub event_id: String,
    pub run_id: String,
    /// The earliest time of an adjustment, included.
    pub start_time: Option<UnixTime>,
    /// The latest time, not included.
    pub end_time: Option<UnixTime>,
}

/// Lists the adjustments of a client, the oldest first.
pub async fn list(
    engine: &Engine,
    input: AdjustmentListInput,
    page: PageRequest<AdjustmentCursor>,
) -> Result<Page<Adjustment, AdjustmentCursor>, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &input.client_id, ID_BYTES_MAX);
    fields.text("event_id", &input.event_id, ID_BYTES_MAX);
    fields.text("run_id", &input.run_id, ID_BYTES_MAX);
    let (start_time, end_time) = fields.times(input.start_time, input.end_time);
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?;
    crate::clients::existing(engine, &input.client_id).await?;
    let event = (!input.event_id.is_empty()).then(|| EventId::parse(&input.event_id));
    let run_id = (!input.run_id.is_empty()).then(|| input.run_id.parse().ok());
    // Ids that are not possible have no adjustments.
    let (Some(event), Some(run_id)) =
        (event.map_or(Some(None), |id| id.map(Some)), run_id.map_or(Some(None), |id: Option<i64>| id.map(Some)))
    else {
        return Ok(Page { rows: vec![], next: None });
    };
    let filter = AdjustmentFilter { client_id: &input.client_id, event, run_id, start_time, end_time };
    let rows = adjustments::list(&engine.pool, &filter, after, size + 1).await?;
    Ok(Page::of(rows, size, |last| (last.adjust_time, last.event.time, last.event.seq, last.number)))
}
