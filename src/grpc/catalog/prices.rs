//! CatalogService: the handlers of prices.

use crate::grpc::Context;
use crate::grpc::wire::convert::{texts, timestamp, unix_time};
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::{
    ChargeLine, CreatePriceRequest, CreatePriceResponse, EstimateCostRequest, EstimateCostResponse, ListPricesRequest,
    ListPricesResponse, Price, Rates, RetirePriceRequest, RetirePriceResponse,
};
use meterd_domain::decimal::Rate;
use meterd_domain::price;
use meterd_engine::auth::Caller;
use meterd_engine::catalog::prices::{self, EstimateInput, EstimateLine, NewPrice, PriceQuery};
use meterd_engine::ingest::RawMeasures;
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
            measures: texts(rates.measures),
        }
    }
}

impl From<StoredPrice> for Price {
    fn from(price: StoredPrice) -> Self {
        Self {
            price_id: price.price_id.to_string(),
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

impl From<CreatePriceRequest> for NewPrice {
    fn from(request: CreatePriceRequest) -> Self {
        let price = request.price.unwrap_or_default();
        let rates = price.rates.unwrap_or_default();
        let components = [
            ("unit", rates.unit),
            ("input_token", rates.input_token),
            ("output_token", rates.output_token),
            ("cached_input_token", rates.cached_input_token),
            ("percent_of_amount", rates.percent_of_amount),
            ("fixed", rates.fixed),
        ];
        Self {
            service: price.service,
            operation: price.operation,
            model: price.model,
            service_tier: price.service_tier,
            above_input_tokens: price.above_input_tokens,
            effective_time: price.effective_time.as_ref().map(unix_time),
            end_time: price.end_time.as_ref().map(unix_time),
            high_rates_confirmed: request.confirm_high_rates,
            source: price.source,
            note: price.note,
            rates: components.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            measure_rates: rates.measures,
        }
    }
}

/// Lists prices.
pub async fn list(context: Arc<Context>, mut request: ListPricesRequest) -> Result<ListPricesResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = prices::list(&context.engine, PriceQuery { service: request.service, page }).await?;
    Ok(ListPricesResponse {
        prices: found.rows.into_iter().map(Price::from).collect(),
        next_page_token: next_token.of(found.next),
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
    answer(prices::create(&context.engine, NewPrice::from(request), idempotency).await?, created)
}

/// Ends or withdraws a price.
pub async fn retire(context: Arc<Context>, request: RetirePriceRequest) -> Result<RetirePriceResponse, Refusal> {
    let end_time = request.end_time.as_ref().map(unix_time);
    let price = prices::retire(&context.engine, &request.price_id, end_time).await?;
    Ok(RetirePriceResponse { price: Some(price.into()) })
}

fn line_message(line: EstimateLine) -> ChargeLine {
    ChargeLine {
        component: line.component,
        quantity: line.quantity.to_string(),
        rate: line.rate.to_string(),
        amount: line.amount,
    }
}

/// Estimates the charge of an event.
pub async fn estimate(context: Arc<Context>, request: EstimateCostRequest) -> Result<EstimateCostResponse, Refusal> {
    let measures = RawMeasures {
        units: &request.units,
        input_tokens: request.input_tokens,
        output_tokens: request.output_tokens,
        cached_input_tokens: request.cached_input_tokens,
        amount: &request.amount,
        others: &request.measures,
    };
    let event_time = request.event_time.as_ref().map(unix_time);
    let EstimateCostRequest { service, operation, model, service_tier, .. } = &request;
    let input = EstimateInput { service, operation, model, service_tier, measures, event_time };
    let estimate = prices::estimate(&context.engine, input).await?;
    let found = EstimateCostResponse {
        price_id: estimate.price_id.map(|price_id| price_id.to_string()).unwrap_or_default(),
        price_match: estimate.price_match.map_or(0, |price_match| price_match as i32),
        matched_model: estimate.matched_model.map(|model| model.to_string()).unwrap_or_default(),
        ..Default::default()
    };
    Ok(match estimate.charge {
        Ok((charge, lines)) => EstimateCostResponse {
            charge: Some(context.money(charge.into())),
            lines: lines.into_iter().map(line_message).collect(),
            ..found
        },
        Err(reason) => EstimateCostResponse { unpriced_reason: reason as i32, ..found },
    })
}
