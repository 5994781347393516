//! Serves the gRPC port: all services, inside the layers of a call.

use crate::grpc::access::AccessRules;
use crate::grpc::layers::Layers;
use crate::grpc::layers::admission::{AdmissionLayer, AdmissionLimits};
use crate::grpc::layers::call::CallLayer;
use crate::grpc::layers::guard::GuardLayer;
use crate::grpc::layers::shutdown::ShutdownLayer;
use crate::grpc::layers::slots::SlotLimits;
use crate::grpc::services::Services;
use crate::grpc::{Context, Handlers};
use crate::{net, proto};
use futures_util::future::Either;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::http::{Request, Version, header};
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

/// Serves the port in a task. `health_reports_stop` turns true once the health service has reported that the server stops.
pub fn serve(
    listener: TcpListener,
    port: net::Port,
    context: &Arc<Context>,
    health: HealthServer<impl Health>,
    health_reports_stop: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    let settings = &context.settings;
    let layers = layers(context, port.config.unread_timeout, health_reports_stop);
    let calls = layers.wrap(services(context, health)?);
    // The first layer is the outermost.
    let from_browsers = ServiceBuilder::new()
        .layer(cors(&settings.web_origins)?)
        // Outside the layers of a call, so that their responses are converted to gRPC-Web, too.
        .layer(tonic_web::GrpcWebLayer::new())
        .service(calls.clone());
    let service = service_fn(move |request: Request<Body>| match is_native(&request) {
        true => Either::Left(calls.clone().call(request)),
        false => Either::Right(from_browsers.clone().oneshot(request)),
    });
    Ok(tokio::spawn(net::serve(listener, port, service)))
}

/// Returns whether this is a gRPC call that no web page has made. Such calls do not need the layers for browsers.
fn is_native(request: &Request<Body>) -> bool {
    let headers = request.headers();
    request.version() == Version::HTTP_2
        && !headers.contains_key(header::ORIGIN)
        && headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/grpc" || kind == "application/grpc+proto")
}

fn services(context: &Arc<Context>, health: HealthServer<impl Health>) -> anyhow::Result<Services> {
    let handlers = Handlers::new(context.clone());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // With these, grpcurl shows error details as fields instead of bytes.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let others = Routes::new(handlers.alerts())
        .add_service(handlers.billing())
        .add_service(handlers.catalog())
        .add_service(handlers.clients())
        .add_service(handlers.jobs())
        .add_service(handlers.keys())
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare();
    Ok(Services::new(handlers.usage(), others))
}

fn layers(context: &Context, unread_timeout: Duration, health_reports_stop: watch::Receiver<bool>) -> Layers {
    let settings = &context.settings;
    let request_timeout = Duration::from_secs(settings.request_timeout_seconds.into());
    let limits = AdmissionLimits {
        slots: SlotLimits {
            calls_max: settings.net.calls_max as usize,
            streams_max: settings.net.streams_max as usize,
            response_bytes_max: settings.net.answer_bytes_max as usize,
        },
        request_bytes_max: settings.net.request_bytes_max as usize,
        receive_timeout: request_timeout,
        unread_timeout,
    };
    let rules =
        AccessRules { auth: context.auth.clone(), health: settings.auth.health, reflection: settings.auth.reflection };
    Layers {
        call: CallLayer { request_timeout },
        shutdown: ShutdownLayer { health_reports_stop },
        guard: GuardLayer { rules, web_origins: settings.web_origins.as_slice().into() },
        admission: AdmissionLayer::new(&limits),
    }
}

/// Allows web pages of these origins to call with gRPC-Web.
fn cors(origins: &[String]) -> anyhow::Result<CorsLayer> {
    use tonic::codegen::http::{HeaderName, HeaderValue, Method};
    let origins = origins.iter().filter(|origin| !origin.is_empty());
    let origins = origins.map(|origin| Ok(HeaderValue::from_str(origin)?)).collect::<anyhow::Result<Vec<_>>>()?;
    if origins.is_empty() {
        return Ok(CorsLayer::new());
    }
    let headers = ["content-type", "x-grpc-web", "x-user-agent", "grpc-timeout", "authorization", "x-request-id"];
    let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"];
    Ok(CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers(headers.map(HeaderName::from_static))
        .expose_headers(exposed.map(HeaderName::from_static)))
}
