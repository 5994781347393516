//! CatalogService: the handlers of prices.

use crate::grpc::Context;
use crate::grpc::wire::convert::{texts, timestamp, unix_time};
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::{
    CreatePriceRequest, CreatePriceResponse, ImportOutcome, ImportPricesRequest, ImportPricesResponse, ImportedPrice,
    ListPricesRequest, ListPricesResponse, Price, Rates, RetirePriceRequest, RetirePriceResponse, Tier, TieredRate,
};
use meterd_domain::decimal::Rate;
use meterd_domain::{price, tiers};
use meterd_engine::auth::Caller;
use meterd_engine::catalog::built_in::{self, BuiltInPrice};
use meterd_engine::catalog::import::{self, ImportReport, Imported, PriceList};
use meterd_engine::catalog::prices::{self, NewPrice, NewTier, NewTieredRate, PriceQuery};
use meterd_engine::refusal::Refusal;
use meterd_store::catalog::StoredPrice;
use prost::Message;
use std::sync::Arc;

impl From<price::Rates> for Rates {
    fn from(rates: price::Rates) -> Self {
        let text = |rate: Option<Rate>| rate.map(|rate| rate.to_string());
        Self {
            unit: text(rates.unit),
            input_token: text(rates.input_token),
            output_token: text(rates.output_token),
            cached_input_token: text(rates.cached_input_token),
            percent_of_amount: text(rates.percent_of_amount),
            fixed: text(rates.fixed),
            reported_cost: text(rates.reported_cost),
            measures: texts(rates.measures),
            tiers: rates.tiers.into_iter().map(TieredRate::from).collect(),
        }
    }
}

impl From<tiers::TieredRate> for TieredRate {
    fn from(rate: tiers::TieredRate) -> Self {
        let is_package = rate.mode == tiers::TierMode::Package;
        let tier = |tier: tiers::Tier| Tier {
            above: tier.above.to_string(),
            rate: tier.rate.to_string(),
            flat_fee: if tier.flat_fee.scaled() == 0 { String::new() } else { tier.flat_fee.to_string() },
        };
        Self {
            component: rate.component.to_string(),
            mode: i16::from(rate.mode).into(),
            package_size: if is_package { rate.package_size.to_string() } else { String::new() },
            tiers: rate.tiers.into_iter().map(tier).collect(),
        }
    }
}

fn tiered(rate: TieredRate) -> NewTieredRate {
    let tier = |tier: Tier| NewTier { above: tier.above, rate: tier.rate, flat_fee: tier.flat_fee };
    let mode = i16::try_from(rate.mode).ok().and_then(|mode| tiers::TierMode::try_from(mode).ok());
    NewTieredRate {
        component: rate.component,
        mode: mode.ok_or(rate.mode.to_string()),
        package_size: rate.package_size,
        tiers: rate.tiers.into_iter().map(tier).collect(),
    }
}

impl From<StoredPrice> for Price {
    fn from(price: StoredPrice) -> Self {
        Self {
            price_id: price.price_id.to_string(),
            client_id: price.client_id,
            plan_id: price.plan_id,
            service: price.service,
            operation: price.operation,
            model: price.model,
            effective_time: price.effective_time.map(timestamp),
            rates: Some(price.rates.into()),
            create_time: Some(timestamp(price.create_time)),
            built_in: price.built_in,
            end_time: price.end_time.map(timestamp),
            withdraw_time: price.withdraw_time.map(timestamp),
            source: price.source,
            note: price.note,
            service_tier: price.service_tier,
            above_input_tokens: price.above_input_tokens,
        }
    }
}

impl From<BuiltInPrice> for Price {
    fn from(price: BuiltInPrice) -> Self {
        let BuiltInPrice { service, operation, model, service_tier, above_input_tokens, rates } = price;
        Self {
            service,
            operation,
            model,
            service_tier,
            above_input_tokens,
            rates: Some(rates.into()),
            built_in: true,
            ..Default::default()
        }
    }
}

