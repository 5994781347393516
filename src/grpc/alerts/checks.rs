//! CheckAlerts.

use crate::grpc::Context;
use crate::grpc::wire::fields::Fields;
use crate::proto::{CheckAlertsRequest, CheckAlertsResponse, FailedCheck};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_engine::alerts::check::{self, Report};
use meterd_engine::refusal::Refusal;
use std::sync::Arc;
use tokio::sync::watch;

/// Checks one client or all. Of all, only as long as the caller is there: its end is that of `caller`.
pub async fn check(
    context: Arc<Context>,
    request: CheckAlertsRequest,
    caller: watch::Receiver<()>,
) -> Result<CheckAlertsResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    fields.finish()?;
    let report = if request.client_id.is_empty() {
        check::all(&context.engine.pool, &context.engine.alert_settings, || caller.has_changed().is_ok()).await?
    } else {
        let checked = check::one(&context.engine.pool, &context.engine.alert_settings, &request.client_id).await?;
        let checked = checked.ok_or_else(|| Refusal::client_not_found(&request.client_id))?;
        Report {
            checked_count: 1,
            raised_count: checked.raised.len() as u64,
            resolved_count: checked.resolved_count as u64,
            raised: checked.raised,
            ..Report::default()
        }
    };
    Ok(CheckAlertsResponse {
        checked_count: report.checked_count as i64,
        raised_count: report.raised_count as i64,
        resolved_count: report.resolved_count as i64,
        raised: report.raised.iter().map(|alert| context.alert(alert)).collect(),
        failed_count: report.failed_count as i64,
        failed: report.failed.into_iter().map(|(client_id, message)| FailedCheck { client_id, message }).collect(),
    })
}
