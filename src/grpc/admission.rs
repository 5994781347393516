//! Who is let in: so many calls and streams at once, and so many bytes of requests. Beyond, callers are told to come back.

use super::MESSAGE_BYTES_MAX;
use super::received::{Budget, Expected, Held, ReceivedBody};
use crate::error::Error;
use crate::proto::{self, ErrorReason};
use hyper::body::{Frame, SizeHint};
use prost::Message;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Streams of gRPC's own services, health and reflection, at once: everybody may call them, also without a key, so they have
/// places of their own.
const PUBLIC_STREAMS_MAX: usize = 1_000;
const PUBLIC_PATHS: &str = "/grpc.";
/// When to ask again for one of the places.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Longest message of a stream of events, which keeps a buffer of that size. An event may have some 10 KiB: the rest is for what
/// is refused with a reason.
const STREAMED_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Longest message of other requests, but for batches of events.
const OTHER_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Longest message that a method takes.
fn message_bytes_max(path: &str) -> usize {
    match path {
        "/metering.v1.UsageService/BatchTrackUsage" => MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/StreamUsage" => STREAMED_MESSAGE_BYTES_MAX,
        _ => OTHER_MESSAGE_BYTES_MAX,
    }
}

/// A call's place and the bytes of its request. In the extensions of its request, so that work which goes on after its caller
/// has hung up keeps them: whoever resets calls as fast as it makes them gets no more work done than others.
#[derive(Clone)]
pub struct Admitted {
    permit: Arc<OwnedSemaphorePermit>,
    held: Arc<Held>,
}

/// How many may be in.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    pub calls_max: usize,
    pub streams_max: usize,
    pub request_bytes_max: usize,
    /// Longest time for a message to arrive, whatever deadline its caller gives.
    pub receive_timeout: Duration,
}

/// Which sides of a call go on.
#[derive(Clone, Copy, Default)]
struct Streams {
    request: bool,
    answer: bool,
}

struct Places {
    streams_of: HashMap<String, Streams>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    public_streams: Arc<Semaphore>,
    budget: Arc<Budget>,
    receive_timeout: Duration,
}

/// Wraps a service.
#[derive(Clone)]
pub struct AdmissionLayer(Arc<Places>);

/// A wrapped service.
#[derive(Clone)]
pub struct AdmissionService<S> {
    inner: S,
    places: Arc<Places>,
}

impl AdmissionLayer {
    /// With so many places.
    pub fn new(limits: &AdmissionLimits) -> Self {
        Self(Arc::new(Places {
            streams_of: streams_of(),
            calls: Arc::new(Semaphore::new(limits.calls_max)),
            streams: Arc::new(Semaphore::new(limits.streams_max)),
            public_streams: Arc::new(Semaphore::new(PUBLIC_STREAMS_MAX)),
            budget: Arc::new(Budget::new(limits.request_bytes_max)),
            receive_timeout: limits.receive_timeout,
        }))
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = AdmissionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService { inner, places: self.0.clone() }
    }
}

/// The methods of all services that stream, by path. A method that is not there is refused by the router, and no stream.
fn streams_of() -> HashMap<String, Streams> {
    let sets = [
        proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let sets = sets.map(|set| prost_types::FileDescriptorSet::decode(set).expect("descriptors made by the build"));
    let mut streams_of = HashMap::new();
    for file in sets.into_iter().flat_map(|set| set.file) {
        for service in &file.service {
            for method in &service.method {
                let streams = Streams { request: method.client_streaming(), answer: method.server_streaming() };
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                if streams.request || streams.answer {
                    streams_of.insert(path, streams);
                }
            }
        }
    }
    streams_of
}

/// The server has as much to do as it may.
pub(super) fn busy(what: &'static str) -> Error {
    metrics::counter!("meterd_calls_shed_total", "limit" => what).increment(1);
    let message = format!("the server has as many {what} in hand as it may; send again, to another replica or later");
    Error::exhausted(ErrorReason::ServerBusy, message, RETRY_DELAY).with("limit", what)
}

impl<S> Service<Request<Body>> for AdmissionService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
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
        let places = &self.places;
        let streams = places.streams_of.get(request.uri().path()).copied().unwrap_or_default();
        let is_public = request.uri().path().starts_with(PUBLIC_PATHS);
        let (of, what) = match (streams.request || streams.answer, is_public) {
            (true, true) => (&places.public_streams, "public streams"),
            (true, false) => (&places.streams, "streams"),
            (false, _) => (&places.calls, "calls"),
        };
        let Ok(permit) = of.clone().try_acquire_owned() else {
            return Box::pin(async move { Ok(Status::from(busy(what)).into_http()) });
        };
        let held = Arc::new(Held::new(&places.budget));
        let admitted = Admitted { permit: Arc::new(permit), held: held.clone() };
        let expected = Expected {
            is_stream: streams.request,
            message_bytes_max: message_bytes_max(request.uri().path()),
            timeout: places.receive_timeout,
        };
        let mut request = request.map(|body| Body::new(ReceivedBody::new(body, held, expected)));
        request.extensions_mut().insert(admitted.clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let answer = call.await?;
            let admitted = match (streams.answer, is_public) {
                // What a stream was begun with is no longer there.
                (true, _) => Kept { _permit: admitted.permit.clone(), _held: None },
                // Answers of a few bytes: who calls without a key is not to keep the places of the others by not reading them.
                (false, true) => return Ok(answer),
                (false, false) => Kept { _permit: admitted.permit.clone(), _held: Some(admitted.held.clone()) },
            };
            Ok(answer.map(|inner| Body::new(AdmittedBody { inner, _kept: admitted })))
        })
    }
}

/// What an answer keeps until it is sent: answers that nobody reads are as many as there are places.
struct Kept {
    _permit: Arc<OwnedSemaphorePermit>,
    _held: Option<Arc<Held>>,
}

/// An answer that has its place for as long as it goes on.
struct AdmittedBody {
    inner: Body,
    _kept: Kept,
}

impl hyper::body::Body for AdmittedBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_of_every_service_is_known_as_one() {
        let of = streams_of();
        let mut paths: Vec<_> = of.keys().map(String::as_str).collect();
        paths.sort_unstable();
        assert_eq!(
            paths,
            [
                "/grpc.health.v1.Health/Watch",
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "/metering.v1.AlertService/SubscribeAlerts",
                "/metering.v1.UsageService/ExportUsage",
                "/metering.v1.UsageService/StreamUsage",
            ]
        );
        assert!(of["/metering.v1.UsageService/StreamUsage"].request);
        assert!(!of["/metering.v1.UsageService/ExportUsage"].request);
    }
}
