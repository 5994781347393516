//! Answers on their way: what their callers have not read counts against budgets, and large ones are compressed if they may be.

use crate::grpc::layers::ending_body::trailers;
use crate::grpc::layers::request_body::{Held, PREFIX_BYTES};
use crate::grpc::layers::slots::{Quota, Slot};
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

/// An answer of so many bytes counts for none, so that small ones go on while large ones have used up the budget.
const FREE_BYTES: usize = 4 * 1024;
/// A shorter message is not worth compressing.
const COMPRESSED_FROM_BYTES: usize = 1024;
/// A stream that finds no room for its next message looks again after this.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Whether the caller reads gzip.
pub(in crate::grpc) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all("grpc-accept-encoding").iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|name| name.trim() == "gzip")
}

/// What an answer keeps until it is sent: answers that nobody reads are as many as there are slots.
#[derive(Clone)]
pub(in crate::grpc) struct Kept {
    pub _slot: Arc<Slot>,
    pub _held: Option<Arc<Held>>,
}

/// Bytes that keep their slot and their share of the budget for as long as anybody keeps them: also while they wait in the
/// connection's buffers.
struct Counted {
    bytes: Bytes,
    _kept: Kept,
    _counted: Slot,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An answer that has its slot for as long as it goes on.
pub(in crate::grpc) struct AnswerBody {
    inner: Body,
    quota: Quota,
    kept: Kept,
    is_stream: bool,
    gzip: bool,
    look_again: Option<Pin<Box<Sleep>>>,
    request_id: String,
    /// The budget had no room for it.
    refused: bool,
}

impl AnswerBody {
    pub fn new(inner: Body, quota: Quota, kept: Kept, is_stream: bool, gzip: bool) -> Self {
        let request_id = REQUEST_ID.try_with(String::clone).unwrap_or_default();
        Self { inner, quota, kept, is_stream, gzip, look_again: None, request_id, refused: false }
    }

    /// Waits until the budget has room for another message: one that is not made yet takes no memory.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.is_stream && !self.quota.has_answer_bytes() {
            let sleep = self.look_again.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_AGAIN_AFTER)));
            ready!(sleep.as_mut().poll(cx));
            self.look_again = None;
        }
        Poll::Ready(())
    }

    fn count(&self, bytes: Bytes) -> Result<Bytes, Refusal> {
        let counted = match bytes.len().saturating_sub(FREE_BYTES) {
            0 => vec![],
            // Of streams the messages are made one by one: what is a little too much now is waited for the next time.
            over if self.is_stream => self.quota.answer_bytes_anyway(over),
            over => self.quota.answer_bytes(over)?,
        };
        Ok(Bytes::from_owner(Counted { bytes, _kept: self.kept.clone(), _counted: counted }))
    }
}

/// Messages with their prefixes, of which the long ones are compressed.
fn gzipped(mut messages: Bytes) -> Bytes {
    if messages.len() < PREFIX_BYTES + COMPRESSED_FROM_BYTES {
        return messages;
    }
    let mut sent = BytesMut::new();
    while messages.len() >= PREFIX_BYTES {
        let length = (&messages[1..PREFIX_BYTES]).get_u32() as usize;
        let message = messages.split_to((PREFIX_BYTES + length).min(messages.len()));
        if message[0] != 0 || length < COMPRESSED_FROM_BYTES {
            sent.extend_from_slice(&message);
            continue;
        }
        let begin = sent.len();
        sent.put_slice(&[1, 0, 0, 0, 0]);
        let mut encoder = GzEncoder::new(&message[PREFIX_BYTES..], Compression::fast());
        std::io::copy(&mut encoder, &mut (&mut sent).writer()).expect("memory can be written");
        let length = (sent.len() - begin - PREFIX_BYTES) as u32;
        sent[begin + 1..begin + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    }
    sent.extend_from_slice(&messages);
    sent.freeze()
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.refused {
            return Poll::Ready(None);
        }
        ready!(this.poll_room(cx));
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let bytes = match frame.into_data() {
            Ok(bytes) if this.gzip => gzipped(bytes),
            Ok(bytes) => bytes,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let frame = this.count(bytes).map(Frame::data).unwrap_or_else(|error| {
            this.refused = true;
            trailers(&REQUEST_ID.sync_scope(std::mem::take(&mut this.request_id), || status(error)))
        });
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.refused || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Neither what is compressed nor what is refused has the length that it would have had.
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
    fn long_messages_are_compressed_and_short_ones_are_left() {
        let long = b"metering ".repeat(1_000);
        let sent = gzipped([message(b"short"), message(&long), message(b"")].concat().into());
        assert_eq!(sent[..10], message(b"short")[..]);
        let length = (&sent[11..15]).get_u32() as usize;
        assert_eq!((sent[10], sent.len()), (1, 15 + length + 5));
        let mut plain = vec![];
        flate2::read::GzDecoder::new(&sent[15..15 + length]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, long);
        assert_eq!(gzipped(message(b"short")), message(b"short"));
    }

    #[test]
    fn gzip_is_accepted_wherever_it_is_named() {
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
