//! The audit log: what is written before a call of an admin acts, and after it.

use crate::grpc::methods::Guarded;
use crate::grpc::wire::status::REQUEST_ID;
use crate::grpc::wire::status::code;
use crate::proto;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meterd_engine::auth::Caller;
use meterd_engine::auth::token::without_secrets;
use meterd_engine::refusal::Refusal;
use meterd_store::audit::{self, NewEntry};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};
use serde_json::json;
use sqlx::PgPool;
use std::sync::OnceLock;

/// Longest request that is kept, as JSON.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Stands for a secret.
const REDACTED: &str = "(secret)";

fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(proto::DESCRIPTORS).expect("our own descriptors"))
}

/// Puts a fixed text in the place of every field that the contract marks `debug_redact`, however deep.
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

/// A request in protobuf's JSON mapping, without secrets.
fn request_json<R: Guarded>(request: &R) -> anyhow::Result<String> {
    let (service, rpc) = R::ROW.method.split_once('/').unwrap_or_default();
    let service = descriptors().get_service_by_name(service);
    let method = service.and_then(|service| service.methods().find(|method| method.name() == rpc));
    let input = method.ok_or_else(|| anyhow::anyhow!("no descriptor of {}", R::ROW.method))?.input();
    let mut message = DynamicMessage::decode(input, request.encode_to_vec().as_slice())?;
    debug_assert_eq!(message.descriptor().name(), std::any::type_name::<R>().rsplit("::").next().unwrap_or_default());
    redact(&mut message);
    // A time or duration out of its range has no JSON; its call fails for that, and is written down all the same.
    let text = serde_json::to_string(&message)
        .unwrap_or_else(|_| json!({ "protobufBase64": STANDARD.encode(message.encode_to_vec()) }).to_string());
    let text = without_secrets(&text);
    Ok(if text.len() > REQUEST_BYTES_MAX { json!({ "omittedBytes": text.len() }).to_string() } else { text })
}

/// An entry whose call is under way.
pub struct Begun(i64);

/// Writes down who is about to do what. Where that fails, the call must not act.
pub async fn begin<R: Guarded>(pool: &PgPool, caller: &Caller, address: &str, request: &R) -> Result<Begun, Refusal> {
    let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
    let entry = NewEntry {
        actor_kind: caller.kind as i16,
        actor_id: &caller.id,
        actor_name: &caller.name,
        method: R::ROW.method,
        request: &request_json(request).map_err(Refusal::internal)?,
        request_id: &request_id,
        address,
    };
    Ok(Begun(audit::begin(pool, &entry).await?))
}

impl Begun {
    /// Writes down how the call ended. Where that fails, it is not known; the call is as it is.
    pub async fn finish(self, pool: &PgPool, error: Option<&Refusal>) {
        let (code, reason) = error.map_or((0, ""), |error| (code(error.reason) as i32, error.reason.name()));
        if let Err(error) = audit::finish(pool, self.0, code, reason).await {
            tracing::warn!(%error, entry_id = self.0, "how a call of the audit log ended could not be noted");
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

    #[test]
    fn a_request_that_is_very_large_is_left_out() {
        let request = crate::proto::GetUsageEventRequest { client_id: "x".repeat(300_000), event_id: String::new() };
        assert_eq!(request_json(&request).unwrap(), r#"{"omittedBytes":300015}"#);
    }
}
