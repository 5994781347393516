//! How messages are put on the wire and taken from it: as tonic does it, with a smaller buffer to begin with, and with a look at
//! batches before they are decoded.

use crate::grpc::layers::framing::invalid;
use crate::grpc::wire::batch_count as weight;
use crate::grpc::wire::status::status;
use crate::proto::BatchTrackUsageRequest;
use bytes::Buf;
use prost::Message;
use std::any::Any;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// First size of the buffer that messages are written to. It grows with them, and a stream keeps it as long as it lasts:
/// beginning with tonic's 8 KiB, an idle subscription takes 8.5 KiB of the server's memory in place of 3.
const ENCODE_BUFFER_BYTES: usize = 512;
/// As in tonic: a buffer that has grown to this is sent.
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
    type Decoder = WeighingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(ENCODE_BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        WeighingDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Refuses batches that are too large before they are decoded, and makes room for the events of the others at once.
pub struct WeighingDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for WeighingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let mut message = U::default();
        if let Some(batch) = (&mut message as &mut dyn Any).downcast_mut::<BatchTrackUsageRequest>() {
            // All of it: the buffer is in one piece.
            batch.events.reserve_exact(weight::check_batch(bytes.chunk()).map_err(status)?);
        }
        message.merge(bytes).map_err(|error| invalid(format_args!("cannot be decoded: {error}"))).map_err(status)?;
        Ok(Some(message))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
