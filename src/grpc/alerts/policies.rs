//! Alert policies of AlertService.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::proto::{
    AlertPolicy, GetAlertPolicyRequest, GetAlertPolicyResponse, NotificationChannel, UpdateAlertPolicyRequest,
    UpdateAlertPolicyResponse,
};
use meterd_domain::policy::Policy;
use meterd_domain::policy_fields;
use meterd_engine::alerts::policies::{self, PolicyInput, PolicyView};
use meterd_engine::alerts::{ChannelInput, ChannelView};
use meterd_engine::refusal::Refusal;
use prost_types::FieldMask;
use std::sync::Arc;

/// Converts a value of a policy.
macro_rules! message {
    (switch, $value:expr) => {
        $value
    };
    (day, $value:expr) => {
        $value as i32
    };
    (count, $value:expr) => {
        $value as i32
    };
    (hours, $value:expr) => {
        $value as i32
    };
    ($kind:ident, $value:expr) => {
        $value.to_string()
    };
}

macro_rules! conversions {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $built_in:expr;)*) => {
        impl From<AlertPolicy> for PolicyInput {
            fn from(policy: AlertPolicy) -> Self {
                Self {
                    client_id: policy.client_id,
                    $($name: policy.$name,)*
                    channels: policy.channels.into_iter().map(ChannelInput::from).collect(),
                }
            }
        }

        impl From<&Policy> for AlertPolicy {
            fn from(policy: &Policy) -> Self {
                Self { $($name: Some(message!($kind, policy.$name)),)* ..Self::default() }
            }
        }
    };
}
policy_fields!(conversions);

impl From<PolicyView> for AlertPolicy {
    fn from(view: PolicyView) -> Self {
        Self {
            client_id: view.client_id,
            channels: view.channels.into_iter().map(NotificationChannel::from).collect(),
            overridden_fields: Some(FieldMask { paths: view.overridden_fields }),
            update_time: view.update_time.map(timestamp),
            ..Self::from(&view.policy)
        }
    }
}

impl From<NotificationChannel> for ChannelInput {
    fn from(channel: NotificationChannel) -> Self {
        let NotificationChannel { kind, target, min_severity, secrets, .. } = channel;
        Self { kind, target, min_severity, secrets }
    }
}

impl From<ChannelView> for NotificationChannel {
    fn from(channel: ChannelView) -> Self {
        Self {
            kind: channel.kind.into(),
            target: channel.target,
            min_severity: channel.min_severity as i32,
            secrets: channel.new_secrets,
            secret_count: channel.secret_count as i32,
        }
    }
}

/// Returns a policy.
pub async fn get(context: Arc<Context>, request: GetAlertPolicyRequest) -> Result<GetAlertPolicyResponse, Refusal> {
    let policy = policies::get(&context.engine, &request.client_id).await?;
    Ok(GetAlertPolicyResponse { policy: Some(policy.into()) })
}

/// Changes a policy.
pub async fn update(
    context: Arc<Context>,
    request: UpdateAlertPolicyRequest,
) -> Result<UpdateAlertPolicyResponse, Refusal> {
    let names = request.update_mask.unwrap_or_default().paths;
    let policy = policies::update(&context.engine, request.policy.map(PolicyInput::from), &names).await?;
    Ok(UpdateAlertPolicyResponse { policy: Some(policy.into()) })
}
