//! The layers around every call, from the outermost to the innermost: `call`, `panics`, `shutdown`, `guard`, `admission`.
//!
//! The layers are async functions. All layers of a call are one future, so a call needs one allocation for all of them (and one for
//! the check of its credentials). A stack of tower services would need one for each.

pub mod admission;
pub mod call;
pub mod framing;
pub mod guard;
pub mod interruptible_body;
pub mod messages;
pub mod panics;
pub mod pending_calls;
pub mod quota;
pub mod request_body;
pub mod request_budget;
pub mod response_body;
pub mod shutdown;
pub mod slots;

use super::services::Services;
use admission::AdmissionLayer;
use call::CallLayer;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use guard::GuardLayer;
use interruptible_body::InterruptibleBody;
use shutdown::ShutdownLayer;
use std::convert::Infallible;
use std::sync::Arc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Service, service_fn};

/// All layers.
pub struct Layers {
    pub call: CallLayer,
    pub shutdown: ShutdownLayer,
    pub guard: GuardLayer,
    pub admission: AdmissionLayer,
}

type ResponseFuture = BoxFuture<'static, Result<Response<Body>, Infallible>>;

impl Layers {
    /// Wraps all gRPC services in the layers.
    pub fn wrap(
        self,
        services: Services,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = ResponseFuture>
    + Clone
    + Send
    + Sync {
        let layers = Arc::new(self);
        service_fn(move |request| {
            let (layers, services) = (layers.clone(), services.clone());
            async move { Ok(layers.handle(request, services).await) }.boxed()
        })
    }

    async fn handle(&self, request: Request<Body>, services: Services) -> Response<Body> {
        let route = |request| self.route(request, services);
        let end_on_shutdown = |request| self.shutdown.handle(request, route);
        let catch_panics = |request| panics::catch(request, end_on_shutdown);
        self.call.handle(request, catch_panics).await
    }

    /// Runs the inner layers and the handler.
    async fn route(&self, request: Request<Body>, services: Services) -> Response<Body> {
        if let Some(response) = guard::protocol_error(&request) {
            return response;
        }
        self.try_route(request, services).await.unwrap_or_else(Status::into_http)
    }

    async fn try_route(&self, mut request: Request<Body>, services: Services) -> Result<Response<Body>, Status> {
        let credentials_end = self.guard.check(&mut request).await?;
        let (request, admission) = self.admission.admit(request).await?;
        let Ok(response) = services.call(request).await;
        let response = admission.wrap(response);
        Ok(match credentials_end {
            Some(end) => response.map(|body| Body::new(InterruptibleBody::new(body, end))),
            None => response,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum size of the future of a call. Every running call has one.
    const FUTURE_BYTES_MAX: usize = 6 * 1024;

    fn output_size<F, T>(_: F) -> usize
    where
        F: FnOnce(&'static Layers, Request<Body>, Services) -> T,
    {
        size_of::<T>()
    }

    #[test]
    fn the_future_of_all_layers_is_small() {
        let bytes = output_size(|layers, request, services| layers.handle(request, services));
        println!("the future of all layers has {bytes} bytes");
        assert!(bytes <= FUTURE_BYTES_MAX, "{bytes}");
    }
}
