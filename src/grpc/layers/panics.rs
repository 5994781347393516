//! A panic ends its call with INTERNAL and a request id, and nothing else.

use crate::grpc::layers::ending_body::trailers;
use crate::grpc::wire::status::{REQUEST_ID, keeping_request_id, status};
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};
use meterd_engine::refusal::Refusal;
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

/// Wraps a service.
#[derive(Clone, Copy, Debug)]
pub struct PanicLayer;

/// A wrapped service.
#[derive(Clone, Debug)]
pub struct PanicService<S>(S);

impl<S> Layer<S> for PanicLayer {
    type Service = PanicService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PanicService(inner)
    }
}

fn panic_status(panic: &(dyn Any + Send)) -> Status {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    status(Refusal::internal(anyhow::anyhow!("panicked: {}", said.unwrap_or("without a message"))))
}

/// An answer that a task of its own makes, of which so many messages may wait for their reader. An error of the task is its last,
/// and so is a panic: a channel that only closes would end it with OK, as if it were whole.
pub(in crate::grpc) fn answer_of_a_task<T, Fut>(
    waiting_max: usize,
    work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> Fut,
) -> ReceiverStream<Result<T, Status>>
where
    T: Send + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(waiting_max);
    let work = work(sender.clone());
    tokio::spawn(
        keeping_request_id(async move {
            let done = AssertUnwindSafe(work).catch_unwind().await;
            if let Err(last) = done.unwrap_or_else(|panic| Err(panic_status(&*panic))) {
                drop(sender.send(Err(last)).await);
            }
        })
        .in_current_span(),
    );
    ReceiverStream::new(receiver)
}

impl<S> Service<Request<Body>> for PanicService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = catch_unwind(AssertUnwindSafe(|| self.0.call(request)));
        Box::pin(async move {
            let done = match call {
                Ok(call) => AssertUnwindSafe(call).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            match done {
                Ok(answer) => answer.map(|answer| answer.map(|inner| Body::new(CaughtBody::new(inner)))),
                Err(panic) => Ok(panic_status(&*panic).into_http()),
            }
        })
    }
}

/// An answer that ends with a status, should what makes it panic.
struct CaughtBody {
    /// None, once it has panicked.
    inner: Option<Body>,
    request_id: String,
}

impl CaughtBody {
    fn new(inner: Body) -> Self {
        Self { inner: Some(inner), request_id: REQUEST_ID.try_with(String::clone).unwrap_or_default() }
    }
}

impl hyper::body::Body for CaughtBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(cx))).unwrap_or_else(|panic| {
            self.inner = None;
            let status = REQUEST_ID.sync_scope(std::mem::take(&mut self.request_id), || panic_status(&*panic));
            Poll::Ready(Some(Ok(trailers(&status))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
