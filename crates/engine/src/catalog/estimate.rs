//! Estimates of charges.

use super::check_service;
use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::ingest::{RawMeasures, measures};
use crate::refusal::Refusal;
use meterd_domain::catalog::{PriceMatch, Selected, Wanted};
use meterd_domain::decimal::{Decimal, Rate};
use meterd_domain::event::{ID_BYTES_MAX, UnpricedReason};
use meterd_domain::price::Line;
use std::sync::Arc;

/// An event whose charge is estimated, unchecked.
#[derive(Debug)]
pub struct EstimateInput<'a> {
    /// Empty: a client without prices of its own.
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
    pub price_id: Option<i64>,
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
    pub quantity: Decimal,
    pub rate: Rate,
    /// The exact product in plain digits.
    pub amount: String,
}

impl From<Line<'_>> for EstimateLine {
    fn from(line: Line<'_>) -> Self {
        Self { component: line.component.into(), quantity: line.quantity, rate: line.rate, amount: line.amount() }
    }
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
    let wanted =
        Wanted { client_id, service, operation, model, service_tier, input_tokens: measures.input_tokens, time };
    let Some(Selected { price, price_match }) = catalog.select(&wanted) else {
        let charge = Err(UnpricedReason::NoPrice);
        return Ok(Estimate { price_id: None, price_match: None, matched_model: None, charge });
    };
    let charge = price.rates.charge(&measures);
    let charge =
        charge.and_then(|charge| Ok((charge, price.rates.lines(&measures)?.map(EstimateLine::from).collect())));
    let matched_model = catalog.model_of(price.price_id).cloned();
    Ok(Estimate { price_id: Some(price.price_id), price_match: Some(price_match), matched_model, charge })
}
