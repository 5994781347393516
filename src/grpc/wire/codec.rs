//! Encodes and decodes messages as tonic does, with two differences: the encode buffer starts smaller, and batches are checked
//! before they are decoded.

use crate::grpc::layers::framing::invalid;
use crate::grpc::wire::batch_count;
use crate::grpc::wire::status::status;
use crate::proto::BatchTrackUsageRequest;
use bytes::Buf;
use prost::Message;
use std::any::Any;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Initial size of the encode buffer. The buffer grows with the messages, and a stream keeps it. With tonic's 8 KiB, an idle
/// subscription would take 8.5 KiB of memory instead of 3.
const ENCODE_BUFFER_BYTES: usize = 512;
/// The buffer is sent when it has this size, as in tonic.
const YIELD_BYTES: usize = 32 * 1024;

/// The codec of all services.
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BatchCheckingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(ENCODE_BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        BatchCheckingDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Rejects batches that are too large before it decodes them, and reserves memory for all events of the others at once.
pub struct BatchCheckingDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for BatchCheckingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let mut message = U::default();
        if let Some(batch) = (&mut message as &mut dyn Any).downcast_mut::<BatchTrackUsageRequest>() {
            // The chunk is the whole message, because the buffer is contiguous.
            batch.events.reserve_exact(batch_count::check_batch(bytes.chunk()).map_err(status)?);
        }
        message.merge(bytes).map_err(|error| invalid(format_args!("cannot be decoded: {error}"))).map_err(status)?;
        Ok(Some(message))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
