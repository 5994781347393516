//! AlertService: its RPCs, and the handlers of alerts.

pub mod notifications;
pub mod policies;
pub mod subscribe;

use crate::grpc::alerts::subscribe::AlertStream;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::convert::unix_time;
use crate::grpc::wire::status::status;
use crate::grpc::{Context, Handlers};
use crate::proto::alert_service_server::AlertService;
use crate::proto::*;
use meterd_domain::alert;
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_engine::alerts::{self, AlertQuery};
use meterd_engine::auth::Caller;
use meterd_engine::refusal::Refusal;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

impl Context {
    /// Converts an alert to its message.
    pub fn alert(&self, alert: &alert::Alert) -> Alert {
        let finding = &alert.finding;
        let text = |value: Option<Total>| value.map(|value| value.to_string()).unwrap_or_default();
        let period = match finding.is_of_day() {
            true => finding.period.to_string(),
            false => Month::of(finding.period).to_string(),
        };
        Alert {
            alert_id: alert.alert_id.clone(),
            client_id: alert.client_id.clone(),
            r#type: finding.kind as i32,
            severity: finding.severity as i32,
            period,
            service: finding.service.clone(),
            message: alert.message.clone(),
            current: finding.current.to_string(),
            previous: text(finding.previous),
            threshold: finding.threshold.to_string(),
            percent: text(finding.percent),
            projected: text(finding.projected),
            currency: finding.unit().currency(&self.engine.currency).to_owned(),
            raise_time: Some(timestamp(alert.raise_time)),
            raise_count: alert.raise_count,
            acknowledge_time: alert.acknowledge_time.map(timestamp),
            acknowledged_by: alert.acknowledged_by.clone(),
            resolve_time: alert.resolve_time.map(timestamp),
            limit: finding.limit.as_deref().map(AlertLimit::from),
        }
    }
}

/// Checks one client or all clients. The check of all clients ends if the caller disconnects, which closes `caller`.
async fn check(
    context: Arc<Context>,
    request: CheckAlertsRequest,
    caller: watch::Receiver<()>,
) -> Result<CheckAlertsResponse, Refusal> {
    let is_connected = || caller.has_changed().is_ok();
    let report = alerts::check_now(&context.engine, &request.client_id, is_connected).await?;
    Ok(CheckAlertsResponse {
        checked_count: report.checked_count as i64,
        raised_count: report.raised_count as i64,
        resolved_count: report.resolved_count as i64,
        raised: report.raised.iter().map(|alert| context.alert(alert)).collect(),
        failed_count: report.failed_count as i64,
        failed: report.failed.into_iter().map(|(client_id, message)| FailedCheck { client_id, message }).collect(),
    })
}

async fn list(context: Arc<Context>, mut request: ListAlertsRequest) -> Result<ListAlertsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let query = AlertQuery {
        client_ids: request.client_ids,
        types: request.types,
        min_severity: request.min_severity,
        unacknowledged_only: request.unacknowledged_only,
        open_only: request.open_only,
        start_time: request.start_time.as_ref().map(unix_time),
        end_time: request.end_time.as_ref().map(unix_time),
        page,
    };
    let found = alerts::list(&context.engine, query).await?;
    Ok(ListAlertsResponse {
        alerts: found.rows.iter().map(|alert| context.alert(alert)).collect(),
        next_page_token: next_token.of(found.next),
    })
}

async fn get(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: GetAlertRequest,
) -> Result<GetAlertResponse, Refusal> {
    let alert = alerts::get(&context.engine, &caller, &request.alert_id).await?;
    Ok(GetAlertResponse { alert: Some(context.alert(&alert)) })
}

async fn acknowledge(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: AcknowledgeAlertRequest,
) -> Result<AcknowledgeAlertResponse, Refusal> {
    let AcknowledgeAlertRequest { alert_id, acknowledged_by } = &request;
    let alert = alerts::acknowledge(&context.engine, &caller, alert_id, acknowledged_by).await?;
    Ok(AcknowledgeAlertResponse { alert: Some(context.alert(&alert)) })
}

#[tonic::async_trait]
impl AlertService for Handlers {
    async fn check_alerts(
        &self,
        request: Request<CheckAlertsRequest>,
    ) -> Result<Response<CheckAlertsResponse>, Status> {
        // If the caller disconnects or its deadline passes, the sender is dropped with this future. This ends the check.
        let (_caller, caller) = watch::channel(());
        self.run(request, |context, request| check(context, request, caller)).await
    }

    async fn list_alerts(&self, request: Request<ListAlertsRequest>) -> Result<Response<ListAlertsResponse>, Status> {
        self.run(request, list).await
    }

    async fn get_alert(&self, request: Request<GetAlertRequest>) -> Result<Response<GetAlertResponse>, Status> {
        self.run_as(request, get).await
    }

    async fn acknowledge_alert(
        &self,
        request: Request<AcknowledgeAlertRequest>,
    ) -> Result<Response<AcknowledgeAlertResponse>, Status> {
        self.run_as(request, acknowledge).await
    }

    type SubscribeAlertsStream = AlertStream;

    async fn subscribe_alerts(
        &self,
        request: Request<SubscribeAlertsRequest>,
    ) -> Result<Response<Self::SubscribeAlertsStream>, Status> {
        let slot = subscribe::slot(&self.0, &request).map_err(status)?;
        self.run(request, |context, request| subscribe::start(context, request, slot)).await
    }

    async fn get_alert_policy(
        &self,
        request: Request<GetAlertPolicyRequest>,
    ) -> Result<Response<GetAlertPolicyResponse>, Status> {
        self.run(request, policies::get).await
    }

    async fn update_alert_policy(
        &self,
        request: Request<UpdateAlertPolicyRequest>,
    ) -> Result<Response<UpdateAlertPolicyResponse>, Status> {
        self.run(request, policies::update).await
    }

    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        self.run(request, notifications::list).await
    }

    async fn retry_notification(
        &self,
        request: Request<RetryNotificationRequest>,
    ) -> Result<Response<RetryNotificationResponse>, Status> {
        self.run_as(request, notifications::retry).await
    }

    async fn send_test_notification(
        &self,
        request: Request<SendTestNotificationRequest>,
    ) -> Result<Response<SendTestNotificationResponse>, Status> {
        self.run(request, notifications::send_test).await
    }
}
