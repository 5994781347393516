//! Turns a panic into the status INTERNAL of its call. Other calls continue.

use crate::grpc::layers::interruptible_body::trailers_frame;
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
use tracing::Instrument;

fn panic_status(panic: &(dyn Any + Send)) -> Status {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    status(Refusal::internal(anyhow::anyhow!("panicked: {}", message.unwrap_or("without a message"))))
}

/// Calls the next layer and catches a panic, also in the body of the response.
pub async fn catch(request: Request<Body>, next: impl AsyncFnOnce(Request<Body>) -> Response<Body>) -> Response<Body> {
    match AssertUnwindSafe(next(request)).catch_unwind().await {
        Ok(response) => response.map(|inner| Body::new(CatchingBody::new(inner))),
        Err(panic) => panic_status(&*panic).into_http(),
    }
}

/// A response body that ends with the status INTERNAL if the inner body panics.
struct CatchingBody {
    /// `None` after a panic.
    inner: Option<Body>,
    request_id: String,
}

impl CatchingBody {
    fn new(inner: Body) -> Self {
        Self { inner: Some(inner), request_id: REQUEST_ID.try_with(String::clone).unwrap_or_default() }
    }
}

impl hyper::body::Body for CatchingBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(cx))).unwrap_or_else(|panic| {
            self.inner = None;
            let status = REQUEST_ID.sync_scope(std::mem::take(&mut self.request_id), || panic_status(&*panic));
            Poll::Ready(Some(Ok(trailers_frame(&status))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// Runs `work` in a new task that sends the messages of a response. At most `waiting_max` messages wait for the reader. If the
/// task fails or panics, the response ends with an error. A closed channel alone would end it with OK, as if it were complete.
pub(in crate::grpc) fn stream_from_task<T, Fut>(
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
            let result = AssertUnwindSafe(work).catch_unwind().await;
            if let Err(error) = result.unwrap_or_else(|panic| Err(panic_status(&*panic))) {
                drop(sender.send(Err(error)).await);
            }
        })
        .in_current_span(),
    );
    ReceiverStream::new(receiver)
}
