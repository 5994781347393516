//! Texts for errors of calls: the reason, the cause and the fix, each only once.

use super::address::PORT_DEFAULT;
use crate::proto::{EventError, FieldViolation};
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Returns the last error of a chain of causes.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Formats a status as lines of text: the reason, the wrong fields and a hint.
pub fn status_text(status: &Status) -> String {
    if is_not_grpc(status) {
        return format!(
            "the server is not a gRPC server ({}): --server must have the gRPC port (--listen, {PORT_DEFAULT} by default), not \
             the port of /healthz and /metrics",
            status.message()
        );
    }
    let info = status.get_details_error_info();
    let name = match &info {
        Some(info) => info.reason.clone(),
        None => format!("{:?}", status.code()),
    };
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let lines: Vec<_> = violations.into_iter().map(|wrong| violation_text(&wrong.field, &wrong.description)).collect();
    let mut text = match (status.message(), &lines[..]) {
        ("", _) => name,
        // The message repeats the violations.
        (message, [first, rest @ ..]) if message.contains(first.as_str()) => match rest {
            [] => format!("{name}: {first}"),
            _ => format!("{name}: {} fields are wrong", lines.len()),
        },
        (message, _) => format!("{name}: {message}"),
    };
    let is_included = |text: &str, line: &str| text.contains(line);
    for line in &lines {
        if !is_included(&text, line) {
            text.push_str(&format!("\n  {line}"));
        }
    }
    if let Some(hint) = hint(status) {
        text.push_str(&format!("\n  {hint}"));
    }
    let mut metadata: Vec<_> = info.into_iter().flat_map(|info| info.metadata).collect();
    metadata.sort();
    for (key, value) in metadata {
        if !value.is_empty() && !is_included(&text, &value) {
            text.push_str(&format!("\n  ({key} {value})"));
        }
    }
    text
}

fn violation_text(field: &str, description: &str) -> String {
    format!("{field}: {description}")
}

/// Returns a hint in terms of the command line, if there is one.
fn hint(status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match (reason.as_str(), status.code()) {
        ("CREDENTIALS_MISSING", _) => Some(
            "set METERD_API_KEY or --api-key; create the first key on the machine of the server with \
             `meterd keys create NAME --scope admin --all-clients --direct`"
                .to_owned(),
        ),
        ("EVENT_TOO_OLD", _) => {
            Some("record old events with `meterd import FILE --backfill`; the file has one event per line".to_owned())
        }
        ("UNKNOWN_SERVICE", _) if status.message().contains("ListServices") => {
            Some("`meterd prices list` shows the services that have prices".to_owned())
        }
        ("CREDENTIALS_INVALID", _) => Some("check METERD_API_KEY and --api-key".to_owned()),
        ("CLIENT_NOT_COVERED", _) if status.message().contains("all of them") => {
            Some("add --client if this command has this flag, or use a key for all clients".to_owned())
        }
        ("", Code::Unimplemented) => {
            Some("the server does not have this method: it may be an older meterd or another program".to_owned())
        }
        _ if is_transport(status) => {
            let cause = std::error::Error::source(status).map(root_cause).unwrap_or_default();
            let cause =
                if cause.is_empty() || status.message().contains(&cause) { cause } else { format!(": {cause}") };
            Some(format!("the connection to the server failed or timed out{cause}"))
        }
        _ => None,
    }
}

/// Converts a status to the error of a command.
pub fn status_error(status: &Status) -> anyhow::Error {
    anyhow::anyhow!(status_text(status))
}

/// Returns the reason and the text of the error of an event or a price as JSON.
pub fn event_error_json(error: &EventError) -> serde_json::Value {
    serde_json::json!({ "reason": error.reason, "message": event_error_text(error) })
}

/// Formats the error of an event as one line: its wrong fields, without the prefix `events[n].`, or the message.
pub fn event_error_text(error: &EventError) -> String {
    let whole = |violation: &FieldViolation| violation_text(&violation.field, &violation.description);
    let is_repeated = error.field_violations.iter().any(|violation| error.message.contains(&whole(violation)));
    if !is_repeated {
        let violations = error.field_violations.iter().map(whole);
        return std::iter::once(error.message.clone())
            .filter(|text| !text.is_empty())
            .chain(violations)
            .collect::<Vec<_>>()
            .join("; ");
    }
    let without_parent = |field: &str| match field.split_once('.') {
        Some((parent, field)) if parent == "event" || parent.starts_with("events[") => field.to_owned(),
        _ => field.to_owned(),
    };
    let violations = error.field_violations.iter();
    violations
        .map(|wrong| violation_text(&without_parent(&wrong.field), &wrong.description))
        .collect::<Vec<_>>()
        .join("; ")
}

