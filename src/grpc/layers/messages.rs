//! Reads and decompresses the messages of requests.

use crate::grpc::layers::framing::{PREFIX_BYTES, invalid};
use crate::grpc::layers::request_body::LimitedBody;
use crate::grpc::layers::request_budget::RequestBytes;
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

/// Header with the compression of the messages of a call.
pub(in crate::grpc) const ENCODING: &str = "grpc-encoding";
/// Number of bytes that are decompressed between two updates of the memory of the request.
const GUNZIP_STEP_BYTES: usize = 64 * 1024;

/// Returns whether messages of the request may be compressed with gzip.
pub(in crate::grpc) fn is_gzip(headers: &HeaderMap) -> bool {
    headers.get(ENCODING).is_some_and(|value| value.as_bytes() == b"gzip")
}

/// Reads a request with one message until its end. Returns the message with its prefix.
pub(in crate::grpc) async fn read_message(mut body: LimitedBody) -> Result<Bytes, Status> {
    let mut message = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(piece) = frame?.into_data() else { continue };
        if message.is_empty() && body.is_end_stream() {
            body.check_end()?;
            return Ok(piece);
        }
        // The copy frees the buffer that the piece was received in, which is larger than a small piece.
        message.extend_from_slice(&piece);
    }
    Ok(message.freeze())
}

/// A body that consists of one piece.
pub(in crate::grpc) struct FullBody(Bytes);

impl FullBody {
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl Body for FullBody {
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

/// Decompresses a message if it is compressed. The message has its prefix before and after. `message_bytes_max` limits the
/// decompressed message.
pub(in crate::grpc) fn gunzip(message: Bytes, message_bytes_max: usize, bytes: &RequestBytes) -> Result<Bytes, Status> {
    if message.first() != Some(&1) {
        return Ok(message);
    }
    let mut decoder = MultiGzDecoder::new(&message[PREFIX_BYTES..]);
    let mut plain = vec![0; PREFIX_BYTES];
    loop {
        let length = plain.len() - PREFIX_BYTES;
        if length > message_bytes_max {
            return Err(Status::out_of_range(format!(
                "the message is too long: it has more than {message_bytes_max} bytes after decompression"
            )));
        }
        bytes.set(message.len().max(plain.len())).map_err(status)?;
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

/// A stream of messages. Decompresses each compressed message.
pub(in crate::grpc) struct GunzipBody {
    inner: LimitedBody,
    bytes: Arc<RequestBytes>,
    message_bytes_max: usize,
    /// The start of the next message.
    buffer: BytesMut,
    has_failed: bool,
}

impl GunzipBody {
    pub fn new(inner: LimitedBody, bytes: Arc<RequestBytes>, message_bytes_max: usize) -> Self {
        Self { inner, bytes, message_bytes_max, buffer: BytesMut::new(), has_failed: false }
    }

    /// Removes the next message from the buffer if it is complete.
    fn next_message(&mut self) -> Option<Bytes> {
        let length = self.buffer.get(1..PREFIX_BYTES).map(|mut length| length.get_u32() as usize)?;
        let end = PREFIX_BYTES + length;
        (self.buffer.len() >= end).then(|| self.buffer.split_to(end).freeze())
    }
}

impl Body for GunzipBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.has_failed {
            return Poll::Ready(None);
        }
        loop {
            if let Some(message) = this.next_message() {
                let plain = gunzip(message, this.message_bytes_max, &this.bytes);
                this.has_failed = plain.is_err();
                return Poll::Ready(Some(plain.map(Frame::data)));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => this.buffer.extend_from_slice(&piece),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_failed || (self.buffer.is_empty() && self.inner.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::layers::request_budget::RequestBudget;
    use std::io::Write;
    use tonic::Code;

    fn gzipped(bytes: &[u8]) -> Bytes {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        let gzip = gzip.finish().unwrap();
        [&[1][..], &(gzip.len() as u32).to_be_bytes(), &gzip].concat().into()
    }

    fn plain(message: Bytes, bytes_max: usize) -> Result<Bytes, Status> {
        gunzip(message, bytes_max, &RequestBytes::new(&Arc::new(RequestBudget::new(64 << 20))))
    }

    #[test]
    fn compressed_messages_are_decompressed_and_others_stay_as_they_are() {
        let bytes = b"metering ".repeat(30_000);
        let message = plain(gzipped(&bytes), bytes.len()).unwrap();
        assert_eq!((message[0], &message[1..5], &message[5..]), (0, &(bytes.len() as u32).to_be_bytes()[..], &*bytes));
        assert_eq!(plain(gzipped(&[]), 1).unwrap(), [0; 5][..]);
        assert_eq!(plain(Bytes::from_static(b"\0\0\0\0\x01x"), 1).unwrap(), b"\0\0\0\0\x01x"[..]);
    }

    #[test]
    fn the_maximum_length_applies_to_the_decompressed_message() {
        let bomb = gzipped(&vec![0; 10 << 20]);
        assert_eq!(plain(bomb.clone(), (10 << 20) - 1).unwrap_err().code(), Code::OutOfRange);
        assert!(plain(bomb.clone(), 10 << 20).is_ok());
        let small = RequestBytes::new(&Arc::new(RequestBudget::new(1 << 20)));
        assert_eq!(gunzip(bomb, 10 << 20, &small).unwrap_err().code(), Code::ResourceExhausted);
    }

    #[test]
    fn a_message_with_invalid_or_truncated_gzip_is_rejected() {
        let whole = gzipped(b"metering");
        for bytes in
            [Bytes::from_static(&[1, 0, 0, 0, 0]), b"\x01\0\0\0\x03abc"[..].into(), whole.slice(..whole.len() - 9)]
        {
            assert_eq!(plain(bytes, 100).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
