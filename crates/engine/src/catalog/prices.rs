//! Prices, and estimates of charges.

use super::check_service;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::ingest::{RawMeasures, measures};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, SecondsFormat, Utc};
use meterd_domain::catalog::{PriceMatch, PriceScope, Selected, Wanted};
use meterd_domain::decimal::{Decimal, Rate};
use meterd_domain::event::{ID_BYTES_MAX, TOKENS_MAX, UnpricedReason};
use meterd_domain::measures::{check_name, whole_of};
use meterd_domain::price::{Line, Price, Rates};
use meterd_store::catalog::pricing;
use meterd_store::catalog::{self as store, PriceFilter, StoredPrice};
use meterd_store::locks;
use sqlx::PgConnection;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which prices to list.
#[derive(Debug)]
pub struct PriceQuery {
    /// Empty: all services.
    pub service: String,
    pub page: PageRequest<PriceCursor>,
}

/// Service, operation, model, service tier, bound of input tokens, effective time and id of the last price of a page.
pub type PriceCursor = (String, String, String, String, Option<i64>, Option<DateTime<Utc>>, i64);

/// Maximum number of rates of other measures.
const MEASURE_RATES_MAX: usize = 32;
/// Maximum length of the source of a price, in bytes.
const SOURCE_BYTES_MAX: usize = 256;
/// Maximum length of the note of a price, in bytes.
const NOTE_BYTES_MAX: usize = 1_024;

