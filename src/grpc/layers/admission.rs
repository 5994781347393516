//! Limits how many calls run at the same time and how much memory their messages take. Calls above a limit get SERVER_BUSY.

use crate::grpc::layers::framing::{PREFIX_BYTES, invalid};
use crate::grpc::layers::interruptible_body::status_trailers;
use crate::grpc::layers::messages::{self, ENCODING, FullBody, GunzipBody, gunzip, is_gzip};
use crate::grpc::layers::quota::Quota;
use crate::grpc::layers::request_body::{LimitedBody, RequestLimits};
use crate::grpc::layers::request_budget::RequestBytes;
use crate::grpc::layers::response_body::{ResponseBody, ResponsePermits, accepts_gzip};
use crate::grpc::layers::slots::{Slot, SlotLimits, Slots, busy};
use crate::grpc::methods::{self, Standard};
use crate::grpc::wire::status::{REQUEST_ID, status};
use crate::net::{Peer, UnreadTrailers};
use bytes::Bytes;
use hyper::body::Body as _;
use meterd_engine::auth::Caller;
use meterd_engine::counters::Resource;
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic_health::pb::HealthCheckRequest;

/// The slot of a call and the memory of its request. The extensions of the request contain it. A task that continues after its
/// caller has cancelled keeps it, so that a caller that starts and cancels many calls gets no more work done than others.
#[derive(Clone)]
pub struct AdmissionPermit {
    slot: Arc<Slot>,
    request_bytes: Arc<RequestBytes>,
    quota: Quota,
}

impl AdmissionPermit {
    /// Takes one unit of a resource for the caller of a request: see [`Quota::take_for_caller`].
    pub(in crate::grpc) fn take_for_caller<T>(
        request: &tonic::Request<T>,
        resource: Resource,
        max: usize,
        divisor: usize,
    ) -> Option<Slot> {
        match request.extensions().get::<Self>() {
            Some(permit) => permit.quota.take_for_caller(resource, max, divisor),
            None => Some(vec![]),
        }
    }
}

/// Limits of calls.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    pub slots: SlotLimits,
    pub request_bytes_max: usize,
    /// Time for a message to arrive, whatever the deadline of the call is.
    pub receive_timeout: Duration,
    /// Time after which the connection ends a response that its caller does not read.
    pub unread_timeout: Duration,
}

/// The layer that enforces the limits.
pub struct AdmissionLayer {
    slots: Arc<Slots>,
    receive_timeout: Duration,
    unread_timeout: Duration,
}

impl AdmissionLayer {
    /// Creates the layer with these limits.
    pub fn new(limits: &AdmissionLimits) -> Self {
        Self {
            slots: Arc::new(Slots::new(limits.slots, limits.request_bytes_max)),
            receive_timeout: limits.receive_timeout,
            unread_timeout: limits.unread_timeout,
        }
    }

    /// Waits for the message of a call and takes a slot. Returns the request with its message. A streaming request gets its slot
    /// at once, because its response starts before its first message.
    ///
    /// # Errors
    /// Returns the status of a call that is rejected.
    pub(super) async fn admit(&self, request: Request<Body>) -> Result<(Request<Body>, Admission), Status> {
        let path = request.uri().path();
        let method = methods::messages(path);
        let is_health = methods::standard(path) == Some(Standard::Health);
        let limits = RequestLimits {
            is_stream: method.request_stream,
            message_bytes_max: method.bytes_max,
            timeout: self.receive_timeout,
        };
        let quota = self.quota(&request);
        if quota.is_authenticated()
            && let Some(peer) = request.extensions().get::<Peer>()
        {
            // Done before the message arrives, which may take long.
            peer.mark_authenticated();
        }
        let accepts_gzip = accepts_gzip(request.headers());
        let request_bytes = Arc::new(RequestBytes::new(quota.request_budget()));
        let (mut parts, body) = request.into_parts();
        let gzip = is_gzip(&parts.headers);
        if gzip {
            parts.headers.remove(ENCODING);
        }
        let body = LimitedBody::new(body, request_bytes.clone(), limits);
        let (slot, body) = if method.request_stream {
            let slot = quota.slot(true).map_err(status)?;
            let body = match gzip {
                true => Body::new(GunzipBody::new(body, request_bytes.clone(), limits.message_bytes_max)),
                false => Body::new(body),
            };
            (slot, body)
        } else {
            let message = quota.pending_calls().wait_for(messages::read_message(body)).await;
            let mut message = message.ok_or_else(|| busy("calls without a message")).map_err(status)??;
            let slot = quota.slot(method.response_stream).map_err(status)?;
            if gzip {
                message = gunzip(message, limits.message_bytes_max, &request_bytes)?;
            }
            if is_health {
                check_health_request(&message)?;
            }
            (slot, Body::new(FullBody::new(message)))
        };
        let permit = AdmissionPermit { slot: Arc::new(slot), request_bytes, quota };
        parts.extensions.insert(permit.clone());
        let unread_timeout = self.unread_timeout;
        let admission = Admission { permit, is_stream: method.response_stream, accepts_gzip, unread_timeout };
        Ok((Request::from_parts(parts, body), admission))
    }

    fn quota(&self, request: &Request<Body>) -> Quota {
        let extensions = request.extensions();
        let is_public = methods::is_standard(request.uri().path());
        let anybody = Caller::anybody();
        let caller = extensions.get::<Arc<Caller>>().map_or(&anybody, |caller| caller);
        self.slots.quota(caller, extensions.get(), is_public)
    }
}

/// What the response of an admitted call needs.
pub(super) struct Admission {
    permit: AdmissionPermit,
    is_stream: bool,
    accepts_gzip: bool,
    unread_timeout: Duration,
}

impl Admission {
    /// Makes the response count as a running call until it is sent.
    pub fn wrap(self, mut response: Response<Body>) -> Response<Body> {
        // For example, an error in the headers.
        if response.body().is_end_stream() {
            return response;
        }
        let Self { permit: AdmissionPermit { slot, request_bytes, quota }, is_stream, accepts_gzip, .. } = self;
        if accepts_gzip {
            response.headers_mut().insert(ENCODING, HeaderValue::from_static("gzip"));
        }
        response.extensions_mut().insert(unread_trailers(self.unread_timeout));
        // The handler of a stream drops the request after its start, so the response does not keep the memory of the request.
        let permits = ResponsePermits { _slot: slot, _request_bytes: (!is_stream).then_some(request_bytes) };
        response.map(|inner| Body::new(ResponseBody::new(inner, quota, permits, is_stream, accepts_gzip)))
    }
}

/// Returns the trailers of a response that its caller does not read.
fn unread_trailers(timeout: Duration) -> UnreadTrailers {
    let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
    UnreadTrailers(Arc::new(move || {
        metrics::counter!("meterd_answers_unread_total").increment(1);
        let seconds = timeout.as_secs();
        let message = format!("the caller has read too little of the response for {seconds} s; retry and read faster");
        let error = Refusal::new(Reason::DeadlineExceeded, message);
        let status = REQUEST_ID.sync_scope(request_id.clone(), || status(error));
        status_trailers(&status)
    }))
}

/// Checks that the message of a health request can be decoded. The codec of the health service would return an error without
/// details.
fn check_health_request(message: &Bytes) -> Result<(), Status> {
    let is_compressed = message.first() != Some(&0);
    if !is_compressed && let Err(error) = HealthCheckRequest::decode(&message[PREFIX_BYTES..]) {
        return Err(status(invalid(format_args!("cannot be decoded: {error}"))));
    }
    Ok(())
}
