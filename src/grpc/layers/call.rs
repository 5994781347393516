//! What surrounds every call: its request id, deadline, span and metrics.

use crate::grpc::methods;
use crate::grpc::wire::status::{REQUEST_ID, status};
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;

/// Header that carries the request id, both ways.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The answer leaves so much before the caller's deadline, so that it arrives before the caller gives up: a tenth of the
/// time, at most this.
const DEADLINE_MARGIN_MAX: Duration = Duration::from_millis(10);

/// Wraps a service.
#[derive(Clone, Debug)]
pub struct CallLayer {
    /// Longest time for a call that gives no deadline of its own.
    pub request_timeout: Duration,
}

/// A wrapped service.
#[derive(Clone, Debug)]
pub struct CallService<S> {
    inner: S,
    request_timeout: Duration,
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService { inner, request_timeout: self.request_timeout }
    }
}

/// The caller's request id if it is a plain one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX => id.into(),
        _ => format!("{:032x}", rand::random::<u128>()),
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn caller_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = plain.then(|| digits.parse().ok())??;
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
        "the deadline passed; an event was recorded once or not at all: send it again with the same idempotency key",
    ))
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let id = request_id(request.headers());
        let method = request.uri().path().to_string();
        let timeout = caller_timeout(request.headers())
            .map(|timeout| timeout - (timeout / 10).min(DEADLINE_MARGIN_MAX))
            .map_or(self.request_timeout, |timeout| timeout.min(Duration::from_secs(u32::MAX.into())));
        let started = Instant::now();
        let span = tracing::info_span!("call", request_id = %id, %method);
        let call = self.inner.call(request);
        let work = async move {
            let header = HeaderValue::from_str(&id).ok();
            let done = REQUEST_ID
                .scope(id, async {
                    match tokio::time::timeout(timeout, call).await {
                        Ok(done) => done,
                        Err(_) => Ok(deadline_exceeded().into_http()),
                    }
                })
                .await;
            done.map(|mut response| {
                if let Some(header) = header {
                    response.headers_mut().insert(REQUEST_ID_HEADER, header);
                }
                // Errors of unary calls are in the headers; what a stream ends with comes later.
                let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
                let elapsed = started.elapsed();
                let labels = [("method", known_method(method, code)), ("code", format!("{code:?}"))];
                metrics::histogram!("meterd_rpc_seconds", &labels).record(elapsed);
                tracing::debug!(?code, elapsed_us = elapsed.as_micros() as u64, "call");
                response
            })
        };
        Box::pin(work.instrument(span))
    }
}

/// Methods of gRPC's own services.
const GRPC_METHODS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The method, unless it is none of ours: strangers do not make labels.
fn known_method(path: String, code: Code) -> String {
    let ours = methods::row(&path).is_some() || GRPC_METHODS.contains(&path.as_str());
    if ours && code != Code::Unimplemented { path } else { "other".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
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
