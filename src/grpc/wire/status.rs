//! Converts refusals to statuses with details. Only this file knows the status code of a reason.

use crate::proto::{EventError, FieldViolation};
use meterd_engine::refusal::{Reason, Refusal};
use meterd_engine::usage::DIFFERING_FIELDS;
use std::collections::HashMap;
use std::future::Future;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "metering.v1";

/// Maximum number of bytes of violations in one status. A status is sent in a header in base64, and clients accept headers of 8 to
/// 16 KiB.
const VIOLATIONS_BYTES_MAX: usize = 4 * 1024;
/// Maximum number of violations of an event of a batch, so that the results of ten thousand events fit into a message.
const EVENT_VIOLATIONS_MAX: usize = 8;

tokio::task_local! {
    /// Id of the request that the current task serves: the caller's `x-request-id`, or an id of the server.
    pub static REQUEST_ID: String;
}

/// Wraps work for another task, so that it keeps the current request id.
pub fn keeping_request_id<F: Future>(work: F) -> impl Future<Output = F::Output> {
    REQUEST_ID.scope(REQUEST_ID.try_with(String::clone).unwrap_or_default(), work)
}

/// Returns the status code of a reason. `errors.proto` documents the codes, and a test compares the two.
pub fn code(reason: Reason) -> Code {
    use Reason::*;
    match reason {
        InvalidField | UnknownService | EventTooOld | EventInFuture | PageTokenInvalid | RangeTooLong
        | ResumeTokenInvalid | MessageInvalid | RateNotConfirmed => Code::InvalidArgument,
        ClientNotFound | EventNotFound | AlertNotFound | NotificationNotFound | JobNotFound | ApiKeyNotFound
        | PriceNotFound | RepriceRunNotFound | PlanNotFound | CreditGrantNotFound | LimitNotFound => Code::NotFound,
        IdempotencyConflict | ClientExists | ServiceExists | PriceExists | ModelAliasExists | RequestIdReused
        | PlanExists | LimitExists => Code::AlreadyExists,
        NotificationNotFailed
        | MonthClosed
        | ApiKeyNotLive
        | PriceWithdrawn
        | PricesOverlap
        | EventVoided
        | LimitBelowUsed
        | PreviousReleaseMayRun => Code::FailedPrecondition,
        ResumeTokenExpired | ResumeTokenAhead => Code::OutOfRange,
        CredentialsMissing | CredentialsInvalid | CredentialsExpired | ApiKeyRevoked => Code::Unauthenticated,
        ScopeMissing | ClientNotCovered | OriginNotAllowed => Code::PermissionDenied,
        QueueFull | TooManyExports | TooManySubscriptions | TooManyApiKeys | TooManyLimits | RateLimited
        | ServerBusy => Code::ResourceExhausted,
        DatabaseUnavailable | DatabaseBroken | ShuttingDown | ConnectionAged | IdentityProviderUnavailable => {
            Code::Unavailable
        }
        DeadlineExceeded => Code::DeadlineExceeded,
        Internal => Code::Internal,
    }
}

/// Returns the status of a refusal, with its details. Logs the cause, if there is one.
///
/// A function and not a `From`, because neither type belongs to this crate.
pub fn status(refusal: Refusal) -> Status {
    let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
    if let Some(cause) = &refusal.cause {
        tracing::error!(%request_id, reason = refusal.reason.name(), cause = format!("{cause:#}"), "call failed");
    }
    let mut details = ErrorDetails::new();
    let mut metadata: HashMap<String, String> =
        refusal.metadata.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    metadata.insert("request_id".into(), request_id);
    let mut bytes = 0;
    for (index, violation) in refusal.fields.iter().enumerate() {
        bytes += violation.field.len() + violation.description.len();
        if bytes > VIOLATIONS_BYTES_MAX {
            let left_out = refusal.fields.len() - index;
            metadata.insert("violations_left_out".into(), left_out.to_string());
            break;
        }
        details.add_bad_request_violation(&violation.field, &violation.description);
    }
    details.set_error_info(refusal.reason.name(), ERROR_DOMAIN, metadata);
    if refusal.retry.is_some() {
        details.set_retry_info(refusal.retry);
    }
    Status::with_error_details(code(refusal.reason), &refusal.message, details)
}

/// Logs nothing, because a batch has up to ten thousand events, and the writer logs one line for the batch.
impl From<Refusal> for EventError {
    fn from(mut error: Refusal) -> Self {
        let differing = error.metadata.iter().find(|(key, _)| *key == DIFFERING_FIELDS);
        let differing = differing.map_or("", |(_, fields)| fields.as_str());
        Self {
            differing_fields: differing.split_terminator(',').map(String::from).collect(),
            code: code(error.reason) as i32,
            reason: error.reason.name().into(),
            retry_delay_ms: error.retry.map_or(0, |delay| delay.as_millis() as i64),
            message: std::mem::take(&mut error.message),
            field_violations: std::mem::take(&mut error.fields)
                .into_iter()
                .take(EVENT_VIOLATIONS_MAX)
                .map(|violation| FieldViolation { field: violation.field, description: violation.description })
                .collect(),
        }
    }
}
