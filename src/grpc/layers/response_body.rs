//! The body of a response. Counts the bytes that the caller has not read, and compresses large messages if the caller accepts it.

use crate::grpc::layers::framing::PREFIX_BYTES;
use crate::grpc::layers::interruptible_body::trailers_frame;
use crate::grpc::layers::quota::Quota;
use crate::grpc::layers::request_budget::RequestBytes;
use crate::grpc::layers::slots::Slot;
use crate::grpc::wire::status::{REQUEST_ID, status};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::GzEncoder;
use hyper::body::{Frame, SizeHint};
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;

/// Bytes of each message that do not count, so that small responses succeed while large ones use up the limit.
const FREE_BYTES: usize = 4 * 1024;
/// Shorter messages are not compressed.
const COMPRESSED_BYTES_MIN: usize = 1024;
/// Interval at which a stream checks whether its next message is within the limits.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Returns whether the caller accepts gzip.
pub(in crate::grpc) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all("grpc-accept-encoding").iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|name| name.trim() == "gzip")
}

/// What a response keeps until it is sent, so that the number of unread responses is limited by the slots.
#[derive(Clone)]
pub(in crate::grpc) struct ResponsePermits {
    pub _slot: Arc<Slot>,
    pub _request_bytes: Option<Arc<RequestBytes>>,
}

/// Bytes that keep their permits until they are dropped, which includes their time in the buffers of the connection.
struct CountedBytes {
    bytes: Bytes,
    _permits: ResponsePermits,
    _count: Slot,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body of a response. Keeps the slot of its call until it ends.
pub(in crate::grpc) struct ResponseBody {
    inner: Body,
    quota: Quota,
    permits: ResponsePermits,
    is_stream: bool,
    gzip: bool,
    next_check: Option<Pin<Box<Sleep>>>,
    request_id: String,
    /// A limit was reached.
    is_rejected: bool,
}

impl ResponseBody {
    pub fn new(inner: Body, quota: Quota, permits: ResponsePermits, is_stream: bool, gzip: bool) -> Self {
        let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
        Self { inner, quota, permits, is_stream, gzip, next_check: None, request_id, is_rejected: false }
    }

    /// Waits until a stream may produce its next message. A message that does not exist yet takes no memory.
    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.is_stream && !self.quota.has_response_bytes() {
            let sleep = self.next_check.get_or_insert_with(|| Box::pin(tokio::time::sleep(CHECK_INTERVAL)));
            ready!(sleep.as_mut().poll(cx));
            self.next_check = None;
        }
        Poll::Ready(())
    }

    fn count(&self, bytes: Bytes) -> Result<Bytes, Refusal> {
        let count = match bytes.len().saturating_sub(FREE_BYTES) {
            0 => vec![],
            // A stream may exceed the limits by one message. Then it waits before the next one.
            over if self.is_stream => self.quota.response_bytes_unlimited(over),
            over => self.quota.response_bytes(over)?,
        };
        Ok(Bytes::from_owner(CountedBytes { bytes, _permits: self.permits.clone(), _count: count }))
    }
}

/// Compresses the long ones of these messages, which have their prefixes.
fn compress(mut messages: Bytes) -> Bytes {
    if messages.len() < PREFIX_BYTES + COMPRESSED_BYTES_MIN {
        return messages;
    }
    let mut sent = BytesMut::new();
    while messages.len() >= PREFIX_BYTES {
        let length = (&messages[1..PREFIX_BYTES]).get_u32() as usize;
        let message = messages.split_to((PREFIX_BYTES + length).min(messages.len()));
        if message[0] != 0 || length < COMPRESSED_BYTES_MIN {
            sent.extend_from_slice(&message);
            continue;
        }
        let start = sent.len();
        sent.put_slice(&[1, 0, 0, 0, 0]);
        let mut encoder = GzEncoder::new(&message[PREFIX_BYTES..], Compression::fast());
        std::io::copy(&mut encoder, &mut (&mut sent).writer()).expect("memory can be written");
        let length = (sent.len() - start - PREFIX_BYTES) as u32;
        sent[start + 1..start + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    }
    sent.extend_from_slice(&messages);
    sent.freeze()
}

impl hyper::body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_rejected {
            return Poll::Ready(None);
        }
        ready!(this.poll_capacity(cx));
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let bytes = match frame.into_data() {
            Ok(bytes) if this.gzip => compress(bytes),
            Ok(bytes) => bytes,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let frame = this.count(bytes).map(Frame::data).unwrap_or_else(|error| {
            this.is_rejected = true;
            trailers_frame(&REQUEST_ID.sync_scope(std::mem::take(&mut this.request_id), || status(error)))
        });
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_rejected || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // The length of the inner body is wrong if messages are compressed or rejected.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn message(bytes: &[u8]) -> Bytes {
        [&[0][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat().into()
    }

    #[test]
    fn only_long_messages_are_compressed() {
        let long = b"metering ".repeat(1_000);
        let sent = compress([message(b"short"), message(&long), message(b"")].concat().into());
        assert_eq!(sent[..10], message(b"short")[..]);
        let length = (&sent[11..15]).get_u32() as usize;
        assert_eq!((sent[10], sent.len()), (1, 15 + length + 5));
        let mut plain = vec![];
        flate2::read::GzDecoder::new(&sent[15..15 + length]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, long);
        assert_eq!(compress(message(b"short")), message(b"short"));
    }

    #[test]
    fn gzip_is_accepted_at_any_position_of_the_header() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("grpc-accept-encoding", value.parse().unwrap());
            }
            accepts_gzip(&headers)
        };
        assert!(accepts(&["gzip"]) && accepts(&["identity, deflate, gzip"]) && accepts(&["identity", "gzip"]));
        assert!(!accepts(&[]) && !accepts(&["identity"]) && !accepts(&["x-gzip"]));
    }
}
