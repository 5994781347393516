//! Prices, and estimates of charges.

use super::check_service;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::ingest::{RawMeasures, measures};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{ID_BYTES_MAX, UnpricedReason};
use meterd_domain::price::{Line, Rates};
use meterd_store::catalog::pricing;
use meterd_store::catalog::{self as store, StoredPrice};
use meterd_store::locks;

/// Which prices to list.
#[derive(Debug)]
pub struct PriceQuery {
    /// Empty: all services.
    pub service: String,
    pub page: PageRequest<PriceCursor>,
}

/// Service, operation, model and effective time of the last price of a page.
pub type PriceCursor = (String, String, String, Option<DateTime<Utc>>);

/// Lists prices, ordered by service, operation, model and effective time.
pub async fn list(engine: &Engine, query: PriceQuery) -> Result<Page<StoredPrice, PriceCursor>, Refusal> {
    let mut fields = Fields::default();
    fields.text("service", &query.service, ID_BYTES_MAX);
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let (service, operation, model, effective_time) = query.page.after?.unwrap_or_default();
    let after = (service.as_str(), operation.as_str(), model.as_str(), effective_time);
    let service = (!query.service.is_empty()).then_some(query.service.as_str());
    let mut conn = engine.pool.acquire().await?;
    let rows = store::prices(&mut conn, service, after, size + 1).await?;
    Ok(Page::of(rows, size, |last| {
        (last.service.clone(), last.operation.clone(), last.model.clone(), last.effective_time)
    }))
}

/// A price to create, unchecked.
#[derive(Debug, Default)]
pub struct NewPrice {
    pub service: String,
    /// Empty: any operation.
    pub operation: String,
    /// Empty: any model.
    pub model: String,
    /// `None`: from the beginning of time.
    pub effective_time: Option<UnixTime>,
    /// Components of [`Rates`] by name, with their decimals.
    pub rates: Vec<(&'static str, String)>,
}

/// Creates a price, and prices recorded events that it applies to.
pub async fn create(
    engine: &Engine,
    price: NewPrice,
    idempotency: Idempotency<StoredPrice>,
) -> Result<Created<StoredPrice>, Refusal> {
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("price.service", &price.service, ID_BYTES_MAX);
    fields.identifier("price.operation", &price.operation, ID_BYTES_MAX);
    fields.identifier("price.model", &price.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "price.service", &price.service);
    let effective_time = price.effective_time.and_then(|time| fields.time("price.effective_time", time));
    let rates = check_rates(&mut fields, &price.rates);
    idempotency.check(&mut fields);
    fields.finish()?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    locks::change_versions(creation.conn()).await?;
    let NewPrice { service, operation, model, .. } = &price;
    let new = store::NewPrice { service, operation, model, effective_time, rates, built_in: false };
    let created = store::insert_price(creation.conn(), &new).await?.ok_or_else(|| {
        Refusal::new(
            Reason::PriceExists,
            "a price of this service, operation, model and effective time exists; prices do not change: make one with a \
             later effective time",
        )
    })?;
    store::bump_version(creation.conn()).await?;
    pricing::insert_task(creation.conn(), service).await?;
    creation.commit(&created).await?;
    engine.pricing_wanted.notify_one();
    Ok(Created::New(created))
}

fn check_rates(fields: &mut Fields, inputs: &[(&'static str, String)]) -> Rates {
    let mut rates = Rates::default();
    for (name, value) in inputs {
        let field = format!("price.rates.{name}");
        match rates.component_mut(name) {
            Some(component) => *component = fields.rate(&field, value),
            None => fields.wrong(field, "is no component of a price"),
        }
    }
    if inputs.is_empty() {
        fields.wrong("price.rates", "needs at least one component");
    }
    rates
}

/// An event whose charge is estimated, unchecked.
#[derive(Debug)]
pub struct EstimateInput<'a> {
    pub service: &'a str,
    pub operation: &'a str,
    pub model: &'a str,
    pub measures: RawMeasures<'a>,
    /// `None`: now.
    pub event_time: Option<UnixTime>,
}

/// The charge that an event would have.
#[derive(Debug)]
pub struct Estimate {
    /// The price that applies, if there is one.
    pub price_id: Option<i64>,
    /// The charge with its components, or the reason why there is none.
    pub charge: Result<(Decimal, Vec<Line>), UnpricedReason>,
}

/// Estimates the charge of an event.
pub async fn estimate(engine: &Engine, input: EstimateInput<'_>) -> Result<Estimate, Refusal> {
    let EstimateInput { service, operation, model, measures: raw, event_time } = input;
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("service", service, ID_BYTES_MAX);
    fields.text("operation", operation, ID_BYTES_MAX);
    fields.text("model", model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "service", service);
    let (measures, _) = measures(&mut fields, raw);
    let time = event_time.and_then(|time| fields.time("event_time", time));
    fields.finish()?;
    let time = time.unwrap_or_else(|| engine.clock.now());
    let Some(price) = catalog.price(service, operation, model, time) else {
        return Ok(Estimate { price_id: None, charge: Err(UnpricedReason::NoPrice) });
    };
    let charge = price.rates.charge(&measures);
    let charge = charge.and_then(|charge| Ok((charge, price.rates.lines(&measures)?.collect())));
    Ok(Estimate { price_id: Some(price.price_id), charge })
}
