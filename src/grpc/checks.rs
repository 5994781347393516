//! CheckAlerts.

use super::Context;
use crate::error::Error;
use crate::proto::{CheckAlertsRequest, CheckAlertsResponse};
use std::sync::Arc;

pub async fn check(_: Arc<Context>, _: CheckAlertsRequest) -> Result<CheckAlertsResponse, Error> {
    todo!()
}
