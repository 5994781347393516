//! The layers around every call, from the outermost to the innermost: `call`, `panics`, `shutdown`, `guard`, `admission`.
//!
//! A layer is an async function with the request and the next layer as its arguments. All layers of a call are one future, so a
//! call needs one allocation for all of them. A stack of tower services would need one for each.

pub mod admission;
pub mod call;
pub mod framing;
pub mod guard;
pub mod interruptible_body;
pub mod messages;
pub mod methods;
pub mod panics;
pub mod pending_calls;
pub mod quota;
pub mod request_body;
pub mod request_budget;
pub mod response_body;
pub mod shutdown;
pub mod slots;

use admission::AdmissionLayer;
use call::CallLayer;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use guard::GuardLayer;
use shutdown::ShutdownLayer;
use std::convert::Infallible;
use std::sync::Arc;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tower::{Service, ServiceExt, service_fn};

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
        routes: Routes,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = ResponseFuture>
    + Clone
    + Send
    + Sync {
        let layers = Arc::new(self);
        service_fn(move |request| {
            let (layers, routes) = (layers.clone(), routes.clone());
            async move { Ok(layers.handle(request, routes).await) }.boxed()
        })
    }

    async fn handle(&self, request: Request<Body>, routes: Routes) -> Response<Body> {
        let route = async |request| {
            let Ok(response) = routes.oneshot(request).await;
            response
        };
        let admit = async |request| self.admission.handle(request, route).await;
        let guard = async |request| self.guard.handle(request, admit).await;
        let end_on_shutdown = async |request| self.shutdown.handle(request, guard).await;
        let catch_panics = async |request| panics::catch(request, end_on_shutdown).await;
        self.call.handle(request, catch_panics).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum size of the future of a call. Every running call has one.
    const FUTURE_BYTES_MAX: usize = 8 * 1024;

    fn output_size<F, T>(_: F) -> usize
    where
        F: FnOnce(&'static Layers, Request<Body>, Routes) -> T,
    {
        size_of::<T>()
    }

    #[test]
    fn the_future_of_all_layers_is_small() {
        let bytes = output_size(|layers, request, routes| layers.handle(request, routes));
        println!("the future of all layers has {bytes} bytes");
        assert!(bytes <= FUTURE_BYTES_MAX, "{bytes}");
    }
}