impl From<Price> for NewPrice {
    fn from(price: Price) -> Self {
        let rates = price.rates.unwrap_or_default();
        let components = [
            ("unit", rates.unit),
            ("input_token", rates.input_token),
            ("output_token", rates.output_token),
            ("cached_input_token", rates.cached_input_token),
            ("percent_of_amount", rates.percent_of_amount),
            ("fixed", rates.fixed),
            ("reported_cost", rates.reported_cost),
        ];
        Self {
            client_id: price.client_id,
            plan_id: price.plan_id,
            service: price.service,
            operation: price.operation,
            model: price.model,
            service_tier: price.service_tier,
            above_input_tokens: price.above_input_tokens,
            effective_time: price.effective_time.as_ref().map(unix_time),
            end_time: price.end_time.as_ref().map(unix_time),
            source: price.source,
            note: price.note,
            rates: components.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            measure_rates: rates.measures,
            tiered_rates: rates.tiers.into_iter().map(tiered).collect(),
        }
    }
}

/// Lists prices.
pub async fn list(
    context: Arc<Context>,
    caller: Arc<Caller>,
    mut request: ListPricesRequest,
) -> Result<ListPricesResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let query = PriceQuery { client_id: request.client_id, plan_id: request.plan_id, service: request.service, page };
    let (found, built_in_list_date) = prices::list(&context.engine, &caller, query).await?;
    Ok(ListPricesResponse {
        prices: found.rows.into_iter().map(Price::from).collect(),
        next_page_token: next_token.of(found.next),
        built_in_list_date: built_in_list_date.map(|date| date.to_string()).unwrap_or_default(),
    })
}

fn created(price: StoredPrice) -> CreatePriceResponse {
    CreatePriceResponse { price: Some(price.into()) }
}

/// Creates a price.
pub async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreatePriceRequest,
) -> Result<CreatePriceResponse, Refusal> {
    let encode = |price: &StoredPrice| created(price.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let price = NewPrice::from(request.price.unwrap_or_default());
    answer(prices::create(&context.engine, price, request.confirm_high_rates, idempotency).await?, created)
}

/// Ends or withdraws a price.
pub async fn retire(context: Arc<Context>, request: RetirePriceRequest) -> Result<RetirePriceResponse, Refusal> {
    let end_time = request.end_time.as_ref().map(unix_time);
    let price = prices::retire(&context.engine, &request.price_id, end_time).await?;
    Ok(RetirePriceResponse { price: Some(price.into()) })
}

/// Imports a list of prices.
pub async fn import(context: Arc<Context>, request: ImportPricesRequest) -> Result<ImportPricesResponse, Refusal> {
    let list = PriceList {
        prices: request.prices.into_iter().map(NewPrice::from).collect(),
        effective_time: request.effective_time.as_ref().map(unix_time),
        source: request.source,
        built_in: request.built_in,
        validate_only: request.validate_only,
        high_rates_confirmed: request.confirm_high_rates,
        replace_others: request.replace_others,
    };
    let ImportReport { results, missing } = import::import(&context.engine, list).await?;
    let mut response = ImportPricesResponse {
        results: results.into_iter().map(imported).collect(),
        missing_price_ids: missing.iter().map(i64::to_string).collect(),
        ..Default::default()
    };
    if request.built_in {
        let list = built_in::list();
        response.built_in_list_date = list.date.to_string();
        for (result, price) in response.results.iter_mut().zip(&list.prices) {
            result.price = Some(price.clone().into());
        }
    }
    Ok(response)
}

fn imported(result: Imported) -> ImportedPrice {
    let id = |price_id: Option<i64>| price_id.map(|price_id| price_id.to_string()).unwrap_or_default();
    let of = |outcome: ImportOutcome, price_id: Option<i64>| ImportedPrice {
        outcome: outcome.into(),
        price_id: id(price_id),
        ..Default::default()
    };
    match result {
        Imported::Created { price_id } => of(ImportOutcome::Created, price_id),
        Imported::Changed { price_id, replaced } => {
            ImportedPrice { replaced_price_id: replaced.to_string(), ..of(ImportOutcome::Changed, price_id) }
        }
        Imported::Unchanged { price_id } => of(ImportOutcome::Unchanged, Some(price_id)),
        Imported::Kept { price_id } => of(ImportOutcome::Kept, Some(price_id)),
        Imported::Rejected(error) => ImportedPrice { error: Some(error.into()), ..of(ImportOutcome::Rejected, None) },
    }
}
