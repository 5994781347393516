//! Ends the calls of a connection that has to end, and the streams of health and reflection when the server stops.

use crate::grpc::layers::ending_body::EndingBody;
use crate::grpc::wire::status::status;
use crate::net::{Ending, Peer};
use hyper::body::Body as _;
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::watch;

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Wraps a service.
#[derive(Clone, Debug)]
pub struct ClosingLayer {
    /// True once the server stops and health says so.
    pub said_goodbye: watch::Receiver<bool>,
}

/// A wrapped service.
#[derive(Clone, Debug)]
pub struct ClosingService<S> {
    inner: S,
    said_goodbye: watch::Receiver<bool>,
}

impl<S> Layer<S> for ClosingLayer {
    type Service = ClosingService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClosingService { inner, said_goodbye: self.said_goodbye.clone() }
    }
}

impl<S> Service<Request<Body>> for ClosingService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ending = request.extensions().get::<Peer>().map(|peer| peer.ending.clone());
        // Those of other crates know nothing of our stop; ours settle what they have first.
        let said_goodbye = request.uri().path().starts_with("/grpc.").then(|| self.said_goodbye.clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let answer = tokio::select! {
                biased;
                answer = call => answer?,
                error = must_end(ending.clone(), None) => return Ok(status(error).into_http()),
            };
            // Such as a status in the headers.
            if answer.body().is_end_stream() {
                return Ok(answer);
            }
            // A health watch says NOT_SERVING before it ends.
            let has_last_word = said_goodbye.is_some();
            let end = must_end(ending, said_goodbye);
            Ok(answer.map(|inner| Body::new(EndingBody::new(inner, end).with_last_word(has_last_word))))
        })
    }
}

async fn must_end(ending: Option<watch::Receiver<Ending>>, said_goodbye: Option<watch::Receiver<bool>>) -> Refusal {
    let ended = async {
        let Some(mut ending) = ending else { return std::future::pending().await };
        let why = ending.wait_for(|ending| *ending != Ending::No).await.map(|why| *why);
        match why {
            Ok(Ending::Aged) => Refusal::connection_aged(),
            Ok(_) => Refusal::shutting_down(),
            // The connection is gone already.
            Err(_) => std::future::pending().await,
        }
    };
    let stopped = async {
        let Some(mut said_goodbye) = said_goodbye else { return std::future::pending().await };
        if said_goodbye.wait_for(|said| *said).await.is_err() {
            // Nobody is left to say it: the connection ends the stream.
            return std::future::pending().await;
        }
        Refusal::shutting_down()
    };
    tokio::select! {
        error = ended => error,
        error = stopped => error,
    }
}
