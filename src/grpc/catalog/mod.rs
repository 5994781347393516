//! CatalogService: services and aliases, and the table of its RPCs. Prices have a file of their own.

pub mod prices;

use crate::grpc::usage::events::unknown_service;
use crate::grpc::wire::fields::Fields;
use crate::grpc::wire::idempotent_create::{Begun, Create, check_request_id};
use crate::grpc::{Context, Handlers};
use crate::proto::catalog_service_server::CatalogService;
use crate::proto::{
    CreateModelAliasRequest, CreateModelAliasResponse, CreatePriceRequest, CreatePriceResponse, CreateServiceRequest,
    CreateServiceResponse, EstimateCostRequest, EstimateCostResponse, ListModelAliasesRequest,
    ListModelAliasesResponse, ListPricesRequest, ListPricesResponse, ListServicesRequest, ListServicesResponse,
    ModelAlias, Service, ServiceCategory,
};
use meterd_domain::catalog::{Catalog, Service as Metered};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_engine::auth::Caller;
use meterd_engine::clients::DISPLAY_NAME_BYTES_MAX;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::catalog::{self as store};
use meterd_store::{locks, pricing, summaries};
use std::sync::Arc;
use tonic::{Request, Response, Status};

const UNIT_BYTES_MAX: usize = 64;
const UNIT_DEFAULT: &str = "unit";
const UNCOUNTED_OPERATIONS_MAX: usize = 100;

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

/// Notes that a service is not in the catalogue.
pub fn check_service(fields: &mut Fields, catalog: &Catalog, field: &str, service: &str) {
    if (1..=ID_BYTES_MAX).contains(&service.len()) && catalog.service(service).is_none() {
        let (reason, description) = unknown_service(catalog, service);
        fields.wrong_because(reason, field, description);
    }
}

async fn list_services(context: Arc<Context>, _: ListServicesRequest) -> Result<ListServicesResponse, Refusal> {
    let catalog = context.engine.catalog.refresh(&context.engine.pool).await?;
    Ok(ListServicesResponse { services: catalog.services().map(service_message).collect() })
}

async fn create_service(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateServiceRequest,
) -> Result<CreateServiceResponse, Refusal> {
    let given = request.service.clone().unwrap_or_default();
    let mut fields = Fields::default();
    fields.required_identifier("service.service", &given.service, ID_BYTES_MAX);
    fields.text("service.display_name", &given.display_name, DISPLAY_NAME_BYTES_MAX);
    fields.text("service.unit", &given.unit, UNIT_BYTES_MAX);
    if ServiceCategory::try_from(given.category).is_err() {
        fields.wrong("service.category", format!("{} is no category", given.category));
    }
    if given.uncounted_operations.len() > UNCOUNTED_OPERATIONS_MAX {
        fields.wrong("service.uncounted_operations", format!("must be at most {UNCOUNTED_OPERATIONS_MAX}"));
    }
    for (index, operation) in given.uncounted_operations.iter().take(UNCOUNTED_OPERATIONS_MAX).enumerate() {
        fields.identifier(&format!("service.uncounted_operations[{index}]"), operation, ID_BYTES_MAX);
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
    let mut create = match Create::begin(&context, &caller, "CreateService", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    locks::change_versions(create.conn()).await?;
    if !store::insert_service(create.conn(), &service).await? {
        let message = format!("service {:?} exists", service.service);
        return Err(Refusal::new(Reason::ServiceExists, message));
    }
    store::bump_version(create.conn()).await?;
    // Events of it may have been kept: they get another reason, and their months count by its category from now on.
    pricing::insert_task(create.conn(), &service.service).await?;
    summaries::mark_stale(create.conn(), &service.service).await?;
    create.commit(CreateServiceResponse { service: Some(service_message(&service)) }).await
}

/// Notes what would make a chain of aliases.
fn check_chain(fields: &mut Fields, catalog: &Catalog, given: &ModelAlias) {
    if !given.model.is_empty() && (given.model == given.alias || catalog.is_alias(&given.service, &given.model)) {
        fields.wrong("model_alias.model", "must be a model that prices name, not an alias");
    }
    let taken = catalog.is_aliased(&given.service, &given.alias);
    if taken && !catalog.is_alias(&given.service, &given.alias) {
        fields.wrong("model_alias.alias", "must be no model that has an alias itself");
    }
}

async fn create_model_alias(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateModelAliasRequest,
) -> Result<CreateModelAliasResponse, Refusal> {
    let given = request.model_alias.clone().unwrap_or_default();
    let catalog = context.engine.catalog.refresh(&context.engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("model_alias.service", &given.service, ID_BYTES_MAX);
    fields.required_identifier("model_alias.alias", &given.alias, ID_BYTES_MAX);
    fields.required_identifier("model_alias.model", &given.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "model_alias.service", &given.service);
    check_chain(&mut fields, &catalog, &given);
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    let mut create = match Create::begin(&context, &caller, "CreateModelAlias", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    locks::change_versions(create.conn()).await?;
    // Again under the lock: of two at once that would make a chain, the second sees the first.
    let mut fields = Fields::default();
    check_chain(&mut fields, &store::load(create.conn()).await?, &given);
    fields.finish()?;
    let alias =
        store::ModelAlias { service: given.service.clone(), alias: given.alias.clone(), model: given.model.clone() };
    if !store::insert_alias(create.conn(), &alias).await? {
        let message = format!("alias {:?} of service {:?} exists", given.alias, given.service);
        return Err(Refusal::new(Reason::ModelAliasExists, message));
    }
    store::bump_version(create.conn()).await?;
    pricing::insert_task(create.conn(), &given.service).await?;
    let response = create.commit(CreateModelAliasResponse { model_alias: Some(given) }).await?;
    context.engine.pricing_wanted.notify_one();
    Ok(response)
}

async fn list_model_aliases(
    context: Arc<Context>,
    _: ListModelAliasesRequest,
) -> Result<ListModelAliasesResponse, Refusal> {
    let mut conn = context.engine.pool.acquire().await?;
    let aliases = store::aliases(&mut conn).await?;
    let message =
        |alias: store::ModelAlias| ModelAlias { service: alias.service, alias: alias.alias, model: alias.model };
    Ok(ListModelAliasesResponse { model_aliases: aliases.into_iter().map(message).collect() })
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
        self.run_as(request, create_service).await
    }

    async fn list_prices(&self, request: Request<ListPricesRequest>) -> Result<Response<ListPricesResponse>, Status> {
        self.run(request, prices::list).await
    }

    async fn create_price(
        &self,
        request: Request<CreatePriceRequest>,
    ) -> Result<Response<CreatePriceResponse>, Status> {
        self.run_as(request, prices::create).await
    }

    async fn create_model_alias(
        &self,
        request: Request<CreateModelAliasRequest>,
    ) -> Result<Response<CreateModelAliasResponse>, Status> {
        self.run_as(request, create_model_alias).await
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
        self.run(request, prices::estimate).await
    }
}