/// Whether a retry may succeed. Only for calls that are safe to repeat.
pub fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
        || is_transport(status)
}

/// The delay that the server requests before a retry.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Whether the server speaks HTTP/2 but not gRPC, like the second port. tonic reports this only in the text.
fn is_not_grpc(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::Unknown)
        && status.message().contains("mapped from HTTP status code")
}

/// Whether the client created this status. tonic creates one, with a source, for a broken connection and a local timeout.
fn is_transport(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal)
        && std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, FieldViolation as Wrong};

    #[test]
    fn a_status_reads_with_its_reason_and_each_wrong_field() {
        let mut details =
            ErrorDetails::with_error_info("INVALID_FIELD", "metering.v1", [("request_id".to_owned(), "r1".to_owned())]);
        details.set_bad_request(vec![
            Wrong::new("event.units", "must be zero or more"),
            Wrong::new("event.service", "is required"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "2 fields are wrong", details);
        assert_eq!(
            status_text(&status),
            "INVALID_FIELD: 2 fields are wrong\n  event.units: must be zero or more\n  event.service: is required\n  (request_id r1)"
        );
    }

    #[test]
    fn no_text_is_repeated() {
        let status = |violations: &[(&str, &str)], metadata: &[(&str, &str)]| {
            let of = |(field, text): &(&str, &str)| Wrong::new(*field, *text);
            let pairs = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            let mut details = ErrorDetails::with_error_info(
                "INVALID_FIELD",
                "metering.v1",
                pairs.collect::<std::collections::HashMap<_, _>>(),
            );
            details.set_bad_request(violations.iter().map(of).collect::<Vec<_>>());
            let message =
                violations.iter().map(|(field, text)| format!("{field}: {text}")).collect::<Vec<_>>().join("; ");
            Status::with_error_details(Code::InvalidArgument, message, details)
        };
        let one = status(&[("event.units", "must be zero or more")], &[("limit", "zero")]);
        assert_eq!(status_text(&one), "INVALID_FIELD: event.units: must be zero or more");
        let two = status(&[("a", "is required"), ("b", "is wrong")], &[]);
        assert_eq!(status_text(&two), "INVALID_FIELD: 2 fields are wrong\n  a: is required\n  b: is wrong");
    }

    #[test]
    fn the_error_of_an_event_in_a_batch_names_each_field_once() {
        let violation = FieldViolation { field: "events[1].units".into(), description: "must be zero or more".into() };
        let error = EventError {
            message: "events[1].units: must be zero or more".into(),
            field_violations: vec![violation],
            ..Default::default()
        };
        assert_eq!(event_error_text(&error), "units: must be zero or more");
        let plain = EventError { message: "the server is stopping".into(), ..Default::default() };
        assert_eq!(event_error_text(&plain), "the server is stopping");
    }

    #[test]
    fn a_status_without_details_is_shown_with_its_code() {
        assert_eq!(status_text(&Status::not_found("no")), "NotFound: no");
        assert_eq!(status_text(&Status::internal("")), "Internal");
    }

    #[test]
    fn unavailable_and_exhausted_are_retryable_and_invalid_input_is_not() {
        assert!(is_retryable(&Status::unavailable("")));
        assert!(is_retryable(&Status::resource_exhausted("")));
        assert!(is_retryable(&Status::deadline_exceeded("")));
        assert!(is_retryable(&Status::from_error(Box::new(std::io::Error::other("reset")))));
        assert!(!is_retryable(&Status::invalid_argument("")));
        assert!(!is_retryable(&Status::internal("")));
        assert!(!is_retryable(&Status::unknown("")));
    }

    #[test]
    fn the_retry_delay_is_read_from_retry_info() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        assert_eq!(retry_delay(&status), Some(Duration::from_millis(250)));
        assert_eq!(retry_delay(&Status::unavailable("")), None);
    }
}
