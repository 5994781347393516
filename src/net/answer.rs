//! One call of an HTTP/2 connection: runs it, and sends its answer as fast as the caller reads.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use hyper::Response;
use hyper::body::Body as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::header::CONTENT_LENGTH;

/// The caller has reset the stream, or is gone.
struct Gone;

/// Runs a call to its end. A caller that resets the stream or goes away drops it.
pub(super) async fn answer<F>(call: F, respond: SendResponse<Bytes>)
where
    F: Future<Output = Result<Response<Body>, StdError>>,
{
    // Gone: there is nobody to tell.
    drop(try_answer(call, respond).await);
}

async fn try_answer<F>(call: F, mut respond: SendResponse<Bytes>) -> Result<(), Gone>
where
    F: Future<Output = Result<Response<Body>, StdError>>,
{
    let answer = {
        let mut call = pin!(call);
        poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Ok(answer)),
            Poll::Pending => respond.poll_reset(cx).map(|_| Err(Gone)),
        })
        .await?
    };
    let (mut head, body) = match answer {
        Ok(answer) => answer.into_parts(),
        Err(error) => {
            tracing::error!(error = %error, "a call ended without an answer");
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Err(Gone);
        }
    };
    if let Some(bytes) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert(bytes.into());
    }
    let is_empty = body.is_end_stream();
    let stream = respond.send_response(Response::from_parts(head, ()), is_empty).map_err(|_| Gone)?;
    if is_empty { Ok(()) } else { send(body, stream).await }
}

async fn send(mut body: Body, mut stream: SendStream<Bytes>) -> Result<(), Gone> {
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => stream.poll_reset(cx).map(|_| Err(Gone)),
        })
        .await?;
        let frame = match frame {
            None => return stream.send_data(Bytes::new(), true).map_err(|_| Gone),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                tracing::debug!(error = %error, "an answer broke off");
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(Gone);
            }
        };
        match frame.into_data() {
            Ok(bytes) => {
                let ends = body.is_end_stream();
                send_bytes(&mut stream, bytes, ends).await?;
                if ends {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return stream.send_trailers(trailers).map_err(|_| Gone);
                }
            }
        }
    }
}

/// Sends as much as the caller has made room for, and waits for more, so that nothing queues up in h2.
async fn send_bytes(stream: &mut SendStream<Bytes>, mut bytes: Bytes, ends: bool) -> Result<(), Gone> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            while stream.capacity() == 0 {
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
                }
            }
            Poll::Ready(Ok(stream.capacity()))
        })
        .await?;
        let now = bytes.split_to(room.min(bytes.len()));
        let last = ends && bytes.is_empty();
        stream.send_data(now, last).map_err(|_| Gone)?;
        if last {
            return Ok(());
        }
    }
    if ends { stream.send_data(Bytes::new(), true).map_err(|_| Gone) } else { Ok(()) }
}
