//! Notifications of AlertService.

use super::Context;
use crate::error::Error;
use crate::proto::{
    ListNotificationsRequest, ListNotificationsResponse, RetryNotificationRequest, RetryNotificationResponse,
};
use std::sync::Arc;

pub async fn list(_: Arc<Context>, _: ListNotificationsRequest) -> Result<ListNotificationsResponse, Error> {
    todo!()
}

pub async fn retry(_: Arc<Context>, _: RetryNotificationRequest) -> Result<RetryNotificationResponse, Error> {
    todo!()
}
