//! The one place that turns an error into a status with its details.

use crate::error::Error;
use crate::grpc::usage::record::DIFFERING_FIELDS;
use crate::proto::{ErrorReason, EventError, FieldViolation};
use std::future::Future;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "metering.v1";

/// Most bytes of violations in one status. It travels in a header, and clients take headers of 8 to 16 KiB, base64 and all.
const VIOLATIONS_BYTES_MAX: usize = 4 * 1024;

tokio::task_local! {
    /// Id of the request that the current task serves: the caller's `x-request-id`, or one made here.
    pub static REQUEST_ID: String;
}

/// Work for a task of its own, under the request id of this one.
pub fn keeping_request_id<F: Future>(work: F) -> impl Future<Output = F::Output> {
    REQUEST_ID.scope(REQUEST_ID.try_with(String::clone).unwrap_or_default(), work)
}

/// The reason without the prefix of its enum.
pub fn reason(error: &Error) -> &'static str {
    error.reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
        if let Some(cause) = &error.cause {
            tracing::error!(%request_id, reason = reason(&error), cause = format!("{cause:#}"), "call failed");
        }
        // In gRPC's own place, and as it says it.
        if error.reason == ErrorReason::Unspecified {
            return Status::new(error.code, error.into_fault().message);
        }
        let mut details = ErrorDetails::new();
        let mut metadata: std::collections::HashMap<String, String> =
            error.metadata.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
        metadata.insert("request_id".into(), request_id);
        let mut bytes = 0;
        for (index, violation) in error.violations.iter().enumerate() {
            bytes += violation.field.len() + violation.description.len();
            if bytes > VIOLATIONS_BYTES_MAX {
                let left_out = error.violations.len() - index;
                metadata.insert("violations_left_out".into(), left_out.to_string());
                break;
            }
            details.add_bad_request_violation(&violation.field, &violation.description);
        }
        details.set_error_info(reason(&error), ERROR_DOMAIN, metadata);
        if error.retry_delay.is_some() {
            details.set_retry_info(error.retry_delay);
        }
        Status::with_error_details(error.code, &error.message, details)
    }
}

/// Without a line in the log: the writer has one for the batch, and a batch has ten thousand events.
impl From<Error> for EventError {
    fn from(mut error: Error) -> Self {
        let differing = error.metadata.iter().find(|(key, _)| *key == DIFFERING_FIELDS);
        let differing = differing.map_or("", |(_, fields)| fields.as_str());
        Self {
            differing_fields: differing.split_terminator(',').map(String::from).collect(),
            code: error.code as i32,
            reason: reason(&error).into(),
            retry_delay_ms: error.retry_delay.map_or(0, |delay| delay.as_millis() as i64),
            message: std::mem::take(&mut error.message),
            field_violations: std::mem::take(&mut error.violations)
                .into_iter()
                .map(|violation| FieldViolation { field: violation.field, description: violation.description })
                .collect(),
        }
    }
}
