//! Ends the calls of a draining connection. Ends the streams of the health and reflection services when the server stops.

use crate::grpc::layers::interruptible_body::InterruptibleBody;
use crate::grpc::methods::is_standard;
use crate::grpc::wire::status::status;
use crate::net::{DrainReason, Peer};
use hyper::body::Body as _;
use meterd_engine::refusal::Refusal;
use std::future::pending;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};

/// The layer that ends calls.
#[derive(Clone, Debug)]
pub struct ShutdownLayer {
    /// True once the server is stopping and the health service reports it.
    pub health_reports_stop: watch::Receiver<bool>,
}

impl ShutdownLayer {
    /// Calls the next layer. Ends the call with a status if it must end before.
    pub async fn handle(
        &self,
        request: Request<Body>,
        next: impl AsyncFnOnce(Request<Body>) -> Response<Body>,
    ) -> Response<Body> {
        let drain = request.extensions().get::<Peer>().map(|peer| peer.drain.clone());
        // The standard services do not know that the server stops. Other streams end by themselves after they have sent what
        // they have.
        let is_standard = is_standard(request.uri().path());
        let response = tokio::select! {
            biased;
            response = next(request) => response,
            error = must_end(drain.clone(), None) => return status(error).into_http(),
        };
        // For example, an error in the headers.
        if response.body().is_end_stream() {
            return response;
        }
        let stop = is_standard.then(|| self.health_reports_stop.clone());
        let must_end = must_end(drain, stop);
        response.map(|inner| {
            // A health watch sends NOT_SERVING before it ends.
            Body::new(InterruptibleBody::new(inner, must_end).with_final_message(is_standard))
        })
    }
}

/// Waits until a call must end. Returns the reason.
async fn must_end(drain: Option<watch::Receiver<Option<DrainReason>>>, stop: Option<watch::Receiver<bool>>) -> Refusal {
    let drained = async {
        let Some(mut drain) = drain else { return pending().await };
        // An error means that the connection has already ended.
        let Ok(reason) = drain.wait_for(Option::is_some).await.map(|reason| *reason) else { return pending().await };
        match reason {
            Some(DrainReason::Aged) => Refusal::connection_aged(),
            _ => Refusal::shutting_down(),
        }
    };
    let stopped = async {
        let Some(mut stop) = stop else { return pending().await };
        if stop.wait_for(|stop| *stop).await.is_err() {
            // The sender was dropped. The connection ends the stream.
            return pending().await;
        }
        Refusal::shutting_down()
    };
    tokio::select! {
        error = drained => error,
        error = stopped => error,
    }
}
