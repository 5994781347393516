//! Lets calls in, so many at once and so many bytes, per connection, per caller and in all. Others get SERVER_BUSY.

use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::layers::ending_body::status_headers;
use crate::grpc::layers::messages::{self, ENCODING, GunzipBody, Whole, gunzip, is_gzip};
use crate::grpc::layers::request_body::{Expected, Held, ReceivedBody, invalid};
use crate::grpc::layers::response_body::{AnswerBody, Kept, accepts_gzip};
use crate::grpc::layers::slots::{Quota, Slot, SlotLimits, Slots, busy};
use crate::grpc::wire::status::{REQUEST_ID, status};
use crate::net::{Peer, Unread};
use crate::proto;
use bytes::Bytes;
use hyper::body::Body as _;
use meterd_engine::auth::Caller;
use meterd_engine::counts::Counted;
use meterd_engine::refusal::{Reason, Refusal};
use prost::Message;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic_health::pb::HealthCheckRequest;
use tower::{Layer, Service};

/// gRPC's own services, health and reflection, which may be open to everybody.
const PUBLIC_PATHS: &str = "/grpc.";
const HEALTH_PATHS: &str = "/grpc.health.v1.Health/";

/// Longest message of a stream of events, which keeps a buffer of that size. An event may have some 10 KiB: the rest is for what
/// is refused with a reason.
const STREAMED_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Longest message to gRPC's own services: what needs no credentials takes nothing of the budget of requests.
const PUBLIC_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Longest message of other requests, but for batches of events.
const OTHER_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Longest message that a method takes.
fn message_bytes_max(path: &str) -> usize {
    match path {
        path if path.starts_with(PUBLIC_PATHS) => PUBLIC_MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/BatchTrackUsage" => MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/StreamUsage" => STREAMED_MESSAGE_BYTES_MAX,
        _ => OTHER_MESSAGE_BYTES_MAX,
    }
}

/// A call's slot and the bytes of its request. In the extensions of its request, so that work which goes on after its caller
/// has hung up keeps them: whoever resets calls as fast as it makes them gets no more work done than others.
#[derive(Clone)]
pub struct Admitted {
    _slot: Arc<Slot>,
    _held: Arc<Held>,
    quota: Quota,
}

impl Admitted {
    /// One of `max` of something scarce: see [`Quota::of_caller`]. None, if the caller has its share already.
    pub(in crate::grpc) fn of_caller<T>(
        request: &tonic::Request<T>,
        counted: Counted,
        max: usize,
        parts: usize,
    ) -> Option<Slot> {
        let admitted = request.extensions().get::<Self>();
        admitted.map_or_else(|| Some(vec![]), |admitted| admitted.quota.of_caller(counted, max, parts))
    }
}

/// How many may be in.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    pub slots: SlotLimits,
    pub request_bytes_max: usize,
    /// Longest time for a message to arrive, whatever deadline its caller gives.
    pub receive_timeout: Duration,
    /// What the connections end unread answers after.
    pub unread_timeout: Duration,
}

/// Which sides of a call go on.
#[derive(Clone, Copy, Default)]
struct Streams {
    request: bool,
    answer: bool,
}

struct Shared {
    streams_of: HashMap<String, Streams>,
    slots: Arc<Slots>,
    receive_timeout: Duration,
    unread_timeout: Duration,
}

/// Wraps a service.
#[derive(Clone)]
pub struct AdmissionLayer(Arc<Shared>);

