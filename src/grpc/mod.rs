//! The gRPC services. A handler checks the request, calls the use case and converts the result.

pub mod access;
pub mod alerts;
pub mod audit;
pub mod billing;
pub mod catalog;
pub mod clients;
mod completion;
pub mod jobs;
pub mod keys;
pub mod layers;
pub mod methods;
pub mod services;
pub mod usage;
pub mod wire;

use completion::Uncancelled;
use layers::admission::AdmissionPermit;
pub use wire::page_token::{PageTokens, TokenMaker};
pub use wire::status::ERROR_DOMAIN;
use wire::status::{keeping_request_id, status};

use crate::config::Settings;
use crate::grpc::methods::{About, Guarded};
use crate::net::Peer;
use crate::proto::AlertEvent;
use crate::proto::alert_service_server::AlertServiceServer;
use crate::proto::billing_service_server::BillingServiceServer;
use crate::proto::catalog_service_server::CatalogServiceServer;
use crate::proto::client_service_server::ClientServiceServer;
use crate::proto::job_service_server::JobServiceServer;
use crate::proto::key_service_server::KeyServiceServer;
use crate::proto::usage_service_server::UsageServiceServer;
use meterd_engine::alerts::feed::Feed;
use meterd_engine::auth::{Auth, Caller};
use meterd_engine::{Engine, Refusal};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};
use tracing::Instrument;

/// Maximum size of a message, in both directions.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The state that all handlers share.
pub struct Context {
    pub engine: Arc<Engine>,
    pub settings: Settings,
    pub page_tokens: PageTokens,
    pub auth: Arc<Auth>,
    /// The live changes of alerts.
    pub feed: Arc<Feed<AlertEvent>>,
    /// True once the server is stopping.
    pub stopping: watch::Receiver<bool>,
}

/// Handlers of all services.
#[derive(Clone)]
pub struct Handlers(Arc<Context>);

impl Handlers {
    /// Creates the handlers of a context.
    pub fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// Returns the usage service.
    pub fn usage(&self) -> UsageServiceServer<Self> {
        UsageServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Returns the alert service.
    pub fn alerts(&self) -> AlertServiceServer<Self> {
        AlertServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Returns the billing service.
    pub fn billing(&self) -> BillingServiceServer<Self> {
        BillingServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Returns the catalogue service.
    pub fn catalog(&self) -> CatalogServiceServer<Self> {
        CatalogServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Returns the client service.
    pub fn clients(&self) -> ClientServiceServer<Self> {
        ClientServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Returns the job service.
    pub fn jobs(&self) -> JobServiceServer<Self> {
        JobServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Returns the key service.
    pub fn keys(&self) -> KeyServiceServer<Self> {
        KeyServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Runs a handler that does not need the caller: see [`Self::run_as`].
    async fn run<Req: Guarded, Res, Fut>(
        &self,
        mut request: Request<Req>,
        handler: impl FnOnce(Arc<Context>, Req) -> Fut + Send + 'static,
    ) -> Result<Response<Res>, Status>
    where
        Fut: Future<Output = Result<Res, Refusal>> + Send + 'static,
        Res: Send + 'static,
    {
        if matches!(request.get_mut().about(), About::Handler) {
            return Err(status(Refusal::internal(anyhow::anyhow!(
                "{} lets its handler check the caller",
                Req::ROW.method
            ))));
        }
        self.run_as(request, |context, _, request| handler(context, request)).await
    }

    /// Checks the caller and runs a handler to its end, so that a caller that disconnects does not cancel database work.
    /// If the role matrix says so, the call gets an entry in the audit log.
    async fn run_as<Req: Guarded, Res, Fut>(
        &self,
        mut request: Request<Req>,
        handler: impl FnOnce(Arc<Context>, Arc<Caller>, Req) -> Fut + Send + 'static,
    ) -> Result<Response<Res>, Status>
    where
        Fut: Future<Output = Result<Res, Refusal>> + Send + 'static,
        Res: Send + 'static,
    {
        // The work keeps the slot of the call, because it continues after the caller has disconnected.
        let admitted = request.extensions_mut().remove::<AdmissionPermit>();
        let (context, address) = (self.0.clone(), address(&request));
        if !Req::ROW.audited {
            let (caller, request) = admit(request).map_err(status)?;
            let handled = handler(context, caller, request);
            let work = async move {
                let _admitted = admitted;
                handled.await
            };
            let work = Uncancelled::new(keeping_request_id(work).in_current_span());
            return Ok(Response::new(work.await.map_err(status)?));
        }
        let caller = caller(&request).map_err(status)?;
        let mut request = request.into_inner();
        let audited = async move {
            let _admitted = admitted;
            let pool = context.engine.pool.clone();
            // Before the check of the caller, so that the log also has an admin's attempts on clients that its key does not
            // cover.
            let entry = audit::begin(&pool, &caller, &address, &request).await?;
            let done = match request.check(&caller) {
                Ok(()) => in_a_task(handler(context, caller, request)).await,
                Err(error) => Err(error),
            };
            audit::finish(entry, &pool, done.as_ref().err()).await;
            done
        };
        Ok(Response::new(in_a_task(audited).await.map_err(status)?))
    }
}

/// Runs work in a task with the request id and the span of the current one. Returns a panic as an internal error.
async fn in_a_task<R: Send + 'static>(
    work: impl Future<Output = Result<R, Refusal>> + Send + 'static,
) -> Result<R, Refusal> {
    let work = keeping_request_id(work).in_current_span();
    tokio::spawn(work).await.unwrap_or_else(|panic| Err(Refusal::internal(panic)))
}

/// Returns the caller, which the guard has identified.
fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Refusal> {
    let unguarded = || Refusal::internal(anyhow::anyhow!("a call has no caller: it did not pass the guard"));
    request.extensions().get::<Arc<Caller>>().cloned().ok_or_else(unguarded)
}

/// Returns the caller and its message, if the caller may send this message.
fn admit<Req: Guarded>(request: Request<Req>) -> Result<(Arc<Caller>, Req), Refusal> {
    let caller = caller(&request)?;
    let mut message = request.into_inner();
    message.check(&caller)?;
    Ok((caller, message))
}

/// Returns the network address of the caller.
fn address<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.address.to_string())
}
