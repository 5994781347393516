//! Notifications of AlertService.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::proto::{
    self, ListNotificationsRequest, ListNotificationsResponse, RetryNotificationRequest, RetryNotificationResponse,
    SendTestNotificationRequest, SendTestNotificationResponse,
};
use meterd_domain::notification::NotificationState;
use meterd_engine::alerts::notifications::{self, NotificationQuery};
use meterd_engine::auth::Caller;
use meterd_engine::refusal::Refusal;
use meterd_store::alerts::notifications::Notification;
use std::sync::Arc;

fn message(notification: Notification) -> proto::Notification {
    let pending = notification.state == NotificationState::Pending as i16;
    proto::Notification {
        notification_id: notification.notification_id,
        client_id: notification.client_id,
        kind: notification.kind.into(),
        target: notification.target,
        state: notification.state.into(),
        alert_ids: notification.alert_ids,
        alert_count: notification.alert_count,
        attempt_count: notification.attempt_count,
        next_attempt_time: pending.then(|| timestamp(notification.next_attempt_time)),
        last_error: notification.last_error,
        digest_id: notification.digest_id.unwrap_or_default(),
        create_time: Some(timestamp(notification.create_time)),
        finish_time: notification.finish_time.map(timestamp),
    }
}

/// Lists notifications.
pub async fn list(
    context: Arc<Context>,
    mut request: ListNotificationsRequest,
) -> Result<ListNotificationsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let ListNotificationsRequest { client_id, operator_only, states, .. } = request;
    let query = NotificationQuery { client_id, operator_only, states, page };
    let found = notifications::list(&context.engine, query).await?;
    Ok(ListNotificationsResponse {
        notifications: found.rows.into_iter().map(message).collect(),
        next_page_token: next_token.of(found.next),
    })
}

/// Retries a failed notification.
pub async fn retry(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: RetryNotificationRequest,
) -> Result<RetryNotificationResponse, Refusal> {
    let notification = notifications::retry(&context.engine, &caller, &request.notification_id).await?;
    Ok(RetryNotificationResponse { notification: Some(message(notification)) })
}

/// Sends a test notification to every channel of a policy.
pub async fn send_test(
    context: Arc<Context>,
    request: SendTestNotificationRequest,
) -> Result<SendTestNotificationResponse, Refusal> {
    let sent = notifications::send_test(&context.engine, &request.client_id).await?;
    Ok(SendTestNotificationResponse { notifications: sent.into_iter().map(message).collect() })
}
