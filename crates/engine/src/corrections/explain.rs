//! Explains the charge of a recorded event, and the cost of days by price.

use crate::catalog::estimate::{EstimateLine, lines};
use crate::clients;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::usage::get_event;
use chrono::{DateTime, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::{Charge, ID_BYTES_MAX};
use meterd_domain::price::{Line, sum_of};
use meterd_store::catalog::{self as store, PriceFilter, StoredPrice};
use meterd_store::usage::adjustments::{self, Adjustment, AdjustmentFilter};
use meterd_store::usage::events::RecordedEvent;
use meterd_store::usage::explain::{self, ExplainFilter};
use std::collections::HashMap;

pub use meterd_store::usage::explain::{PriceKey, PriceUsage};

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

/// Maximum number of days whose usage is explained: a month with the days around it.
const DAYS_MAX: i64 = 35;
/// Maximum number of prices of an explanation.
const PRICES_MAX: i64 = 1_000;

/// Which usage to explain, unchecked. Empty filters select everything.
#[derive(Debug, Default)]
pub struct UsageToExplain {
    pub client_id: String,
    /// The client's own days, both included.
    pub start_date: String,
    pub end_date: String,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
}

/// The usage of events with the same service, operation, model and price.
pub struct ExplainedPrice {
    pub key: PriceKey,
    pub usage: PriceUsage,
    /// The rates of the price with the sums of the quantities. Empty for tiers, and if there is no charge.
    pub lines: Vec<EstimateLine>,
    /// The cost minus the sum of the amounts and of what tiers contribute, because each charge is rounded.
    pub rounding: Total,
}

/// The cost of days by price.
pub struct ExplainedUsage {
    /// Those with the highest cost first.
    pub prices: Vec<ExplainedPrice>,
    /// Whether there are more prices.
    pub has_more: bool,
    pub complete_as_of: DateTime<Utc>,
}

/// Explains the cost of a client's days: by price, the quantities, rates and amounts.
pub async fn explain_usage(engine: &Engine, input: UsageToExplain) -> Result<ExplainedUsage, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &input.client_id, ID_BYTES_MAX);
    let (start, end) = fields.days(&input.start_date, &input.end_date, DAYS_MAX);
    fields.filter("services", &input.services);
    fields.filter("operations", &input.operations);
    fields.filter("models", &input.models);
    fields.finish()?;
    clients::existing(engine, &input.client_id).await?;
    let UsageToExplain { client_id, services, operations, models, .. } = input;
    let filter = ExplainFilter { client_id, start, end, services, operations, models };
    let (complete_as_of, mut rows) = explain::usage_by_price(&engine.pool, &filter, PRICES_MAX + 1).await?;
    let has_more = rows.len() as i64 > PRICES_MAX;
    rows.truncate(PRICES_MAX as usize);
    let ids: Vec<i64> = rows.iter().filter_map(|((.., price_id), _)| *price_id).collect();
    let filter = PriceFilter { price_ids: Some(&ids), ..Default::default() };
    let prices = store::prices(&mut *engine.pool.acquire().await?, &filter, PRICES_MAX).await?;
    let prices: HashMap<i64, StoredPrice> = prices.into_iter().map(|price| (price.price_id, price)).collect();
    let explained = |(key, usage): (PriceKey, PriceUsage)| {
        let price = key.3.and_then(|price_id| prices.get(&price_id));
        let lines: Vec<Line<'_>> = price
            .and_then(|price| price.rates.lines(&usage.measures).ok())
            .map_or_else(Vec::new, |lines| lines.collect());
        let rounding = usage.cost - usage.tier_charge - usage.tier_residue - sum_of(&lines);
        ExplainedPrice { lines: lines.into_iter().map(EstimateLine::from).collect(), key, usage, rounding }
    };
    Ok(ExplainedUsage { prices: rows.into_iter().map(explained).collect(), has_more, complete_as_of })
}
