//! The guard of every call: nothing passes that is none, or that the role matrix does not name, and nobody whom it does not let.

use crate::grpc::access::AccessRules;
use crate::grpc::layers::ending_body::EndingBody;
use crate::grpc::wire::status::status;
use crate::net::Peer;
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, ORIGIN};
use tonic::codegen::http::{Method, Request, Response, StatusCode};
use tower::{Layer, Service};

/// Wraps a service.
#[derive(Clone)]
pub struct GuardLayer {
    pub rules: AccessRules,
    /// Origins of pages that may call.
    pub web_origins: Arc<[String]>,
}

/// A wrapped service.
#[derive(Clone)]
pub struct GuardService<S> {
    inner: S,
    guard: GuardLayer,
}

/// Why a request is no gRPC call, if it is none (gRPC over HTTP/2, "Requests"). A page may send such requests to where it may
/// not send calls.
fn no_call<T>(request: &Request<T>) -> Option<(StatusCode, &'static str)> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let of_grpc = content_type.strip_prefix(b"application/grpc");
    if request.method() != Method::POST {
        Some((StatusCode::METHOD_NOT_ALLOWED, "a gRPC call has the method POST"))
    } else if !of_grpc.is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..])) {
        Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "a gRPC call has the content-type application/grpc"))
    } else {
        None
    }
}

impl GuardLayer {
    /// Calls come from a page only where the setting names its origin. A browser lets a page call what has the page's own
    /// name, and a name may be made to lead to this machine after the page is there.
    fn strange_origin(&self, request: &Request<Body>) -> Option<Refusal> {
        let origin = request.headers().get(ORIGIN)?;
        if self.web_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return None;
        }
        let message = "pages of this origin may not call: the setting web_origins names those that may";
        Some(Refusal::new(Reason::OriginNotAllowed, message))
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = GuardService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GuardService { inner, guard: self.clone() }
    }
}

impl<S> Service<Request<Body>> for GuardService<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some((http, message)) = no_call(&request) {
            let mut response = Status::unimplemented(message).into_http();
            *response.status_mut() = http;
            return Box::pin(async { Ok(response) });
        }
        if let Some(error) = self.guard.strange_origin(&request) {
            return Box::pin(async { Ok(status(error).into_http()) });
        }
        let rules = self.guard.rules.clone();
        let next = self.inner.clone();
        // The clone may not be ready; the one that was asked is.
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>();
            let passed = match rules.admit(request.uri().path(), request.headers(), peer).await {
                Ok(Some(passed)) => passed,
                Ok(None) => return Ok(Status::unimplemented("there is no such method").into_http()),
                Err(error) => return Ok(status(error).into_http()),
            };
            let ended = passed.streaming.then(|| rules.auth.ended(&passed.caller));
            request.extensions_mut().insert(passed.caller);
            let response = inner.call(request).await?;
            Ok(match ended {
                Some(ended) => response.map(|body| Body::new(EndingBody::new(body, ended))),
                None => response,
            })
        })
    }
}
