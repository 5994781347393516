//! Messages as they arrive: whole, and no longer compressed.

use crate::grpc::layers::request_body::{Held, PREFIX_BYTES, ReceivedBody, invalid};
use crate::grpc::wire::status::status;
use bytes::{Buf, Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use hyper::body::{Body, Frame, SizeHint};
use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// Header that names how the messages of a call are compressed.
pub(in crate::grpc) const ENCODING: &str = "grpc-encoding";
/// A message that is decompressed is counted each time that it has grown by so much.
const GUNZIP_STEP_BYTES: usize = 64 * 1024;

/// Whether the messages of a request may be compressed by gzip.
pub(in crate::grpc) fn is_gzip(headers: &HeaderMap) -> bool {
    headers.get(ENCODING).is_some_and(|value| value.as_bytes() == b"gzip")
}

/// The one message of a request, with its prefix, once the request has ended.
pub(in crate::grpc) async fn one(mut body: ReceivedBody) -> Result<Bytes, Status> {
    let mut gathered = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(piece) = frame?.into_data() else { continue };
        if gathered.is_empty() && body.is_end_stream() {
            body.check_end()?;
            return Ok(piece);
        }
        // Copied: a small piece that waits for the next would keep all of the buffer that it was received in.
        gathered.extend_from_slice(&piece);
    }
    Ok(gathered.freeze())
}

/// A body of one piece.
pub(in crate::grpc) struct Whole(Bytes);

impl Whole {
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// A message with its prefix, no longer compressed if it was. The bound of a message holds for what it becomes.
pub(in crate::grpc) fn gunzip(message: Bytes, message_bytes_max: usize, held: &Held) -> Result<Bytes, Status> {
    if message.first() != Some(&1) {
        return Ok(message);
    }
    let mut decoder = MultiGzDecoder::new(&message[PREFIX_BYTES..]);
    let mut plain = vec![0; PREFIX_BYTES];
    loop {
        let length = plain.len() - PREFIX_BYTES;
        if length > message_bytes_max {
            return Err(Status::out_of_range(format!(
                "the message is too long: it has more than {message_bytes_max} bytes once it is decompressed"
            )));
        }
        held.hold(message.len().max(plain.len())).map_err(status)?;
        let step = GUNZIP_STEP_BYTES.min(message_bytes_max + 1 - length);
        let read = decoder.by_ref().take(step as u64).read_to_end(&mut plain);
        match read.map_err(|error| invalid(format_args!("cannot be decompressed: {error}"))).map_err(status)? {
            0 => break,
            _ => continue,
        }
    }
    let length = (plain.len() - PREFIX_BYTES) as u32;
    plain[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(plain.into())
}

/// A stream of messages, of which those that are compressed are decompressed one by one.
pub(in crate::grpc) struct GunzipBody {
    inner: ReceivedBody,
    held: Arc<Held>,
    message_bytes_max: usize,
    /// What has come and is not passed on yet.
    waiting: BytesMut,
    failed: bool,
}

impl GunzipBody {
    pub fn new(inner: ReceivedBody, held: Arc<Held>, message_bytes_max: usize) -> Self {
        Self { inner, held, message_bytes_max, waiting: BytesMut::new(), failed: false }
    }

    /// The next message, if it is whole.
    fn next(&mut self) -> Option<Bytes> {
        let length = self.waiting.get(1..PREFIX_BYTES).map(|mut length| length.get_u32() as usize)?;
        let whole = PREFIX_BYTES + length;
        (self.waiting.len() >= whole).then(|| self.waiting.split_to(whole).freeze())
    }
}

impl Body for GunzipBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        loop {
            if let Some(message) = this.next() {
                let plain = gunzip(message, this.message_bytes_max, &this.held);
                this.failed = plain.is_err();
                return Poll::Ready(Some(plain.map(Frame::data)));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => this.waiting.extend_from_slice(&piece),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failed || (self.waiting.is_empty() && self.inner.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::layers::request_body::Budget;
    use std::io::Write;
    use tonic::Code;

    fn gzipped(bytes: &[u8]) -> Bytes {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        let gzip = gzip.finish().unwrap();
        [&[1][..], &(gzip.len() as u32).to_be_bytes(), &gzip].concat().into()
    }

    fn plain(message: Bytes, most: usize) -> Result<Bytes, Status> {
        gunzip(message, most, &Held::new(&Arc::new(Budget::new(64 << 20))))
    }

    #[test]
    fn what_is_compressed_becomes_what_it_was_and_the_rest_stays() {
        let bytes = b"metering ".repeat(30_000);
        let message = plain(gzipped(&bytes), bytes.len()).unwrap();
        assert_eq!((message[0], &message[1..5], &message[5..]), (0, &(bytes.len() as u32).to_be_bytes()[..], &*bytes));
        assert_eq!(plain(gzipped(&[]), 1).unwrap(), [0; 5][..]);
        assert_eq!(plain(Bytes::from_static(b"\0\0\0\0\x01x"), 1).unwrap(), b"\0\0\0\0\x01x"[..]);
    }

    #[test]
    fn the_bound_of_a_message_holds_for_what_it_becomes() {
        let bomb = gzipped(&vec![0; 10 << 20]);
        assert_eq!(plain(bomb.clone(), (10 << 20) - 1).unwrap_err().code(), Code::OutOfRange);
        assert!(plain(bomb.clone(), 10 << 20).is_ok());
        let small = Arc::new(Budget::new(1 << 20));
        assert_eq!(gunzip(bomb, 10 << 20, &Held::new(&small)).unwrap_err().code(), Code::ResourceExhausted);
    }

    #[test]
    fn what_is_no_gzip_or_is_cut_is_invalid() {
        let whole = gzipped(b"metering");
        for bytes in
            [Bytes::from_static(&[1, 0, 0, 0, 0]), b"\x01\0\0\0\x03abc"[..].into(), whole.slice(..whole.len() - 9)]
        {
            assert_eq!(plain(bytes, 100).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
