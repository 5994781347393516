//! Create requests that return the first answer again if the request is repeated.
//!
//! The answer is stored in the transaction of the create, as the bytes that the caller's protocol encodes. The engine does not
//! read them.

use crate::clock::Clock;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::{Reason, Refusal};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::admin::requests::{self, FirstAnswer};
use sqlx::{PgConnection, Postgres, Transaction};

/// What identifies a create that may be repeated, and how its answer is encoded. `T` is what it creates.
#[derive(Clone, Debug)]
pub struct Idempotency<T> {
    /// See [`crate::auth::Caller::principal`]. Request ids of other callers do not matter.
    pub principal: String,
    /// Empty: the request is not recognised if it is repeated.
    pub request_id: String,
    /// Hash of the method and the request.
    pub request_hash: Vec<u8>,
    /// Encodes the answer that is stored. It must not contain a secret.
    pub encode: fn(&T) -> Vec<u8>,
}

/// The result of a create.
#[derive(Debug)]
pub enum Created<T> {
    New(T),
    /// The stored answer of the first request.
    Repeat(Vec<u8>),
}

/// A create that has begun, or the stored answer of the first request.
pub(crate) enum CreateCall<T> {
    New(Creation<T>),
    Repeat(Vec<u8>),
}

/// A create in its transaction.
pub(crate) struct Creation<T> {
    tx: Transaction<'static, Postgres>,
    clock: Clock,
    idempotency: Idempotency<T>,
}

impl<T> Idempotency<T> {
    /// Returns the value for a request that is not recognised if it is repeated.
    pub fn none() -> Self {
        Self { principal: String::new(), request_id: String::new(), request_hash: vec![], encode: |_| vec![] }
    }

    /// Checks the request id.
    pub(crate) fn check(&self, fields: &mut Fields) {
        fields.identifier("request_id", &self.request_id, ID_BYTES_MAX);
    }

    /// Begins the create, unless the request is a repeat.
    ///
    /// # Errors
    /// `REQUEST_ID_REUSED` if the first request with this id was another one.
    pub(crate) async fn begin(self, engine: &Engine) -> Result<CreateCall<T>, Refusal> {
        let mut tx = engine.pool.begin().await?;
        let Self { principal, request_id, request_hash, .. } = &self;
        if !request_id.is_empty()
            && let Some(first) = requests::find(&mut tx, principal, request_id, request_hash).await?
        {
            if first.request_hash != *request_hash {
                let message = format!("request_id {request_id:?} was used by another create with other contents");
                return Err(Refusal::new(Reason::RequestIdReused, message));
            }
            return Ok(CreateCall::Repeat(first.response));
        }
        Ok(CreateCall::New(Creation { tx, clock: engine.clock.clone(), idempotency: self }))
    }
}

impl<T> Creation<T> {
    /// Returns the connection of the transaction.
    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Stores the answer and commits.
    pub(crate) async fn commit(mut self, created: &T) -> Result<(), Refusal> {
        let Idempotency { principal, request_id, request_hash, encode } = self.idempotency;
        if !request_id.is_empty() {
            let answer = FirstAnswer { request_hash, response: encode(created) };
            requests::insert(&mut self.tx, &principal, &request_id, &answer, self.clock.now()).await?;
        }
        Ok(self.tx.commit().await?)
    }
}