/// Lists prices, ordered by service, operation, model, service tier, bound of input tokens and effective time.
pub async fn list(engine: &Engine, query: PriceQuery) -> Result<Page<StoredPrice, PriceCursor>, Refusal> {
    let mut fields = Fields::default();
    fields.text("service", &query.service, ID_BYTES_MAX);
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let (service, operation, model, service_tier, above_input_tokens, effective_time, price_id) =
        query.page.after?.unwrap_or_default();
    let after = PriceScope {
        service: &service,
        operation: &operation,
        model: &model,
        service_tier: &service_tier,
        above_input_tokens,
    };
    let filter = PriceFilter {
        service: (!query.service.is_empty()).then_some(query.service.as_str()),
        price_id: None,
        after: (after, effective_time, price_id),
    };
    let mut conn = engine.pool.acquire().await?;
    let rows = store::prices(&mut conn, &filter, size + 1).await?;
    Ok(Page::of(rows, size, |last| {
        let StoredPrice { service, operation, model, service_tier, above_input_tokens, .. } = last.clone();
        (service, operation, model, service_tier, above_input_tokens, last.effective_time, last.price_id)
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
    /// Empty: any service tier.
    pub service_tier: String,
    /// `None`: any number of input tokens.
    pub above_input_tokens: Option<i64>,
    /// `None`: from the beginning of time.
    pub effective_time: Option<UnixTime>,
    /// `None`: until a later price replaces it.
    pub end_time: Option<UnixTime>,
    /// Components of [`Rates`] by name, with their decimals.
    pub rates: Vec<(&'static str, String)>,
    /// Rates of other measures by name.
    pub measure_rates: BTreeMap<String, String>,
    /// Whether rates per token above [`EngineConfig::high_token_rate`] are meant.
    ///
    /// [`EngineConfig::high_token_rate`]: crate::engine::EngineConfig::high_token_rate
    pub high_rates_confirmed: bool,
    pub source: String,
    pub note: String,
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
    fields.identifier("price.service_tier", &price.service_tier, ID_BYTES_MAX);
    fields.count("price.above_input_tokens", price.above_input_tokens.unwrap_or_default(), TOKENS_MAX);
    check_service(&mut fields, &catalog, "price.service", &price.service);
    fields.text("price.source", &price.source, SOURCE_BYTES_MAX);
    fields.text("price.note", &price.note, NOTE_BYTES_MAX);
    let effective_time = price.effective_time.and_then(|time| fields.time("price.effective_time", time));
    let end_time = price.end_time.and_then(|time| fields.time("price.end_time", time));
    check_end(&mut fields, "price.end_time", effective_time, end_time);
    let rates = check_rates(&mut fields, &price);
    idempotency.check(&mut fields);
    fields.finish()?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    // After the search for a repeat: the bound may be lower than at the first call.
    if !price.high_rates_confirmed {
        check_high_rates(&rates, engine.config.high_token_rate)?;
    }
    locks::change_versions(creation.conn()).await?;
    let NewPrice { service, operation, model, service_tier, above_input_tokens, source, note, .. } = &price;
    let scope = PriceScope { service, operation, model, service_tier, above_input_tokens: *above_input_tokens };
    let others = prices_of_scope(creation.conn(), &scope).await?;
    check_overlap(&Price { price_id: 0, effective_time, end_time, rates: rates.clone() }, &others)?;
    let new = store::NewPrice { scope, effective_time, end_time, rates: &rates, built_in: false, source, note };
    let created = store::insert_price(creation.conn(), &new).await?.ok_or_else(|| {
        Refusal::new(
            Reason::PriceExists,
            "a price of this scope and effective time exists; its rates do not change: create one with a \
             later effective time, or withdraw this one with RetirePrice",
        )
    })?;
    store::bump_version(creation.conn()).await?;
    pricing::insert_task(creation.conn(), service).await?;
    creation.commit(&created).await?;
    engine.pricing_wanted.notify_one();
    Ok(Created::New(created))
}

/// Ends a price at a time, or withdraws it.
pub async fn retire(engine: &Engine, price_id: &str, end_time: Option<UnixTime>) -> Result<StoredPrice, Refusal> {
    let mut fields = Fields::default();
    fields.required("price_id", price_id, ID_BYTES_MAX);
    let end_time = end_time.and_then(|time| fields.time("end_time", time));
    fields.finish()?;
    let mut tx = engine.pool.begin().await?;
    locks::change_versions(&mut tx).await?;
    let found = match price_id.parse() {
        Ok(price_id) => store::price(&mut tx, price_id).await?,
        Err(_) => None,
    };
    let not_found = || Refusal::new(Reason::PriceNotFound, format!("there is no price {}", shown(price_id)));
    let price = found.ok_or_else(not_found)?;
    match end_time {
        None if price.withdraw_time.is_some() => return Ok(price),
        None => store::withdraw_price(&mut tx, price.price_id).await?,
        Some(end_time) if price.end_time == Some(end_time) && price.withdraw_time.is_none() => return Ok(price),
        Some(end_time) => {
            let others = prices_of_scope(&mut tx, &price.scope()).await?;
            check_new_end(&price, end_time, &others)?;
            store::end_price(&mut tx, price.price_id, end_time).await?;
        }
    }
    store::bump_version(&mut tx).await?;
    // Another price may cover events that this one left unpriced.
    pricing::insert_task(&mut tx, &price.service).await?;
    let retired = store::price(&mut tx, price.price_id).await?.ok_or_else(not_found)?;
    tx.commit().await?;
    engine.pricing_wanted.notify_one();
    Ok(retired)
}

/// Returns the prices of a scope that are not withdrawn.
async fn prices_of_scope(conn: &mut PgConnection, scope: &PriceScope<'_>) -> Result<Vec<StoredPrice>, Refusal> {
    let mut prices = store::prices_of_scope(conn, scope).await?;
    prices.retain(|price| price.withdraw_time.is_none());
    Ok(prices)
}

fn instant(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn check_end(fields: &mut Fields, field: &str, from: Option<DateTime<Utc>>, end: Option<DateTime<Utc>>) {
    if let (Some(from), Some(end)) = (from, end)
        && end <= from
    {
        fields.wrong(field, format!("must be later than the effective time, {}", instant(from)));
    }
}

/// Checks the new end of a price.
fn check_new_end(price: &StoredPrice, end_time: DateTime<Utc>, others: &[StoredPrice]) -> Result<(), Refusal> {
    if price.withdraw_time.is_some() {
        let message = "the price was withdrawn and applies to no event; create another one instead";
        return Err(Refusal::new(Reason::PriceWithdrawn, message));
    }
    let mut fields = Fields::default();
    check_end(&mut fields, "end_time", price.effective_time, Some(end_time));
    if let Some(end) = price.end_time.filter(|end| *end < end_time) {
        fields.wrong("end_time", format!("must not be later than the present end, {}", instant(end)));
    }
    fields.finish()?;
    check_overlap(&Price { end_time: Some(end_time), ..price.price() }, others)
}

/// Refuses a price that overlaps another one of its scope. Another one with the same effective time is not its concern.
fn check_overlap(price: &Price, others: &[StoredPrice]) -> Result<(), Refusal> {
    let overlaps =
        |other: &&StoredPrice| other.effective_time != price.effective_time && price.overlaps(&other.price());
    let Some(other) = others.iter().find(overlaps) else { return Ok(()) };
    let from = other.effective_time.map_or_else(|| "the beginning of time".to_owned(), instant);
    let until = other.end_time.map_or_else(String::new, |end| format!(" until {}", instant(end)));
    let message = format!(
        "price {} of this scope is in force from {from}{until}, which overlaps; end or withdraw it \
         with RetirePrice, or choose other times",
        other.price_id
    );
    Err(Refusal::new(Reason::PricesOverlap, message).with("price_id", other.price_id.to_string()))
}

/// Refuses rates per token that may be meant per million tokens.
fn check_high_rates(rates: &Rates, max: Rate) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    for (name, rate) in rates.token_rates().filter(|(_, rate)| *rate > max) {
        let description = format!(
            "is {rate} for one token, which is more than {max}: if it is meant for a million tokens, send {}, else set \
             confirm_high_rates",
            rate.per_million()
        );
        let field = match whole_of(name) {
            Some(_) => rate_of_measure(name),
            None => format!("price.rates.{name}"),
        };
        fields.wrong_because(Reason::RateNotConfirmed, field, description);
    }
    fields.finish()
}

fn rate_of_measure(name: &str) -> String {
    format!("price.rates.measures[\"{name}\"]")
}

fn check_rates(fields: &mut Fields, price: &NewPrice) -> Rates {
    let NewPrice { rates: inputs, measure_rates, .. } = price;
    let mut rates = Rates::default();
    for (name, value) in inputs {
        let field = format!("price.rates.{name}");
        match rates.component_mut(name) {
            Some(component) => *component = fields.rate(&field, value),
            None => fields.wrong(field, "is no component of a price"),
        }
    }
    if measure_rates.len() > MEASURE_RATES_MAX {
        let description = format!("must be at most {MEASURE_RATES_MAX}, has {}", measure_rates.len());
        fields.wrong("price.rates.measures", description);
        return rates;
    }
    for (name, value) in measure_rates {
        match check_name(name) {
            Ok(()) => {
                let rate = fields.rate(&rate_of_measure(name), value);
                rates.measures.extend(rate.map(|rate| (Arc::from(name.as_str()), rate)));
            }
            Err(predicate) => fields.wrong("price.rates.measures", format!("{} {predicate}", shown(name))),
        }
    }
    if inputs.is_empty() && measure_rates.is_empty() {
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
pub async fn estimate(engine: &Engine, input: EstimateInput<'_>) -> Result<Estimate, Refusal> {
    let EstimateInput { service, operation, model, service_tier, measures: raw, event_time } = input;
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("service", service, ID_BYTES_MAX);
    fields.text("operation", operation, ID_BYTES_MAX);
    fields.text("model", model, ID_BYTES_MAX);
    fields.text("service_tier", service_tier, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "service", service);
    let (measures, _) = measures(&mut fields, raw);
    let time = event_time.and_then(|time| fields.time("event_time", time));
    fields.finish()?;
    let time = time.unwrap_or_else(|| engine.clock.now());
    let wanted = Wanted { service, operation, model, service_tier, input_tokens: measures.input_tokens, time };
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
