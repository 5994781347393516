//! Rejects requests that are not gRPC calls, calls of methods that are missing from the role matrix, and callers that may not call
//! the method.

use crate::grpc::access::AccessRules;
use crate::grpc::wire::status::status;
use crate::net::Peer;
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::sync::Arc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, ORIGIN};
use tonic::codegen::http::{Method, Request, Response, StatusCode};

/// The layer that authenticates callers and checks their permissions.
#[derive(Clone)]
pub struct GuardLayer {
    pub rules: AccessRules,
    /// Origins of web pages that may call.
    pub web_origins: Arc<[String]>,
}

impl GuardLayer {
    /// Checks a call and adds its caller to the extensions of the request. For a stream, returns a future that waits until the
    /// credentials of the caller end. The stream has to end then.
    ///
    /// # Errors
    /// Returns the status of a call that is rejected.
    pub async fn check(
        &self,
        request: &mut Request<Body>,
    ) -> Result<Option<impl Future<Output = Refusal> + Send + 'static>, Status> {
        self.check_origin(request).map_err(status)?;
        let peer = request.extensions().get::<Peer>();
        // Boxed, because this future is larger than all others of the call together, and only needed for a moment.
        let passed = Box::pin(self.rules.admit(request.uri().path(), request.headers(), peer)).await.map_err(status)?;
        let passed = passed.ok_or_else(|| Status::unimplemented("unknown method"))?;
        let credentials_end = passed.streaming.then(|| self.rules.auth.ended(&passed.caller));
        request.extensions_mut().insert(passed.caller);
        Ok(credentials_end)
    }

    /// Checks that the page that makes the call has an allowed origin. Requests without an origin do not come from a page.
    ///
    /// Pages of the server's own name are not allowed either. A browser does not restrict them, and the name of a page can be
    /// changed to resolve to this server after the page was loaded (DNS rebinding).
    fn check_origin(&self, request: &Request<Body>) -> Result<(), Refusal> {
        let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
        if self.web_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return Ok(());
        }
        let message = "pages of this origin may not call; add the origin to the setting web_origins to allow it";
        Err(Refusal::new(Reason::OriginNotAllowed, message))
    }
}

/// Returns the response to a request that is not a gRPC call (gRPC over HTTP/2, "Requests"). A browser may send such a request
/// without the permission that it needs for a gRPC call.
pub fn protocol_error(request: &Request<Body>) -> Option<Response<Body>> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let grpc_suffix = content_type.strip_prefix(b"application/grpc");
    let (http_status, message) = if request.method() != Method::POST {
        (StatusCode::METHOD_NOT_ALLOWED, "a gRPC call must use the method POST")
    } else if !grpc_suffix.is_some_and(|suffix| matches!(suffix, [] | [b'+' | b';', ..])) {
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "a gRPC call must have the content-type application/grpc")
    } else {
        return None;
    };
    let mut response = Status::unimplemented(message).into_http();
    *response.status_mut() = http_status;
    Some(response)
}
