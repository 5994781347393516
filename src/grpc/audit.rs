//! The audit log: requests as JSON without secrets, and the entries of the log as messages.

use crate::grpc::methods::Guarded;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::status::{REQUEST_ID, code};
use crate::proto::{self, AuditEntry};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meterd_engine::audit::{self, Call, OpenEntry};
use meterd_engine::auth::Caller;
use meterd_engine::refusal::Refusal;
use meterd_store::admin::audit::Entry;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};
use serde_json::json;
use sqlx::PgPool;
use std::sync::OnceLock;

/// The text in place of a secret.
const REDACTED: &str = "(secret)";

fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(proto::DESCRIPTORS).expect("descriptors of the build are valid"))
}

/// Replaces the value of every field with the option `debug_redact` by a fixed text, at any depth.
fn redact(message: &mut DynamicMessage) {
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        let secret = field.options().get_field_by_name("debug_redact").is_some_and(|on| on.as_bool() == Some(true));
        match message.get_field_mut(&field) {
            Value::String(text) if secret => *text = REDACTED.into(),
            Value::List(values) if secret => values.fill(Value::String(REDACTED.into())),
            _ if secret => message.clear_field(&field),
            Value::Message(inner) => redact(inner),
            Value::List(values) => values.iter_mut().for_each(redact_value),
            Value::Map(values) => values.values_mut().for_each(redact_value),
            _ => {}
        }
    }
}

fn redact_value(value: &mut Value) {
    if let Value::Message(inner) = value {
        redact(inner);
    }
}

/// Returns a request in protobuf's JSON mapping, without secrets.
fn request_json<R: Guarded>(request: &R) -> anyhow::Result<String> {
    let (service, rpc) = R::ROW.method.split_once('/').unwrap_or_default();
    let service = descriptors().get_service_by_name(service);
    let method = service.and_then(|service| service.methods().find(|method| method.name() == rpc));
    let input = method.ok_or_else(|| anyhow::anyhow!("no descriptor of {}", R::ROW.method))?.input();
    let mut message = DynamicMessage::decode(input, request.encode_to_vec().as_slice())?;
    debug_assert_eq!(message.descriptor().name(), std::any::type_name::<R>().rsplit("::").next().unwrap_or_default());
    redact(&mut message);
    // A time or duration that is out of range has no JSON. The call is rejected, but must be logged too.
    Ok(serde_json::to_string(&message)
        .unwrap_or_else(|_| json!({ "protobufBase64": STANDARD.encode(message.encode_to_vec()) }).to_string()))
}

/// Writes the entry of a call, before the handler acts.
pub async fn begin<R: Guarded>(
    pool: &PgPool,
    caller: &Caller,
    address: &str,
    request: &R,
) -> Result<OpenEntry, Refusal> {
    let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
    let request = request_json(request).map_err(Refusal::internal)?;
    audit::begin(pool, caller, Call { method: R::ROW.method, request: &request, request_id: &request_id, address })
        .await
}

/// Adds the outcome of a call to its entry.
pub async fn finish(entry: OpenEntry, pool: &PgPool, error: Option<&Refusal>) {
    let (code, reason) = error.map_or((0, ""), |error| (code(error.reason) as i32, error.reason.name()));
    entry.finish(pool, code, reason).await;
}

impl From<Entry> for AuditEntry {
    fn from(entry: Entry) -> Self {
        Self {
            entry_id: entry.entry_id,
            time: Some(timestamp(entry.time)),
            actor_kind: entry.actor_kind.into(),
            actor_id: entry.actor_id,
            actor_name: entry.actor_name,
            method: entry.method,
            request_json: entry.request,
            request_id: entry.request_id,
            address: entry.address,
            code: entry.code,
            reason: entry.reason.unwrap_or_default(),
            finish_time: entry.finish_time.map(timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{AlertPolicy, NotificationChannel, UpdateAlertPolicyRequest};

    #[test]
    fn secrets_of_a_request_are_left_out() {
        let channel = NotificationChannel {
            target: "https://example.com".into(),
            secrets: vec!["whsec_one".into(), "whsec_two".into()],
            ..Default::default()
        };
        let policy = AlertPolicy { client_id: "acme".into(), channels: vec![channel], ..Default::default() };
        let request = UpdateAlertPolicyRequest { policy: Some(policy), ..Default::default() };
        let text = request_json(&request).unwrap();
        let expected = r#"{"policy":{"clientId":"acme","channels":[{"target":"https://example.com","secrets":["(secret)","(secret)"]}]}}"#;
        assert_eq!(text, expected);
    }
}
