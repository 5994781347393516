//! Encodes and decodes messages as tonic does, with two differences: the encode buffer starts smaller, and the numbers of elements of
//! lists are checked before they are decoded.

use crate::grpc::layers::framing::invalid;
use crate::grpc::wire::batch_count;
use crate::grpc::wire::status::status;
use crate::proto::{BatchTrackUsageRequest, CorrectUsageRequest, ImportPricesRequest, VoidUsageRequest};
use bytes::Buf;
use meterd_engine::catalog::import::LIST_PRICES_MAX;
use meterd_engine::corrections::EVENTS_MAX;
use meterd_engine::refusal::Refusal;
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

/// Returns the list of a request that is not a batch: the number and the name of its field, the maximum number of its elements, and
/// what they are.
fn list_of(message: &dyn Any) -> Option<(u32, &'static str, usize, &'static str)> {
    if message.is::<VoidUsageRequest>() {
        Some((2, "events", EVENTS_MAX, "events"))
    } else if message.is::<CorrectUsageRequest>() {
        Some((2, "corrections", EVENTS_MAX, "events"))
    } else if message.is::<ImportPricesRequest>() {
        Some((1, "prices", LIST_PRICES_MAX, "prices"))
    } else {
        None
    }
}

/// Rejects lists that are too long before it decodes them, and reserves memory for all events of the others at once.
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
        if let Some((field, name, max, what)) = list_of(&message) {
            let count = batch_count::count_elements(bytes.chunk(), field);
            if count > max {
                let description = format!("must be 1 to {max} {what}, has {count}");
                return Err(status(Refusal::field(name, description)));
            }
        }
        message.merge(bytes).map_err(|error| invalid(format_args!("cannot be decoded: {error}"))).map_err(status)?;
        Ok(Some(message))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
