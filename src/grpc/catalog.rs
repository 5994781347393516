//! CatalogService.

use super::clients::DISPLAY_NAME_BYTES_MAX;
use super::convert::timestamp;
use super::creates::{Begun, Create, check_request_id};
use super::events::{RawMeasures, measures, unknown_service};
use super::fields::Fields;
use super::{Context, Handlers};
use crate::domain::catalog::{Catalog, Service as Metered};
use crate::domain::event::{ID_BYTES_MAX, UnpricedReason};
use crate::domain::price::Rates;
use crate::error::Error;
use crate::proto::catalog_service_server::CatalogService;
use crate::proto::{
    self, ChargeLine, CreateModelAliasRequest, CreateModelAliasResponse, CreatePriceRequest, CreatePriceResponse,
    CreateServiceRequest, CreateServiceResponse, ErrorReason, EstimateCostRequest, EstimateCostResponse,
    ListModelAliasesRequest, ListModelAliasesResponse, ListPricesRequest, ListPricesResponse, ListServicesRequest,
    ListServicesResponse, ModelAlias, Price, Service, ServiceCategory,
};
use crate::store::catalog::{self as store, NewPrice, PriceRow};
use crate::store::{locks, pricing};
use chrono::{DateTime, Utc};
use std::sync::Arc;
use tonic::{Request, Response, Status};

const UNIT_BYTES_MAX: usize = 64;
const UNIT_DEFAULT: &str = "unit";
const UNCOUNTED_OPERATIONS_MAX: usize = 100;
const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;

fn service_message(service: &Metered) -> Service {
    Service {
        service: service.service.to_string(),
        display_name: service.display_name.clone(),
        category: service.category.into(),
        unit: service.unit.clone(),
        recurring: service.recurring,
        uncounted_operations: service.uncounted_operations.clone(),
    }
}

