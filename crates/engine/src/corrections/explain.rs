//! Explains the charge of a recorded event.

use crate::catalog::estimate::{EstimateLine, lines};
use crate::engine::Engine;
use crate::refusal::Refusal;
use crate::usage::get_event;
use meterd_domain::event::Charge;
use meterd_store::catalog::{self as store, StoredPrice};
use meterd_store::usage::adjustments::{self, Adjustment, AdjustmentFilter};
use meterd_store::usage::events::RecordedEvent;

/// Maximum number of adjustments of an event that are shown.
const ADJUSTMENTS_MAX: i64 = 1_000;

/// The charge of an event, and where it comes from.
pub struct Explanation {
    pub recorded: RecordedEvent,
    /// The price that was applied. `None` if the event is unpriced.
    pub price: Option<StoredPrice>,
    /// The components of the charge. Their sum is the charge before it was rounded.
    pub lines: Vec<EstimateLine>,
    /// The oldest first.
    pub adjustments: Vec<Adjustment>,
}

/// Explains the charge of an event.
pub async fn explain(engine: &Engine, client_id: &str, event_id: &str) -> Result<Explanation, Refusal> {
    let recorded = get_event(engine, client_id, event_id).await?;
    let price = match recorded.charge {
        Charge::Priced { price_id, .. } => store::price(&mut *engine.pool.acquire().await?, price_id).await?,
        Charge::Unpriced(_) => None,
    };
    let of_price = |price: &StoredPrice| lines(&price.rates, &recorded.event.measures, recorded.tiers.current.as_ref());
    let lines = price.as_ref().map(of_price).unwrap_or_default();
    let filter =
        AdjustmentFilter { client_id, event: Some(recorded.id), run_id: None, start_time: None, end_time: None };
    let adjustments = adjustments::list(&engine.pool, &filter, None, ADJUSTMENTS_MAX).await?;
    Ok(Explanation { recorded, price, lines, adjustments })
}
