//! Creates that return the first answer to a repeated request: the requests are hashed and the answers encoded here.

use crate::grpc::Context;
use crate::grpc::methods::Guarded;
use crate::grpc::wire::fields::Fields;
use crate::grpc::wire::paging::rpc_name;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_engine::auth::Caller;
use meterd_engine::clock::Clock;
use meterd_engine::idempotency::{Created, Idempotency};
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use meterd_store::requests::{self, FirstAnswer};
use prost::Message;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Postgres, Transaction};

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

/// Checks a request id.
pub fn check_request_id(fields: &mut Fields, request_id: &str) {
    fields.identifier("request_id", request_id, ID_BYTES_MAX);
}

/// A create under way: its transaction, and what its answer will be kept under.
pub struct Create {
    tx: Transaction<'static, Postgres>,
    clock: Clock,
    principal: String,
    request_id: String,
    request_hash: Vec<u8>,
}

/// A create that is to be done, or the answer that it had the first time.
pub enum Begun<R> {
    New(Create),
    Repeat(R),
}

impl Create {
    /// Begins a caller's create. `request` is the whole request, `rpc` its RPC. Request ids of other callers do not count.
    pub async fn begin<R: Message + Default>(
        context: &Context,
        caller: &Caller,
        rpc: &str,
        request_id: &str,
        request: &impl Message,
    ) -> Result<Begun<R>, Refusal> {
        let mut hash = Sha256::new();
        hash.update(rpc);
        hash.update([0]);
        hash.update(request.encode_to_vec());
        let request_hash = hash.finalize().to_vec();
        let principal = caller.principal();
        let mut tx = context.engine.pool.begin().await?;
        if !request_id.is_empty()
            && let Some(first) = requests::find(&mut tx, &principal, request_id, &request_hash).await?
        {
            if first.request_hash != request_hash {
                let message = format!("request_id {request_id:?} was used by another create with other contents");
                return Err(Refusal::new(Reason::RequestIdReused, message));
            }
            return R::decode(first.response.as_slice()).map(Begun::Repeat).map_err(Refusal::internal);
        }
        let clock = context.engine.clock.clone();
        Ok(Begun::New(Self { tx, clock, principal, request_id: request_id.into(), request_hash }))
    }

    /// The connection to do the work on.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Keeps the answer and commits.
    pub async fn commit<R: Message>(mut self, response: R) -> Result<R, Refusal> {
        if !self.request_id.is_empty() {
            let answer = FirstAnswer { request_hash: self.request_hash, response: response.encode_to_vec() };
            requests::insert(&mut self.tx, &self.principal, &self.request_id, &answer, self.clock.now()).await?;
        }
        self.tx.commit().await?;
        Ok(response)
    }
}
