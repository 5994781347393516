//! UsageService: its RPCs. The handlers are in the other modules.

pub mod corrections;
mod events;
pub mod export;
pub mod query;
pub mod reads;
pub mod record;
pub mod stream;
pub mod summaries;

use crate::grpc::wire::status::status;
use crate::grpc::{Handlers, admit, caller};
use crate::proto::usage_service_server::UsageService;
use crate::proto::*;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl UsageService for Handlers {
    async fn track_usage(&self, request: Request<TrackUsageRequest>) -> Result<Response<TrackUsageResponse>, Status> {
        let (caller, request) = admit(request).map_err(status)?;
        Ok(Response::new(record::track(&self.0, &caller, request).await.map_err(status)?))
    }

    async fn batch_track_usage(
        &self,
        request: Request<BatchTrackUsageRequest>,
    ) -> Result<Response<BatchTrackUsageResponse>, Status> {
        let (caller, request) = admit(request).map_err(status)?;
        Ok(Response::new(record::batch(&self.0, &caller, request).await.map_err(status)?))
    }

    type StreamUsageStream = ReceiverStream<Result<StreamUsageResponse, Status>>;

    async fn stream_usage(
        &self,
        request: Request<Streaming<StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let caller = caller(&request).map_err(status)?;
        Ok(Response::new(stream::run(self.0.clone(), caller, request.into_inner())))
    }

    async fn get_current_month_usage(
        &self,
        request: Request<GetCurrentMonthUsageRequest>,
    ) -> Result<Response<GetCurrentMonthUsageResponse>, Status> {
        self.run(request, reads::current_month).await
    }

    async fn get_forecast(
        &self,
        request: Request<GetForecastRequest>,
    ) -> Result<Response<GetForecastResponse>, Status> {
        self.run(request, reads::forecast).await
    }

    async fn get_usage_summary(
        &self,
        request: Request<GetUsageSummaryRequest>,
    ) -> Result<Response<GetUsageSummaryResponse>, Status> {
        self.run(request, reads::summary).await
    }

    async fn query_usage(&self, request: Request<QueryUsageRequest>) -> Result<Response<QueryUsageResponse>, Status> {
        self.run(request, query::run).await
    }

    async fn get_usage_event(
        &self,
        request: Request<GetUsageEventRequest>,
    ) -> Result<Response<GetUsageEventResponse>, Status> {
        self.run(request, reads::get_event).await
    }

    async fn list_usage_events(
        &self,
        request: Request<ListUsageEventsRequest>,
    ) -> Result<Response<ListUsageEventsResponse>, Status> {
        self.run(request, reads::list_events).await
    }

    type ExportUsageStream = ReceiverStream<Result<ExportUsageResponse, Status>>;

    async fn export_usage(
        &self,
        request: Request<ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        let slot = export::slot_of_caller(&self.0, &request).map_err(status)?;
        self.run(request, |context, request| export::start(context, request, slot)).await
    }

    async fn get_platform_usage(
        &self,
        request: Request<GetPlatformUsageRequest>,
    ) -> Result<Response<GetPlatformUsageResponse>, Status> {
        self.run(request, reads::platform).await
    }

    async fn update_monthly_summaries(
        &self,
        request: Request<UpdateMonthlySummariesRequest>,
    ) -> Result<Response<UpdateMonthlySummariesResponse>, Status> {
        self.run(request, summaries::update).await
    }

    async fn list_monthly_summaries(
        &self,
        request: Request<ListMonthlySummariesRequest>,
    ) -> Result<Response<ListMonthlySummariesResponse>, Status> {
        self.run(request, summaries::list).await
    }

    async fn rebuild_rollups(
        &self,
        request: Request<RebuildRollupsRequest>,
    ) -> Result<Response<RebuildRollupsResponse>, Status> {
        self.run(request, summaries::rebuild_rollups).await
    }

    async fn void_usage(&self, request: Request<VoidUsageRequest>) -> Result<Response<VoidUsageResponse>, Status> {
        self.run_as(request, corrections::void).await
    }

    async fn correct_usage(
        &self,
        request: Request<CorrectUsageRequest>,
    ) -> Result<Response<CorrectUsageResponse>, Status> {
        self.run_as(request, corrections::correct).await
    }

    async fn list_adjustments(
        &self,
        request: Request<ListAdjustmentsRequest>,
    ) -> Result<Response<ListAdjustmentsResponse>, Status> {
        self.run(request, corrections::list).await
    }

    async fn explain_charge(
        &self,
        request: Request<ExplainChargeRequest>,
    ) -> Result<Response<ExplainChargeResponse>, Status> {
        self.run(request, corrections::explain_charge).await
    }

    async fn explain_usage(
        &self,
        request: Request<ExplainUsageRequest>,
    ) -> Result<Response<ExplainUsageResponse>, Status> {
        self.run(request, corrections::explain_usage).await
    }
}
