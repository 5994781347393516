//! Creates that return the first answer to a repeated request: the requests are hashed and the answers encoded here.

use crate::grpc::methods::Guarded;
use crate::grpc::wire::paging::rpc_name;
use meterd_engine::auth::Caller;
use meterd_engine::idempotency::{Created, Idempotency};
use meterd_engine::refusal::Refusal;
use prost::Message;
use sha2::{Digest, Sha256};

/// Identifies a create of this caller. `encode` encodes the answer that is stored.
pub fn idempotency<T>(
    caller: &Caller,
    request: &impl Guarded,
    request_id: &str,
    encode: fn(&T) -> Vec<u8>,
) -> Idempotency<T> {
    let mut hash = Sha256::new();
    hash.update(rpc_name(request));
    hash.update([0]);
    hash.update(request.encode_to_vec());
    let request_hash = hash.finalize().to_vec();
    Idempotency { principal: caller.principal(), request_id: request_id.into(), request_hash, encode }
}

/// Returns the answer to a create: a new one, or the stored one.
pub fn answer<T, M: Message + Default>(created: Created<T>, message: impl FnOnce(T) -> M) -> Result<M, Refusal> {
    match created {
        Created::New(created) => Ok(message(created)),
        Created::Repeat(answer) => M::decode(answer.as_slice()).map_err(Refusal::internal),
    }
}
