//! The framing of gRPC messages: each message has a prefix with a compression flag and its length.

use crate::grpc::wire::status::status;
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use tonic::Status;

/// Length of the prefix.
pub(in crate::grpc) const PREFIX_BYTES: usize = 5;

/// A position in a sequence of messages.
#[derive(Default)]
pub(super) struct Position {
    /// Bytes of the prefix that have arrived.
    prefix: usize,
    /// Length of the message without its prefix.
    length: usize,
    /// Bytes of the message that have not arrived.
    missing: usize,
}

impl Position {
    /// Advances by these bytes. Returns the number of messages that they complete.
    ///
    /// # Errors
    /// Returns an error if a prefix is invalid, or if it says that the message is longer than `message_bytes_max`.
    pub fn advance(&mut self, mut bytes: &[u8], message_bytes_max: usize) -> Result<usize, Status> {
        let mut completed = 0;
        while let [first, rest @ ..] = bytes {
            if self.prefix < PREFIX_BYTES {
                self.prefix += 1;
                // The first byte is the compression flag.
                self.length = match (self.prefix, *first) {
                    (1, 0 | 1) => 0,
                    (1, flag) => {
                        return Err(status(invalid(format!("starts with the flag {flag}, which must be 0 or 1"))));
                    }
                    (_, byte) => self.length << 8 | usize::from(byte),
                };
                self.missing = self.length;
                bytes = rest;
                if self.prefix == PREFIX_BYTES && self.length > message_bytes_max {
                    return Err(too_long(self.length, message_bytes_max));
                }
            } else {
                let taken = self.missing.min(bytes.len());
                self.missing -= taken;
                bytes = &bytes[taken..];
            }
            if self.prefix == PREFIX_BYTES && self.missing == 0 {
                *self = Self::default();
                completed += 1;
            }
        }
        Ok(completed)
    }

    /// Returns how many bytes of the incomplete message have arrived.
    pub fn incomplete_bytes(&self) -> usize {
        self.prefix + if self.prefix == PREFIX_BYTES { self.length - self.missing } else { 0 }
    }
}

/// Uses the same code as tonic.
fn too_long(bytes: usize, bytes_max: usize) -> Status {
    Status::out_of_range(format!("the message is too long: it has {bytes} bytes, the maximum is {bytes_max}"))
}

/// Makes the error of an invalid request message. `problem` continues the sentence "the request message ...".
pub(in crate::grpc) fn invalid(problem: impl std::fmt::Display) -> Refusal {
    let message = format!("the request message {problem}; nothing of it was recorded");
    Refusal::new(Reason::MessageInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Vec<u8> {
        [&[0][..], &(bytes as u32).to_be_bytes(), &vec![7; bytes]].concat()
    }

    #[test]
    fn the_bytes_of_the_incomplete_message_are_counted_wherever_the_stream_is_split() {
        let bytes = [message(300), message(0), message(1)].concat();
        for size in [1, 2, 3, 5, 7, 305, bytes.len()] {
            let (mut position, mut at, mut completed) = (Position::default(), 0, 0);
            for piece in bytes.chunks(size) {
                at += piece.len();
                completed += position.advance(piece, 300).unwrap();
                let start = [0, 305, 310, 316].into_iter().rfind(|start| *start <= at).unwrap();
                assert_eq!(position.incomplete_bytes(), at - start, "after {at} bytes in pieces of {size}");
            }
            assert_eq!(completed, 3);
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_rejected_after_its_prefix() {
        let bytes = [message(300), message(301)].concat();
        let (mut position, message_bytes_max) = (Position::default(), 300);
        position.advance(&bytes[..309], message_bytes_max).unwrap();
        assert_eq!(position.advance(&bytes[309..310], message_bytes_max).unwrap_err().code(), tonic::Code::OutOfRange);
    }
}
