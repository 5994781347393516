//! Rejects requests that are not gRPC calls, calls of methods that are missing from the role matrix, and callers that may not call
//! the method.

use crate::auth::Auth;
use crate::error::Error;
use crate::grpc::layers::interruptible_body::InterruptibleBody;
use crate::net::Peer;
use crate::proto::ErrorReason;
use std::sync::Arc;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, ORIGIN};
use tonic::codegen::http::{Method, Request, Response, StatusCode};
use tonic::{Code, Status};

/// The layer that authenticates callers and checks their permissions.
#[derive(Clone)]
pub struct GuardLayer {
    pub auth: Arc<Auth>,
    /// Origins of web pages that may call.
    pub web_origins: Arc<[String]>,
}

impl GuardLayer {
    /// Checks a call and passes it to the next layer with its caller. A stream ends when the credentials of its caller end.
    pub async fn handle(
        &self,
        mut request: Request<Body>,
        next: impl AsyncFnOnce(Request<Body>) -> Response<Body>,
    ) -> Response<Body> {
        if let Some((http_status, message)) = protocol_error(&request) {
            let mut response = Status::unimplemented(message).into_http();
            *response.status_mut() = http_status;
            return response;
        }
        if let Err(error) = self.check_origin(&request) {
            return Status::from(error).into_http();
        }
        let peer = request.extensions().get::<Peer>();
        let passed = match self.auth.admit(request.uri().path(), request.headers(), peer).await {
            Ok(Some(passed)) => passed,
            Ok(None) => return Status::unimplemented("unknown method").into_http(),
            Err(error) => return Status::from(error).into_http(),
        };
        let credentials_ended = passed.streaming.then(|| self.auth.ended(&passed.caller));
        request.extensions_mut().insert(passed.caller);
        let response = next(request).await;
        match credentials_ended {
            Some(ended) => response.map(|body| Body::new(InterruptibleBody::new(body, ended))),
            None => response,
        }
    }

    /// Checks that the page that makes the call has an allowed origin. Requests without an origin do not come from a page.
    ///
    /// Pages of the server's own name are not allowed either. A browser does not restrict them, and the name of a page can be
    /// changed to resolve to this server after the page was loaded (DNS rebinding).
    fn check_origin(&self, request: &Request<Body>) -> Result<(), Error> {
        let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
        if self.web_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return Ok(());
        }
        let message = "pages of this origin may not call; add the origin to the setting web_origins to allow it";
        Err(Error::new(Code::PermissionDenied, ErrorReason::OriginNotAllowed, message))
    }
}

/// Returns why a request is not a gRPC call (gRPC over HTTP/2, "Requests"). A browser may send such a request without the
/// permission that it needs for a gRPC call.
fn protocol_error<T>(request: &Request<T>) -> Option<(StatusCode, &'static str)> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let grpc_suffix = content_type.strip_prefix(b"application/grpc");
    if request.method() != Method::POST {
        Some((StatusCode::METHOD_NOT_ALLOWED, "a gRPC call must use the method POST"))
    } else if !grpc_suffix.is_some_and(|suffix| matches!(suffix, [] | [b'+' | b';', ..])) {
        Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "a gRPC call must have the content-type application/grpc"))
    } else {
        None
    }
}
