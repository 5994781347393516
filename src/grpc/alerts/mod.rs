//! AlertService: alerts themselves, and the table of its RPCs.

pub mod checks;
pub mod notifications;
pub mod policies;
pub mod subscribe;

use crate::grpc::alerts::subscribe::AlertStream;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::{FILTER_VALUES_MAX, Fields};
use crate::grpc::wire::status::status;
use crate::grpc::{Context, Handlers};
use crate::proto::alert_service_server::AlertService;
use crate::proto::*;
use chrono::{DateTime, Utc};
use meterd_domain::access::Scope;
use meterd_domain::alert::{self, AlertType, Change};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::Month;
use meterd_engine::auth::Caller;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::alert_feed;
use meterd_store::alerts::{self, AlertFilter};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;

impl Context {
    /// An alert.
    pub fn alert(&self, alert: &alert::Alert) -> Alert {
        let finding = &alert.finding;
        let text =
            |value: Option<_>| value.map_or_else(String::new, |value: meterd_domain::decimal::Total| value.to_string());
        let period = match finding.kind {
            AlertType::Anomaly => finding.period.to_string(),
            _ => Month::of(finding.period).to_string(),
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
            currency: if finding.service.is_empty() { self.engine.currency.clone() } else { String::new() },
            raise_time: Some(timestamp(alert.raise_time)),
            raise_count: alert.raise_count,
            acknowledge_time: alert.acknowledge_time.map(timestamp),
            acknowledged_by: alert.acknowledged_by.clone(),
            resolve_time: alert.resolve_time.map(timestamp),
        }
    }
}

impl Fields {
    /// Alert types of a filter, as numbers, each once.
    pub fn alert_types(&mut self, types: &[i32]) -> Vec<i16> {
        self.at_most("types", types.len(), FILTER_VALUES_MAX);
        let mut numbers = vec![];
        for (index, kind) in types.iter().take(FILTER_VALUES_MAX).enumerate() {
            match i16::try_from(*kind).ok().filter(|kind| AlertType::try_from(*kind).is_ok()) {
                Some(kind) => numbers.push(kind),
                None => self.wrong(format!("types[{index}]"), format!("{kind} is no alert type")),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// A severity that may be left out, as a number.
    pub fn min_severity(&mut self, field: &str, severity: i32) -> i16 {
        if AlertSeverity::try_from(severity).is_err() {
            self.wrong(field, format!("{severity} is no severity"));
        }
        severity as i16
    }
}

async fn list(context: Arc<Context>, request: ListAlertsRequest) -> Result<ListAlertsResponse, Refusal> {
    let mut fields = Fields::default();
    fields.filter("client_ids", &request.client_ids);
    let kinds = fields.alert_types(&request.types);
    let min_severity = fields.min_severity("min_severity", request.min_severity);
    let (start_time, end_time) = fields.times(request.start_time.as_ref(), request.end_time.as_ref());
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let bound = ListAlertsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let after: Option<(DateTime<Utc>, String)> = context.page_tokens.read("ListAlerts", &bound, &request.page_token)?;
    let filter = AlertFilter {
        client_ids: request.client_ids,
        kinds,
        min_severity,
        unacknowledged_only: request.unacknowledged_only,
        open_only: request.open_only,
        start_time,
        end_time,
    };
    let after = after.as_ref().map(|(time, alert_id)| (*time, alert_id.as_str()));
    let mut alerts = alerts::list(&context.engine.pool, &filter, after, limit + 1).await?;
    let more = !alerts.split_off(alerts.len().min(limit as usize)).is_empty();
    let next_page_token = match alerts.last().filter(|_| more) {
        None => String::new(),
        Some(last) => context.page_tokens.make("ListAlerts", &bound, &(last.raise_time, &last.alert_id)),
    };
    Ok(ListAlertsResponse { alerts: alerts.iter().map(|alert| context.alert(alert)).collect(), next_page_token })
}

fn not_found(alert_id: &str) -> Refusal {
    Refusal::new(Reason::AlertNotFound, format!("no alert {alert_id:?}"))
}

async fn get(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: GetAlertRequest,
) -> Result<GetAlertResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("alert_id", &request.alert_id, ID_BYTES_MAX);
    fields.finish()?;
    let found = alerts::find(&mut *context.engine.pool.acquire().await?, &request.alert_id).await?;
    let alert = found.filter(|alert| caller.grants.covers(Scope::Read, &alert.client_id));
    let alert = alert.ok_or_else(|| not_found(&request.alert_id))?;
    Ok(GetAlertResponse { alert: Some(context.alert(&alert)) })
}

async fn acknowledge(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: AcknowledgeAlertRequest,
) -> Result<AcknowledgeAlertResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("alert_id", &request.alert_id, ID_BYTES_MAX);
    fields.required("acknowledged_by", &request.acknowledged_by, ID_BYTES_MAX);
    fields.finish()?;
    let mut tx = context.engine.pool.begin().await?;
    // A stranger's alert is as if there were none.
    let found = alerts::find(&mut tx, &request.alert_id).await?;
    let found = found.filter(|alert| caller.grants.covers(Scope::Admin, &alert.client_id));
    found.ok_or_else(|| not_found(&request.alert_id))?;
    let alert = match alerts::acknowledge(&mut tx, &request.alert_id, &request.acknowledged_by).await? {
        Some(alert) => {
            alert_feed::append(&mut tx, &[(Change::Acknowledged, alert.clone())]).await?;
            alert
        }
        None => alerts::find(&mut tx, &request.alert_id).await?.ok_or_else(|| not_found(&request.alert_id))?,
    };
    tx.commit().await?;
    Ok(AcknowledgeAlertResponse { alert: Some(context.alert(&alert)) })
}

#[tonic::async_trait]
impl AlertService for Handlers {
    async fn check_alerts(
        &self,
        request: Request<CheckAlertsRequest>,
    ) -> Result<Response<CheckAlertsResponse>, Status> {
        // Dropped with this future, when the caller hangs up or its time is over: then the check of all ends.
        let (_caller, caller) = watch::channel(());
        self.run(request, |context, request| checks::check(context, request, caller)).await
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
        let place = subscribe::place_of_caller(&self.0, &request).map_err(status)?;
        self.run(request, |context, request| subscribe::start(context, request, place)).await
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
