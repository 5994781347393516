//! Notifications of AlertService.

use crate::grpc::Context;
use crate::grpc::clients;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::{FILTER_VALUES_MAX, Fields};
use crate::proto::{
    self, ListNotificationsRequest, ListNotificationsResponse, RetryNotificationRequest, RetryNotificationResponse,
    SendTestNotificationRequest, SendTestNotificationResponse,
};
use chrono::{DateTime, Utc};
use meterd_domain::access::Scope;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::notification::NotificationState;
use meterd_engine::auth::Caller;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::notifications::{self, Notification};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;
/// How long a test waits for its outcome beyond the time of an attempt, and how often it looks.
const TEST_MARGIN: Duration = Duration::from_secs(3);
const TEST_LOOK_EVERY: Duration = Duration::from_millis(100);

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
    request: ListNotificationsRequest,
) -> Result<ListNotificationsResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    if request.operator_only && !request.client_id.is_empty() {
        fields.wrong(
            "operator_only",
            "must not be set together with client_id: the operator's channels are nobody else's",
        );
    }
    fields.at_most("states", request.states.len(), FILTER_VALUES_MAX);
    let mut states = vec![];
    for (index, state) in request.states.iter().take(FILTER_VALUES_MAX).enumerate() {
        match i16::try_from(*state).ok().filter(|state| NotificationState::try_from(*state).is_ok()) {
            Some(state) => states.push(state),
            None => fields.wrong(format!("states[{index}]"), format!("{state} is no state of a notification")),
        }
    }
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let bound = ListNotificationsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let after: Option<(DateTime<Utc>, String)> =
        context.page_tokens.read("ListNotifications", &bound, &request.page_token)?;
    let after = after.as_ref().map(|(time, notification_id)| (*time, notification_id.as_str()));
    let client_id = (request.operator_only || !request.client_id.is_empty()).then_some(request.client_id.as_str());
    let mut rows = notifications::list(&context.engine.pool, client_id, &states, after, limit + 1).await?;
    let more = !rows.split_off(rows.len().min(limit as usize)).is_empty();
    let next_page_token = match rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => context.page_tokens.make("ListNotifications", &bound, &(last.create_time, &last.notification_id)),
    };
    Ok(ListNotificationsResponse { notifications: rows.into_iter().map(message).collect(), next_page_token })
}

/// Tries a notification again that was given up.
pub async fn retry(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: RetryNotificationRequest,
) -> Result<RetryNotificationResponse, Refusal> {
    let id = request.notification_id.as_str();
    let mut fields = Fields::default();
    fields.required("notification_id", id, ID_BYTES_MAX);
    fields.finish()?;
    // Those of the operator's channels are for who is admin for all; a stranger's are as if there were none.
    let covered = |client_id: &str| match client_id {
        "" => caller.grants.covers_all(Scope::Admin),
        client_id => caller.grants.covers(Scope::Admin, client_id),
    };
    let not_found = || Refusal::new(Reason::NotificationNotFound, format!("no notification {id:?}"));
    let found = notifications::find(&context.engine.pool, id).await?;
    found.filter(|found| covered(&found.client_id)).ok_or_else(not_found)?;
    let retried = notifications::retry(&context.engine.pool, id).await?;
    if !retried {
        let message = format!("notification {id:?} was not given up: there is nothing to try again");
        return Err(Refusal::new(Reason::NotificationNotFailed, message));
    }
    context.engine.notifications_wanted.notify_one();
    let found = notifications::find(&context.engine.pool, id).await?.ok_or_else(not_found)?;
    Ok(RetryNotificationResponse { notification: Some(message(found)) })
}

/// Sends a test to every channel of a policy, and waits for what becomes of it.
pub async fn send_test(
    context: Arc<Context>,
    request: SendTestNotificationRequest,
) -> Result<SendTestNotificationResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    fields.finish()?;
    if !request.client_id.is_empty() {
        clients::existing(&context, &request.client_id).await?;
    }
    let id = format!("{:032x}-test", rand::random::<u128>());
    let mut ids = notifications::insert_tests(&context.engine.pool, &request.client_id, &id).await?;
    ids.sort();
    context.engine.notifications_wanted.notify_one();
    let attempt = context.engine.config.notify.timeout;
    let give_up = Instant::now() + attempt + TEST_MARGIN;
    loop {
        let mut found = vec![];
        for id in &ids {
            found.extend(notifications::find(&context.engine.pool, id).await?);
        }
        let pending = found.iter().any(|test| test.state == NotificationState::Pending as i16);
        if !pending || Instant::now() > give_up || *context.stopping.borrow() {
            return Ok(SendTestNotificationResponse { notifications: found.into_iter().map(message).collect() });
        }
        tokio::time::sleep(TEST_LOOK_EVERY).await;
    }
}
