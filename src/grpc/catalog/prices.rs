//! CatalogService: prices.

use crate::grpc::Context;
use crate::grpc::catalog::check_service;
use crate::grpc::usage::events::{RawMeasures, measures};
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::Fields;
use crate::grpc::wire::idempotent_create::{Begun, Create, check_request_id};
use crate::proto::{
    self, ChargeLine, CreatePriceRequest, CreatePriceResponse, EstimateCostRequest, EstimateCostResponse,
    ListPricesRequest, ListPricesResponse, Price,
};
use chrono::{DateTime, Utc};
use meterd_domain::decimal::Rate;
use meterd_domain::event::{ID_BYTES_MAX, UnpricedReason};
use meterd_domain::price::Rates;
use meterd_engine::auth::Caller;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::catalog::{self as store, NewPrice, PriceRow};
use meterd_store::{locks, pricing};
use std::sync::Arc;

const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;

fn price_message(row: PriceRow) -> Result<Price, Refusal> {
    let rates = row.rates()?;
    let text = |rate: Option<Rate>| rate.map(|rate| rate.to_string());
    Ok(Price {
        price_id: row.price_id.to_string(),
        service: row.service,
        operation: row.operation,
        model: row.model,
        effective_time: row.effective_time.map(timestamp),
        rates: Some(proto::Rates {
            unit: text(rates.unit),
            input_token: text(rates.input_token),
            output_token: text(rates.output_token),
            cached_input_token: text(rates.cached_input_token),
            percent_of_amount: text(rates.percent_of_amount),
            fixed: text(rates.fixed),
        }),
        create_time: Some(timestamp(row.create_time)),
        built_in: row.built_in,
    })
}

fn rates(fields: &mut Fields, rates: Option<proto::Rates>) -> Rates {
    let given = rates.unwrap_or_default();
    let mut rates = Rates::default();
    let components = [
        ("unit", given.unit),
        ("input_token", given.input_token),
        ("output_token", given.output_token),
        ("cached_input_token", given.cached_input_token),
        ("percent_of_amount", given.percent_of_amount),
        ("fixed", given.fixed),
    ];
    let none_given = components.iter().all(|(_, value)| value.is_none());
    for (name, value) in components {
        if let (Some(value), Some(component)) = (value, rates.component_mut(name)) {
            *component = fields.rate(&format!("price.rates.{name}"), &value);
        }
    }
    if none_given {
        fields.wrong("price.rates", "needs at least one component");
    }
    rates
}

/// Lists prices.
pub async fn list(context: Arc<Context>, request: ListPricesRequest) -> Result<ListPricesResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("service", &request.service, ID_BYTES_MAX);
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let query = ListPricesRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    type Cursor = (String, String, String, Option<DateTime<Utc>>);
    let after: Option<Cursor> = context.page_tokens.read("ListPrices", &query, &request.page_token)?;
    let after = after.unwrap_or_default();
    let service = (!request.service.is_empty()).then_some(request.service.as_str());
    let mut conn = context.engine.pool.acquire().await?;
    let mut rows = store::prices(&mut conn, service, (&after.0, &after.1, &after.2, after.3), limit + 1).await?;
    let more = !rows.split_off(rows.len().min(limit as usize)).is_empty();
    let next_page_token = match rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => {
            let cursor = (&last.service, &last.operation, &last.model, last.effective_time);
            context.page_tokens.make("ListPrices", &query, &cursor)
        }
    };
    let prices = rows.into_iter().map(price_message).collect::<Result<_, _>>()?;
    Ok(ListPricesResponse { prices, next_page_token })
}

/// Creates a price, and has the events that wait for it priced.
pub async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreatePriceRequest,
) -> Result<CreatePriceResponse, Refusal> {
    let given = request.price.clone().unwrap_or_default();
    let catalog = context.engine.catalog.refresh(&context.engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("price.service", &given.service, ID_BYTES_MAX);
    fields.identifier("price.operation", &given.operation, ID_BYTES_MAX);
    fields.identifier("price.model", &given.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "price.service", &given.service);
    let effective_time = given.effective_time.as_ref().and_then(|time| fields.time("price.effective_time", time));
    let rates = rates(&mut fields, given.rates.clone());
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    let mut create = match Create::begin(&context, &caller, "CreatePrice", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    locks::change_versions(create.conn()).await?;
    let new = NewPrice {
        service: &given.service,
        operation: &given.operation,
        model: &given.model,
        effective_time,
        rates,
        built_in: false,
    };
    let row = store::insert_price(create.conn(), &new).await?.ok_or_else(|| {
        Refusal::new(
            Reason::PriceExists,
            "a price of this service, operation, model and effective time exists; prices do not change: make one with a \
             later effective time",
        )
    })?;
    store::bump_version(create.conn()).await?;
    pricing::insert_task(create.conn(), &given.service).await?;
    let response = create.commit(CreatePriceResponse { price: Some(price_message(row)?) }).await?;
    context.engine.pricing_wanted.notify_one();
    Ok(response)
}

/// What an event would be charged.
pub async fn estimate(context: Arc<Context>, request: EstimateCostRequest) -> Result<EstimateCostResponse, Refusal> {
    let catalog = context.engine.catalog.refresh(&context.engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("service", &request.service, ID_BYTES_MAX);
    fields.text("operation", &request.operation, ID_BYTES_MAX);
    fields.text("model", &request.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "service", &request.service);
    let raw = RawMeasures {
        units: &request.units,
        input_tokens: request.input_tokens,
        output_tokens: request.output_tokens,
        cached_input_tokens: request.cached_input_tokens,
        amount: &request.amount,
    };
    let (measures, _) = measures(&mut fields, raw);
    let time = request.event_time.as_ref().and_then(|time| fields.time("event_time", time));
    fields.finish()?;
    let time = time.unwrap_or_else(|| context.engine.clock.now());
    let unpriced = |price_id: String, reason: UnpricedReason| EstimateCostResponse {
        price_id,
        unpriced_reason: reason as i32,
        ..Default::default()
    };
    let Some(price) = catalog.price(&request.service, &request.operation, &request.model, time) else {
        return Ok(unpriced(String::new(), UnpricedReason::NoPrice));
    };
    let price_id = price.price_id.to_string();
    match (price.rates.charge(&measures), price.rates.lines(&measures)) {
        (Ok(charge), Ok(lines)) => Ok(EstimateCostResponse {
            charge: Some(context.money(charge.into())),
            price_id,
            unpriced_reason: 0,
            lines: lines
                .map(|line| ChargeLine {
                    component: line.component.into(),
                    quantity: line.quantity.to_string(),
                    rate: line.rate.to_string(),
                    amount: line.amount(),
                })
                .collect(),
        }),
        (Err(reason), _) | (_, Err(reason)) => Ok(unpriced(price_id, reason)),
    }
}
