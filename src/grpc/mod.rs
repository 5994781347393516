//! The services, thin: check, call, convert.

pub mod access;
pub mod alerts;
pub mod audit;
pub mod catalog;
pub mod clients;
pub mod jobs;
pub mod keys;
pub mod layers;
pub mod methods;
pub mod usage;
pub mod wire;

use layers::admission::AdmissionPermit;
pub use wire::page_token::{PageTokens, TokenMaker};
pub use wire::status::ERROR_DOMAIN;
use wire::status::{keeping_request_id, status};

use crate::config::Settings;
use crate::grpc::methods::{About, Guarded};
use crate::net::Peer;
use crate::proto::AlertEvent;
use crate::proto::alert_service_server::AlertServiceServer;
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
use tokio::sync::{Semaphore, watch};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};
use tracing::Instrument;

/// Longest message, both ways.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What every handler works with.
pub struct Context {
    pub engine: Arc<Engine>,
    pub settings: Settings,
    pub page_tokens: PageTokens,
    pub auth: Arc<Auth>,
    /// Changes of alerts, live.
    pub feed: Arc<Feed<AlertEvent>>,
    /// One permit for each export that may run.
    pub exports: Arc<Semaphore>,
    /// Maximum number of exports at once.
    pub exports_max: usize,
    /// True once the server is to stop.
    pub stopping: watch::Receiver<bool>,
}

/// Handlers of all services.
#[derive(Clone)]
pub struct Handlers(Arc<Context>);

impl Handlers {
    /// Over one context.
    pub fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// The usage service.
    pub fn usage(&self) -> UsageServiceServer<Self> {
        UsageServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// The alert service.
    pub fn alerts(&self) -> AlertServiceServer<Self> {
        AlertServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// The catalogue service.
    pub fn catalog(&self) -> CatalogServiceServer<Self> {
        CatalogServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// The client service.
    pub fn clients(&self) -> ClientServiceServer<Self> {
        ClientServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// The job service.
    pub fn jobs(&self) -> JobServiceServer<Self> {
        JobServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// The key service.
    pub fn keys(&self) -> KeyServiceServer<Self> {
        KeyServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Runs a handler that need not know who calls: see [`Self::run_as`].
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

    /// Runs a handler in a task of its own, so that a caller that hangs up cancels no database work half-way; after the
    /// caller was checked, and inside of an entry of the audit log where the role matrix says so.
    async fn run_as<Req: Guarded, Res, Fut>(
        &self,
        mut request: Request<Req>,
        handler: impl FnOnce(Arc<Context>, Arc<Caller>, Req) -> Fut + Send + 'static,
    ) -> Result<Response<Res>, Status>
    where
        Fut: Future<Output = Result<Res, Refusal>> + Send + 'static,
        Res: Send + 'static,
    {
        // The task keeps the call's slot: work that nobody waits for any more is work still.
        let admitted = request.extensions_mut().remove::<AdmissionPermit>();
        let (context, address) = (self.0.clone(), address(&request));
        if !Req::ROW.audited {
            let (caller, request) = admit(request).map_err(status)?;
            let handled = handler(context, caller, request);
            let work = async move {
                let _admitted = admitted;
                handled.await
            };
            return Ok(Response::new(in_a_task(work).await.map_err(status)?));
        }
        let caller = caller(&request).map_err(status)?;
        let mut request = request.into_inner();
        let audited = async move {
            let _admitted = admitted;
            let pool = context.engine.pool.clone();
            // Before the caller is checked: what an admin of some clients tried on others is written down too.
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

/// Runs work in a task, under the request id and in the span of this one. A panic is an error of ours.
async fn in_a_task<R: Send + 'static>(
    work: impl Future<Output = Result<R, Refusal>> + Send + 'static,
) -> Result<R, Refusal> {
    let work = keeping_request_id(work).in_current_span();
    tokio::spawn(work).await.unwrap_or_else(|panic| Err(Refusal::internal(panic)))
}

/// The caller, as the guard of every call has found out.
fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Refusal> {
    let unguarded = || Refusal::internal(anyhow::anyhow!("a call came past its guard"));
    request.extensions().get::<Arc<Caller>>().cloned().ok_or_else(unguarded)
}

/// The caller and its message, if it may send it.
fn admit<Req: Guarded>(request: Request<Req>) -> Result<(Arc<Caller>, Req), Refusal> {
    let caller = caller(&request)?;
    let mut message = request.into_inner();
    message.check(&caller)?;
    Ok((caller, message))
}

/// Where a call comes from.
fn address<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.address.to_string())
}
