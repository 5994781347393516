//! All services of the gRPC port.

use crate::grpc::Handlers;
use crate::proto::usage_service_server::{SERVICE_NAME, UsageServiceServer};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::convert::Infallible;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tower::{Service, ServiceExt};

/// All services.
#[derive(Clone)]
pub struct Services {
    /// Nearly all calls are to this service. A router would find it, too, but needs three more allocations for each call.
    usage: UsageServiceServer<Handlers>,
    others: Routes,
}

impl Services {
    /// `others` has every service but the usage service.
    pub fn new(usage: UsageServiceServer<Handlers>, others: Routes) -> Self {
        Self { usage, others }
    }

    /// Calls the service of a request.
    pub fn call(mut self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let path = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME));
        match path.is_some_and(|path| path.starts_with('/')) {
            true => self.usage.call(request),
            false => self.others.oneshot(request).boxed(),
        }
    }
}
