//! BillingService.

mod plans;

use crate::grpc::Handlers;
use crate::proto::billing_service_server::BillingService;
use crate::proto::*;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl BillingService for Handlers {
    async fn create_plan(&self, request: Request<CreatePlanRequest>) -> Result<Response<CreatePlanResponse>, Status> {
        self.run_as(request, plans::create).await
    }

    async fn get_plan(&self, request: Request<GetPlanRequest>) -> Result<Response<GetPlanResponse>, Status> {
        self.run(request, plans::get).await
    }

    async fn list_plans(&self, request: Request<ListPlansRequest>) -> Result<Response<ListPlansResponse>, Status> {
        self.run(request, plans::list).await
    }

    async fn set_client_plan(
        &self,
        request: Request<SetClientPlanRequest>,
    ) -> Result<Response<SetClientPlanResponse>, Status> {
        self.run(request, plans::set).await
    }

    async fn list_client_plans(
        &self,
        request: Request<ListClientPlansRequest>,
    ) -> Result<Response<ListClientPlansResponse>, Status> {
        self.run(request, plans::changes).await
    }

    async fn get_plan_fees(
        &self,
        request: Request<GetPlanFeesRequest>,
    ) -> Result<Response<GetPlanFeesResponse>, Status> {
        self.run(request, plans::fees).await
    }
}
