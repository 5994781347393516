//! CatalogService: its RPCs, and the handlers of services and aliases.

pub mod estimate;
pub mod prices;
pub mod reprice;

use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::grpc::{Context, Handlers};
use crate::proto::catalog_service_server::CatalogService;
use crate::proto::{
    CancelRepriceRunRequest, CancelRepriceRunResponse, CreateModelAliasRequest, CreateModelAliasResponse,
    CreatePriceRequest, CreatePriceResponse, CreateServiceRequest, CreateServiceResponse, EstimateCostRequest,
    EstimateCostResponse, GetRepriceRunRequest, GetRepriceRunResponse, ImportPricesRequest, ImportPricesResponse,
    ListModelAliasesRequest, ListModelAliasesResponse, ListPricesRequest, ListPricesResponse, ListServicesRequest,
    ListServicesResponse, ModelAlias, RepriceUsageRequest, RepriceUsageResponse, RetirePriceRequest,
    RetirePriceResponse, Service,
};
use meterd_domain::catalog as domain;
use meterd_engine::auth::Caller;
use meterd_engine::catalog::aliases;
use meterd_engine::catalog::services::{self, NewService};
use meterd_engine::refusal::Refusal;
use meterd_store::catalog as store;
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

impl From<domain::Service> for Service {
    fn from(service: domain::Service) -> Self {
        Self {
            service: service.service.to_string(),
            display_name: service.display_name,
            category: service.category.into(),
            unit: service.unit,
            recurring: service.recurring,
            uncounted_operations: service.uncounted_operations,
        }
    }
}

impl From<Service> for NewService {
    fn from(service: Service) -> Self {
        let Service { service, display_name, category, unit, recurring, uncounted_operations } = service;
        Self { service, display_name, category, unit, recurring, uncounted_operations }
    }
}

impl From<store::ModelAlias> for ModelAlias {
    fn from(alias: store::ModelAlias) -> Self {
        let store::ModelAlias { service, alias, model } = alias;
        Self { service, alias, model }
    }
}

impl From<ModelAlias> for store::ModelAlias {
    fn from(alias: ModelAlias) -> Self {
        let ModelAlias { service, alias, model } = alias;
        Self { service, alias, model }
    }
}

async fn list_services(context: Arc<Context>, _: ListServicesRequest) -> Result<ListServicesResponse, Refusal> {
    let services = services::list(&context.engine).await?;
    Ok(ListServicesResponse { services: services.into_iter().map(Service::from).collect() })
}

fn created_service(service: domain::Service) -> CreateServiceResponse {
    CreateServiceResponse { service: Some(service.into()) }
}

async fn create_service(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateServiceRequest,
) -> Result<CreateServiceResponse, Refusal> {
    let encode = |service: &domain::Service| created_service(service.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let service = NewService::from(request.service.unwrap_or_default());
    answer(services::create(&context.engine, service, idempotency).await?, created_service)
}

fn created_alias(alias: store::ModelAlias) -> CreateModelAliasResponse {
    CreateModelAliasResponse { model_alias: Some(alias.into()) }
}

async fn create_model_alias(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateModelAliasRequest,
) -> Result<CreateModelAliasResponse, Refusal> {
    let encode = |alias: &store::ModelAlias| created_alias(alias.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let alias = store::ModelAlias::from(request.model_alias.unwrap_or_default());
    answer(aliases::create(&context.engine, alias, idempotency).await?, created_alias)
}

async fn list_model_aliases(
    context: Arc<Context>,
    _: ListModelAliasesRequest,
) -> Result<ListModelAliasesResponse, Refusal> {
    let aliases = aliases::list(&context.engine).await?;
    Ok(ListModelAliasesResponse { model_aliases: aliases.into_iter().map(ModelAlias::from).collect() })
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
        self.run_as(request, prices::list).await
    }

    async fn create_price(
        &self,
        request: Request<CreatePriceRequest>,
    ) -> Result<Response<CreatePriceResponse>, Status> {
        self.run_as(request, prices::create).await
    }

    async fn retire_price(
        &self,
        request: Request<RetirePriceRequest>,
    ) -> Result<Response<RetirePriceResponse>, Status> {
        self.run(request, prices::retire).await
    }

    async fn import_prices(
        &self,
        request: Request<ImportPricesRequest>,
    ) -> Result<Response<ImportPricesResponse>, Status> {
        self.run(request, prices::import).await
    }

    async fn reprice_usage(
        &self,
        request: Request<RepriceUsageRequest>,
    ) -> Result<Response<RepriceUsageResponse>, Status> {
        self.run_as(request, reprice::begin).await
    }

    async fn get_reprice_run(
        &self,
        request: Request<GetRepriceRunRequest>,
    ) -> Result<Response<GetRepriceRunResponse>, Status> {
        self.run(request, reprice::get).await
    }

    async fn cancel_reprice_run(
        &self,
        request: Request<CancelRepriceRunRequest>,
    ) -> Result<Response<CancelRepriceRunResponse>, Status> {
        self.run(request, reprice::cancel).await
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
        self.run_as(request, estimate::estimate).await
    }
}
