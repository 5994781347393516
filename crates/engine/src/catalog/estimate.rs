//! Estimates of charges.

use super::check_service;
use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::ingest::{RawMeasures, measures};
use crate::plans;
use crate::refusal::Refusal;
use chrono::{DateTime, Utc};
use meterd_domain::catalog::{Catalog, PriceMatch, Selected, Wanted};
use meterd_domain::decimal::{Decimal, Rate};
use meterd_domain::event::{ID_BYTES_MAX, UnpricedReason};
use meterd_domain::measures::Measures;
use meterd_domain::period::{Month, day_of};
use meterd_domain::price::{Line, Rates};
use meterd_domain::tiers::{EventTiers, MonthUse, TierUse};
use meterd_store::catalog::{self as store, StoredPrice};
use meterd_store::clients;
use meterd_store::usage::tiers;
use std::sync::Arc;

/// An event whose charge is estimated, unchecked.
#[derive(Debug)]
pub struct EstimateInput<'a> {
    /// Empty: a client without prices of its own and without a plan.
    pub client_id: &'a str,
    pub service: &'a str,
    pub operation: &'a str,
    pub model: &'a str,
    pub service_tier: &'a str,
    pub measures: RawMeasures<'a>,
    /// `None`: now.
    pub event_time: Option<UnixTime>,
}

/// The charge that an event would have.
#[derive(Debug)]
pub struct Estimate {
    /// The price that applies, if there is one.
    pub price: Option<StoredPrice>,
    /// How the price was found.
    pub price_match: Option<PriceMatch>,
    /// The model of the price, if the price is for a model.
    pub matched_model: Option<Arc<str>>,
    /// The charge with its components, or the reason why there is none.
    pub charge: Result<(Decimal, Vec<EstimateLine>), UnpricedReason>,
}

/// One component of an estimate.
#[derive(Debug)]
pub struct EstimateLine {
    pub component: String,
    /// The quantity of the month above which the rate applies, if it has tiers.
    pub tier_above: Option<Decimal>,
    pub quantity: Decimal,
    pub rate: Rate,
    /// The exact product in plain digits.
    pub amount: String,
}

impl From<Line<'_>> for EstimateLine {
    fn from(line: Line<'_>) -> Self {
        let (component, quantity, rate) = (line.component.into(), line.quantity, line.rate);
        Self { component, tier_above: None, quantity, rate, amount: line.amount() }
    }
}

/// Returns the components of a charge: those with flat rates, and then those with tiers.
pub fn lines(rates: &Rates, measures: &Measures, tiers: Option<&EventTiers>) -> Vec<EstimateLine> {
    let flat = rates.lines(measures).ok().into_iter().flatten().map(EstimateLine::from);
    let of_tiers =
        tiers.into_iter().flat_map(|tiers| &tiers.uses).flat_map(|TierUse { component, before, quantity }| {
            let after = Decimal::from_scaled(before.scaled() + quantity.scaled());
            let lines = rates.tier(component).map(|rate| rate.lines(*before, after)).unwrap_or_default();
            lines.into_iter().map(move |line| EstimateLine {
                component: component.to_string(),
                tier_above: Some(line.above),
                quantity: line.quantity,
                rate: line.rate,
                amount: line.amount_text(),
            })
        });
    flat.chain(of_tiers).collect()
}

/// Estimates the charge of an event.
pub async fn estimate(engine: &Engine, caller: &Caller, input: EstimateInput<'_>) -> Result<Estimate, Refusal> {
    let EstimateInput { client_id, service, operation, model, service_tier, measures: raw, event_time } = input;
    if !client_id.is_empty() {
        caller.check_prices(client_id)?;
    }
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    fields.text("client_id", client_id, ID_BYTES_MAX);
    fields.required("service", service, ID_BYTES_MAX);
    fields.text("operation", operation, ID_BYTES_MAX);
    fields.text("model", model, ID_BYTES_MAX);
    fields.text("service_tier", service_tier, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "service", service);
    let (measures, _) = measures(&mut fields, raw);
    let time = event_time.and_then(|time| fields.time("event_time", time));
    fields.finish()?;
    let time = time.unwrap_or_else(|| engine.clock.now());
    let tier_use = month_use(engine, &catalog, client_id, time).await?;
    let mut conn = engine.pool.acquire().await?;
    let plans = plans::of_clients(&mut conn, &catalog, [client_id]).await?;
    let (plan_id, input_tokens) = (plans.at(client_id, time), measures.input_tokens);
    let wanted = Wanted { client_id, plan_id, service, operation, model, service_tier, input_tokens, time };
    let Some(Selected { price, price_match }) = catalog.select(&wanted) else {
        let charge = Err(UnpricedReason::NoPrice);
        return Ok(Estimate { price: None, price_match: None, matched_model: None, charge });
    };
    let charge = price.charge_in_month(&measures, &mut { tier_use });
    let charge = charge.map(|(charge, tiers)| (charge, lines(&price.rates, &measures, tiers.as_ref())));
    let matched_model = catalog.model_of(price.price_id).cloned();
    let price = store::price(&mut conn, price.price_id).await?;
    Ok(Estimate { price, price_match: Some(price_match), matched_model, charge })
}

/// Returns what a client has used of tiers in the month of a time. Nothing for a client that does not exist.
async fn month_use(
    engine: &Engine,
    catalog: &Catalog,
    client_id: &str,
    time: DateTime<Utc>,
) -> Result<MonthUse, Refusal> {
    if client_id.is_empty() || !catalog.has_tiers() {
        return Ok(MonthUse::default());
    }
    let mut conn = engine.pool.acquire().await?;
    let Some(zone) = clients::time_zone(&mut conn, client_id).await? else { return Ok(MonthUse::default()) };
    let month = (client_id.to_owned(), Month::of(day_of(time, zone)));
    let mut found = tiers::read(&mut conn, std::iter::once(&month)).await?;
    Ok(found.remove(&month).unwrap_or_default())
}