fn price_message(row: PriceRow) -> Result<Price, Error> {
    let rates = row.rates()?;
    let text = |rate: Option<crate::domain::decimal::Rate>| rate.map(|rate| rate.to_string());
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

/// Notes that a service is not in the catalogue.
fn check_service(fields: &mut Fields, catalog: &Catalog, field: &str, service: &str) {
    if (1..=ID_BYTES_MAX).contains(&service.len()) && catalog.service(service).is_none() {
        let (reason, description) = unknown_service(catalog, service);
        fields.wrong_because(reason, field, description);
    }
}

async fn list_services(context: Arc<Context>, _: ListServicesRequest) -> Result<ListServicesResponse, Error> {
    let catalog = context.catalog.refresh(&context.pool).await?;
    Ok(ListServicesResponse { services: catalog.services().map(service_message).collect() })
}

async fn create_service(context: Arc<Context>, request: CreateServiceRequest) -> Result<CreateServiceResponse, Error> {
    let given = request.service.clone().unwrap_or_default();
    let mut fields = Fields::default();
    fields.required("service.service", &given.service, ID_BYTES_MAX);
    fields.text("service.display_name", &given.display_name, DISPLAY_NAME_BYTES_MAX);
    fields.text("service.unit", &given.unit, UNIT_BYTES_MAX);
    if ServiceCategory::try_from(given.category).is_err() {
        fields.wrong("service.category", format!("{} is no category", given.category));
    }
    if given.uncounted_operations.len() > UNCOUNTED_OPERATIONS_MAX {
        fields.wrong("service.uncounted_operations", format!("must be at most {UNCOUNTED_OPERATIONS_MAX}"));
    }
    for (index, operation) in given.uncounted_operations.iter().take(UNCOUNTED_OPERATIONS_MAX).enumerate() {
        fields.text(&format!("service.uncounted_operations[{index}]"), operation, ID_BYTES_MAX);
    }
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    let category = given.category();
    let or = |text: String, default: &str| if text.is_empty() { default.to_string() } else { text };
    let service = Metered {
        service: given.service.as_str().into(),
        display_name: or(given.display_name, &given.service),
        category: match category {
            ServiceCategory::Unspecified => ServiceCategory::Other as i16,
            category => category as i16,
        },
        unit: or(given.unit, UNIT_DEFAULT),
        recurring: given.recurring,
        uncounted_operations: given.uncounted_operations,
    };
    let mut create = match Create::begin(&context, "CreateService", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    locks::change_versions(create.conn()).await?;
    if !store::insert_service(create.conn(), &service).await? {
        let message = format!("service {:?} exists", service.service);
        return Err(Error::already_exists(ErrorReason::ServiceExists, message));
    }
    store::bump_version(create.conn()).await?;
    create.commit(CreateServiceResponse { service: Some(service_message(&service)) }).await
}

async fn list_prices(context: Arc<Context>, request: ListPricesRequest) -> Result<ListPricesResponse, Error> {
    let mut fields = Fields::default();
    fields.text("service", &request.service, ID_BYTES_MAX);
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let query = ListPricesRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    type Cursor = (String, String, String, Option<DateTime<Utc>>);
    let after: Option<Cursor> = context.page_tokens.read("ListPrices", &query, &request.page_token)?;
    let after = after.unwrap_or_default();
    let service = (!request.service.is_empty()).then_some(request.service.as_str());
    let mut conn = context.pool.acquire().await?;
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

async fn create_price(context: Arc<Context>, request: CreatePriceRequest) -> Result<CreatePriceResponse, Error> {
    let given = request.price.clone().unwrap_or_default();
    let catalog = context.catalog.refresh(&context.pool).await?;
    let mut fields = Fields::default();
    fields.required("price.service", &given.service, ID_BYTES_MAX);
    fields.text("price.operation", &given.operation, ID_BYTES_MAX);
    fields.text("price.model", &given.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "price.service", &given.service);
    let effective_time = given.effective_time.as_ref().and_then(|time| fields.time("price.effective_time", time));
    let rates = rates(&mut fields, given.rates.clone());
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    let mut create = match Create::begin(&context, "CreatePrice", &request.request_id, &request).await? {
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
        Error::already_exists(
            ErrorReason::PriceExists,
            "a price of this service, operation, model and effective time exists; prices do not change: make one with a \
             later effective time",
        )
    })?;
    store::bump_version(create.conn()).await?;
    pricing::insert_task(create.conn(), &given.service).await?;
    let response = create.commit(CreatePriceResponse { price: Some(price_message(row)?) }).await?;
    context.pricing_wanted.notify_one();
    Ok(response)
}

async fn create_model_alias(
    context: Arc<Context>,
    request: CreateModelAliasRequest,
) -> Result<CreateModelAliasResponse, Error> {
    let given = request.model_alias.clone().unwrap_or_default();
    let catalog = context.catalog.refresh(&context.pool).await?;
    let mut fields = Fields::default();
    fields.required("model_alias.service", &given.service, ID_BYTES_MAX);
    fields.required("model_alias.alias", &given.alias, ID_BYTES_MAX);
    fields.required("model_alias.model", &given.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "model_alias.service", &given.service);
    if !given.model.is_empty() && (given.model == given.alias || catalog.is_alias(&given.service, &given.model)) {
        fields.wrong("model_alias.model", "must be a model that prices name, not an alias");
    }
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    let mut create = match Create::begin(&context, "CreateModelAlias", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    locks::change_versions(create.conn()).await?;
    let alias =
        store::ModelAlias { service: given.service.clone(), alias: given.alias.clone(), model: given.model.clone() };
    if !store::insert_alias(create.conn(), &alias).await? {
        let message = format!("alias {:?} of service {:?} exists", given.alias, given.service);
        return Err(Error::already_exists(ErrorReason::ModelAliasExists, message));
    }
    store::bump_version(create.conn()).await?;
    pricing::insert_task(create.conn(), &given.service).await?;
    let response = create.commit(CreateModelAliasResponse { model_alias: Some(given) }).await?;
    context.pricing_wanted.notify_one();
    Ok(response)
}

async fn list_model_aliases(
    context: Arc<Context>,
    _: ListModelAliasesRequest,
) -> Result<ListModelAliasesResponse, Error> {
    let mut conn = context.pool.acquire().await?;
    let aliases = store::aliases(&mut conn).await?;
    let message =
        |alias: store::ModelAlias| ModelAlias { service: alias.service, alias: alias.alias, model: alias.model };
    Ok(ListModelAliasesResponse { model_aliases: aliases.into_iter().map(message).collect() })
}

async fn estimate_cost(context: Arc<Context>, request: EstimateCostRequest) -> Result<EstimateCostResponse, Error> {
    let catalog = context.catalog.refresh(&context.pool).await?;
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
    let measures = measures(&mut fields, "", raw);
    let time = request.event_time.as_ref().and_then(|time| fields.time("event_time", time));
    fields.finish()?;
    let time = time.unwrap_or_else(|| context.clock.now());
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
                .into_iter()
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

#[tonic::async_trait]
impl CatalogService for Handlers {
    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        self.run(request, list_services).await
    }

    async fn create_service(
        &self,
        request: Request<CreateServiceRequest>,
    ) -> Result<Response<CreateServiceResponse>, Status> {
        self.run(request, create_service).await
    }

    async fn list_prices(&self, request: Request<ListPricesRequest>) -> Result<Response<ListPricesResponse>, Status> {
        self.run(request, list_prices).await
    }

    async fn create_price(
        &self,
        request: Request<CreatePriceRequest>,
    ) -> Result<Response<CreatePriceResponse>, Status> {
        self.run(request, create_price).await
    }

    async fn create_model_alias(
        &self,
        request: Request<CreateModelAliasRequest>,
    ) -> Result<Response<CreateModelAliasResponse>, Status> {
        self.run(request, create_model_alias).await
    }

    async fn list_model_aliases(
        &self,
        request: Request<ListModelAliasesRequest>,
    ) -> Result<Response<ListModelAliasesResponse>, Status> {
        self.run(request, list_model_aliases).await
    }

    async fn estimate_cost(
        &self,
        request: Request<EstimateCostRequest>,
    ) -> Result<Response<EstimateCostResponse>, Status> {
        self.run(request, estimate_cost).await
    }
}
