//! Alert policies of AlertService.

use super::Context;
use crate::error::Error;
use crate::proto::{
    GetAlertPolicyRequest, GetAlertPolicyResponse, UpdateAlertPolicyRequest, UpdateAlertPolicyResponse,
};
use std::sync::Arc;

pub async fn get(_: Arc<Context>, _: GetAlertPolicyRequest) -> Result<GetAlertPolicyResponse, Error> {
    todo!()
}

pub async fn update(_: Arc<Context>, _: UpdateAlertPolicyRequest) -> Result<UpdateAlertPolicyResponse, Error> {
    todo!()
}
