//! The guard of every call: nothing passes that the role matrix does not name, and nobody whom it does not let.

use super::ending::EndingBody;
use crate::auth::Auth;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Wraps a service.
#[derive(Clone)]
pub struct GuardLayer(pub Arc<Auth>);

/// A wrapped service.
#[derive(Clone)]
pub struct GuardService<S> {
    inner: S,
    auth: Arc<Auth>,
}

impl<S> Layer<S> for GuardLayer {
    type Service = GuardService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GuardService { inner, auth: self.0.clone() }
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
        let auth = self.auth.clone();
        let next = self.inner.clone();
        // The clone may not be ready; the one that was asked is.
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let passed = match auth.admit(request.uri().path(), request.headers()).await {
                Ok(Some(passed)) => passed,
                Ok(None) => return Ok(Status::unimplemented("there is no such method").into_http()),
                Err(error) => return Ok(Status::from(error).into_http()),
            };
            let ended = passed.streaming.then(|| auth.ended(&passed.caller));
            request.extensions_mut().insert(passed.caller);
            let response = inner.call(request).await?;
            Ok(match ended {
                Some(ended) => response.map(|body| Body::new(EndingBody::new(body, ended))),
                None => response,
            })
        })
    }
}
