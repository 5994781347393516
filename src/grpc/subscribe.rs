//! SubscribeAlerts.

use super::Context;
use crate::error::Error;
use crate::proto::{SubscribeAlertsRequest, SubscribeAlertsResponse};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub type AlertStream = ReceiverStream<Result<SubscribeAlertsResponse, Status>>;

pub async fn start(_: Arc<Context>, _: SubscribeAlertsRequest) -> Result<AlertStream, Error> {
    todo!()
}
