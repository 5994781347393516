//! BillingService.

mod credits;
mod limits;
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

    async fn create_credit_grant(
        &self,
        request: Request<CreateCreditGrantRequest>,
    ) -> Result<Response<CreateCreditGrantResponse>, Status> {
        self.run_as(request, credits::create).await
    }

    async fn get_credit_grant(
        &self,
        request: Request<GetCreditGrantRequest>,
    ) -> Result<Response<GetCreditGrantResponse>, Status> {
        self.run(request, credits::get).await
    }

    async fn list_credit_grants(
        &self,
        request: Request<ListCreditGrantsRequest>,
    ) -> Result<Response<ListCreditGrantsResponse>, Status> {
        self.run(request, credits::list).await
    }

    async fn void_credit_grant(
        &self,
        request: Request<VoidCreditGrantRequest>,
    ) -> Result<Response<VoidCreditGrantResponse>, Status> {
        self.run(request, credits::void).await
    }

    async fn get_credit_balance(
        &self,
        request: Request<GetCreditBalanceRequest>,
    ) -> Result<Response<GetCreditBalanceResponse>, Status> {
        self.run(request, credits::balance).await
    }

    async fn get_current_period(
        &self,
        request: Request<GetCurrentPeriodRequest>,
    ) -> Result<Response<GetCurrentPeriodResponse>, Status> {
        self.run(request, credits::period).await
    }

    async fn create_limit(
        &self,
        request: Request<CreateLimitRequest>,
    ) -> Result<Response<CreateLimitResponse>, Status> {
        self.run_as(request, limits::create).await
    }

    async fn update_limit(
        &self,
        request: Request<UpdateLimitRequest>,
    ) -> Result<Response<UpdateLimitResponse>, Status> {
        self.run(request, limits::update).await
    }

    async fn delete_limit(
        &self,
        request: Request<DeleteLimitRequest>,
    ) -> Result<Response<DeleteLimitResponse>, Status> {
        self.run(request, limits::delete).await
    }

    async fn get_limit(&self, request: Request<GetLimitRequest>) -> Result<Response<GetLimitResponse>, Status> {
        self.run(request, limits::get).await
    }

    async fn list_limits(&self, request: Request<ListLimitsRequest>) -> Result<Response<ListLimitsResponse>, Status> {
        self.run(request, limits::list).await
    }

    async fn check_limit(&self, request: Request<CheckLimitRequest>) -> Result<Response<CheckLimitResponse>, Status> {
        self.run(request, limits::check).await
    }

    async fn batch_check_limits(
        &self,
        request: Request<BatchCheckLimitsRequest>,
    ) -> Result<Response<BatchCheckLimitsResponse>, Status> {
        self.run(request, limits::check_batch).await
    }
}