/// A wrapped service.
#[derive(Clone)]
pub struct AdmissionService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl AdmissionLayer {
    /// With so many slots.
    pub fn new(limits: &AdmissionLimits) -> Self {
        Self(Arc::new(Shared {
            streams_of: streams_of(),
            slots: Arc::new(Slots::new(limits.slots, limits.request_bytes_max)),
            receive_timeout: limits.receive_timeout,
            unread_timeout: limits.unread_timeout,
        }))
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = AdmissionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService { inner, shared: self.0.clone() }
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

impl Shared {
    fn quota(&self, request: &Request<Body>) -> Quota {
        let extensions = request.extensions();
        let is_public = request.uri().path().starts_with(PUBLIC_PATHS);
        let anybody = Caller::anybody();
        let caller = extensions.get::<Arc<Caller>>().map_or(&anybody, |caller| caller);
        self.slots.of(caller, extensions.get(), is_public)
    }

    /// Takes the call's slot once its message is there, and gives the request with it.
    async fn admit(&self, request: Request<Body>, quota: &Quota) -> Result<(Request<Body>, Admitted), Status> {
        let streams = self.streams(&request);
        let path = request.uri().path();
        let expected = Expected {
            is_stream: streams.request,
            message_bytes_max: message_bytes_max(path),
            timeout: self.receive_timeout,
        };
        let is_health = path.starts_with(HEALTH_PATHS);
        let held = Arc::new(Held::new(quota.request_bytes()));
        let (mut parts, body) = request.into_parts();
        let gzip = is_gzip(&parts.headers);
        if gzip {
            parts.headers.remove(ENCODING);
        }
        let body = ReceivedBody::new(body, held.clone(), expected);
        if streams.request {
            // A stream has its slot from the begin: its answer begins before its first message.
            let slot = Arc::new(quota.slot(true).map_err(status)?);
            let body = match gzip {
                true => Body::new(GunzipBody::new(body, held.clone(), expected.message_bytes_max)),
                false => Body::new(body),
            };
            return Ok((Request::from_parts(parts, body), Admitted { _slot: slot, _held: held, quota: quota.clone() }));
        }
        let arrived = quota.waiting().wait_for(messages::one(body)).await;
        let mut message = arrived.ok_or_else(|| busy("calls without a message")).map_err(status)??;
        let slot = Arc::new(quota.slot(streams.answer).map_err(status)?);
        if gzip {
            message = gunzip(message, expected.message_bytes_max, &held)?;
        }
        if is_health {
            check_health_request(&message)?;
        }
        let request = Request::from_parts(parts, Body::new(Whole::new(message)));
        Ok((request, Admitted { _slot: slot, _held: held, quota: quota.clone() }))
    }

    fn streams(&self, request: &Request<Body>) -> Streams {
        self.streams_of.get(request.uri().path()).copied().unwrap_or_default()
    }
}

/// What an answer ends with that its caller does not read.
fn unread(after: Duration) -> Unread {
    let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
    Unread(Arc::new(move || {
        metrics::counter!("meterd_answers_unread_total").increment(1);
        let message = format!(
            "the caller has read too little of the answer for {} s; call again and read faster",
            after.as_secs()
        );
        let error = Refusal::new(Reason::DeadlineExceeded, message);
        let status = REQUEST_ID.sync_scope(request_id.clone(), || status(error));
        status_headers(&status)
    }))
}

/// Health has a codec of its own, whose error has no details.
fn check_health_request(message: &Bytes) -> Result<(), Status> {
    let is_plain = message.first() == Some(&0);
    if is_plain
        && let Err(error) = HealthCheckRequest::decode(&message[crate::grpc::layers::request_body::PREFIX_BYTES..])
    {
        return Err(status(invalid(format_args!("cannot be decoded: {error}"))));
    }
    Ok(())
}

impl<S> Service<Request<Body>> for AdmissionService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
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
        let shared = self.shared.clone();
        let next = self.inner.clone();
        // The clone may not be ready; the one that was asked is.
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let quota = shared.quota(&request);
            let is_stream = shared.streams(&request).answer;
            let gzip = accepts_gzip(request.headers());
            if quota.is_vouched_for()
                && let Some(peer) = request.extensions().get::<Peer>()
            {
                // Before the message is there, which may take its time.
                peer.vouch();
            }
            let (mut request, admitted) = match shared.admit(request, &quota).await {
                Ok(admitted) => admitted,
                Err(status) => return Ok(status.into_http()),
            };
            request.extensions_mut().insert(admitted.clone());
            let mut answer = inner.call(request).await?;
            // Such as a status in the headers.
            if answer.body().is_end_stream() {
                return Ok(answer);
            }
            if gzip {
                answer.headers_mut().insert(ENCODING, HeaderValue::from_static("gzip"));
            }
            answer.extensions_mut().insert(unread(shared.unread_timeout));
            // What a stream was begun with is no longer there.
            let held = (!is_stream).then_some(admitted._held);
            let kept = Kept { _slot: admitted._slot, _held: held };
            Ok(answer.map(|inner| Body::new(AnswerBody::new(inner, quota, kept, is_stream, gzip))))
        })
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
