//! The outermost layer of a call: its request id, deadline, span and metrics.

use crate::grpc::methods;
use crate::grpc::wire::status::{REQUEST_ID, status};
use foldhash::fast::RandomState;
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use metrics::Histogram;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::{Code, Status};
use tracing::Instrument;

/// Header of requests and responses with the request id.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The response is sent before the caller's deadline, so that it arrives in time. The margin is a tenth of the timeout, at most
/// this.
const DEADLINE_MARGIN_MAX: Duration = Duration::from_millis(10);

/// The outermost layer.
#[derive(Clone, Debug)]
pub struct CallLayer {
    /// Timeout of calls without a deadline.
    pub request_timeout: Duration,
}

/// Returns the request id that the caller sent, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    match sent {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX => id.into(),
        _ => format!("{:032x}", rand::random::<u128>()),
    }
}

/// Parses `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests"). Returns `None` if it is missing or invalid.
fn caller_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_valid = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = is_valid.then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn deadline_exceeded() -> Status {
    status(Refusal::new(
        Reason::DeadlineExceeded,
        "the deadline passed; an event was recorded once or not at all: retry with the same idempotency key",
    ))
}

impl CallLayer {
    /// Calls the next layer within the deadline and the span of the call.
    pub async fn handle(
        &self,
        request: Request<Body>,
        next: impl AsyncFnOnce(Request<Body>) -> Response<Body>,
    ) -> Response<Body> {
        let started = Instant::now();
        let id = request_id(request.headers());
        let method = request.uri().path().to_string();
        let timeout = caller_timeout(request.headers())
            .map(|timeout| timeout - (timeout / 10).min(DEADLINE_MARGIN_MAX))
            .map_or(self.request_timeout, |timeout| timeout.min(Duration::from_secs(u32::MAX.into())));
        let span = tracing::info_span!("call", request_id = %id, %method);
        let header = HeaderValue::from_str(&id).ok();
        let within_deadline = async {
            let response = tokio::time::timeout(timeout, next(request)).await;
            response.unwrap_or_else(|_| deadline_exceeded().into_http())
        };
        let mut response = REQUEST_ID.scope(id, within_deadline).instrument(span.clone()).await;
        if let Some(header) = header {
            response.headers_mut().insert(REQUEST_ID_HEADER, header);
        }
        // The status of a unary call that failed is in the headers. The status of a stream is sent later.
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        let elapsed = started.elapsed();
        record(method, code, elapsed);
        span.in_scope(|| tracing::debug!(?code, elapsed_us = elapsed.as_micros() as u64, "call"));
        response
    }
}

/// Adds a call to the metrics.
fn record(path: String, code: Code, elapsed: Duration) {
    // Looking up a histogram by its labels takes longer than recording a value.
    static SUCCESSES: LazyLock<HashMap<String, Histogram, RandomState>> = LazyLock::new(|| {
        let paths = methods::ROWS.iter().map(|row| format!("/{}", row.method));
        paths.map(|path| (path.clone(), histogram(path, Code::Ok))).collect()
    });
    match SUCCESSES.get(&path).filter(|_| code == Code::Ok) {
        Some(successes) => successes.record(elapsed),
        None => histogram(method_label(path, code), code).record(elapsed),
    }
}

fn histogram(method: String, code: Code) -> Histogram {
    metrics::histogram!("meterd_rpc_seconds", &[("method", method), ("code", format!("{code:?}"))])
}

/// Returns the value of the label "method". Unknown methods share one value, so that callers cannot create labels.
fn method_label(path: String, code: Code) -> String {
    let is_known = methods::row(&path).is_some() || methods::is_standard_method(&path);
    if is_known && code != Code::Unimplemented { path } else { "other".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_parsed_as_the_protocol_defines_them() {
        let timeout = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            caller_timeout(&headers)
        };
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for text in ["", "m", "1", "999999999m", "-1m", "1x"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }
}
