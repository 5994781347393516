//! `build()` wires everything, `run()` serves and drains.

use crate::config::{Settings, UnknownService};
use crate::grpc::access::AccessRules;
use crate::grpc::layers::Layers;
use crate::grpc::layers::admission::{AdmissionLayer, AdmissionLimits};
use crate::grpc::layers::call::CallLayer;
use crate::grpc::layers::guard::GuardLayer;
use crate::grpc::layers::shutdown::ShutdownLayer;
use crate::grpc::layers::slots::SlotLimits;
use crate::grpc::{Context, Handlers, PageTokens};
use crate::{net, preflight, proto, web};
use anyhow::Context as _;
use meterd_embedded_postgres::Embedded;
use meterd_engine::alerts::feed::Feed;
use meterd_engine::alerts::notify::{Notifier, Sender};
use meterd_engine::alerts::raise::AlertSettings;
use meterd_engine::auth::{Auth, KeyCache};
use meterd_engine::catalog::{CatalogCache, seed};
use meterd_engine::clock::Clock;
use meterd_engine::ingest::Ingest;
use meterd_engine::jobs;
use meterd_engine::jobs::{Scheduler, Work};
use meterd_engine::{Engine, EngineConfig};
use meterd_store::deployment::{self, Deployment};
use meterd_store::{connect, locks};
use sqlx::Connection;
use sqlx::postgres::PgConnectOptions;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;
use tower_http::cors::CorsLayer;

/// How often the database is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A database that does not answer for so long is away.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// How long connections may take to close at the end.
const POOL_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Brings the schema up to date and makes the deployment if there is none. Safely with several replicas at once.
pub async fn prepare(options: &PgConnectOptions, settings: &Settings) -> anyhow::Result<Deployment> {
    let mut conn = connect::open(options).await?;
    connect::check_fitness(&mut conn, settings.database.allow_non_durable_database).await?;
    connect::migrate(options).await.context("the database schema could not be brought up to date")?;
    let mut tx = conn.begin().await?;
    locks::seed(&mut tx).await?;
    let deployment = match deployment::find(&mut tx).await? {
        Some(deployment) => deployment,
        None => {
            let token_secret = rand::random::<[u8; 32]>().to_vec();
            let deployment = Deployment { currency: settings.currency.clone(), token_secret };
            deployment::insert(&mut tx, &deployment).await?;
            seed(&mut tx, &deployment.currency).await?;
            deployment
        }
    };
    tx.commit().await?;
    conn.close().await?;
    anyhow::ensure!(
        deployment.currency == settings.currency,
        "this deployment keeps its books in {}, fixed at its first start, and the setting is {}: start with --currency {}",
        deployment.currency,
        settings.currency,
        deployment.currency
    );
    Ok(deployment)
}

/// A server, bound and ready to run.
pub struct App {
    context: Arc<Context>,
    grpc: TcpListener,
    http: TcpListener,
    net: net::NetConfig,
    tls: Option<net::Tls>,
    writers: Vec<JoinHandle<()>>,
    scheduler: Scheduler,
    feed_reader: JoinHandle<()>,
    notifier: Notifier,
    stop: watch::Sender<bool>,
}

/// Wires a server over a prepared database and binds its ports.
pub async fn build(
    settings: Settings,
    options: &PgConnectOptions,
    deployment: Deployment,
    clock: Clock,
) -> anyhow::Result<App> {
    settings.check_exposure()?;
    settings.check_retention()?;
    let net = settings.net()?;
    let tls = net::Tls::load(&net)?;
    let bind = async |name: &str, address: SocketAddr| {
        let taken = || format!("{name} {address} cannot be listened on; is another server running there?");
        TcpListener::bind(address).await.with_context(taken)
    };
    let grpc = bind("--listen", settings.listen).await?;
    let http = bind("--http-listen", settings.http_listen).await?;
    web::recorder();
    let notify_config = settings.notifications.config()?;
    let auth_config = settings.auth.config()?;
    let sender = Sender::new(&notify_config, &deployment.currency, &clock)?;
    let read_connections_max = settings.database.connections_max / 2;
    let reads = connect::read_pool(options.clone(), read_connections_max);
    let pool_connections_max = settings.database.connections_max - read_connections_max;
    let pool = connect::pool(options.clone(), pool_connections_max);
    // An export has a connection as long as it lasts: they leave one to the others.
    let exports_max = settings.exports_max.min(pool_connections_max.saturating_sub(1)).max(1);
    let catalog = Arc::new(CatalogCache::default());
    catalog.refresh(&pool).await?;
    let notifier = Notifier::new(&pool, sender, &notify_config);
    let alert_settings = AlertSettings {
        clock: clock.clone(),
        currency: deployment.currency.clone(),
        accept_past_days: settings.accept_past_days,
    };
    let work = Work {
        pool: connect::job_pool(options.clone()),
        clock: clock.clone(),
        config: settings.jobs.config(settings.alert_feed_days),
        alert_settings: alert_settings.clone(),
    };
    let scheduler = Scheduler::start(connect::lease_pool(options.clone()), work).await?;
    let ingest_config = settings.ingest();
    let (ingest, writers) = Ingest::start(&ingest_config, options, &catalog, &alert_settings);
    let (stop, stopping) = watch::channel(false);
    let notifications_wanted = Arc::new(Notify::new());
    let (feed, feed_reader) =
        Feed::start(options, settings.subscriptions_max, notifications_wanted.clone(), stopping.clone()).await?;
    let keys = KeyCache::load(options, auth_config.requests_per_second).await?;
    let auth = Auth::new(&auth_config, keys.clone(), clock.clone())?;
    preflight::check_callers(&auth, &settings.database)?;
    let config = EngineConfig {
        accept_past_days: settings.accept_past_days,
        accept_future_seconds: settings.accept_future_seconds,
        keep_unknown_services: settings.unknown_service == UnknownService::Keep,
        ingest: ingest_config,
        notify: notify_config,
    };
    let engine = Engine {
        pool,
        reads,
        catalog,
        ingest,
        keys,
        clock,
        alert_settings,
        currency: deployment.currency,
        config,
        pricing_wanted: Arc::new(Notify::new()),
        notifications_wanted,
        jobs_wanted: Arc::new(Notify::new()),
        stopping: stopping.clone(),
    };
    let context = Arc::new(Context {
        engine: Arc::new(engine),
        settings,
        page_tokens: PageTokens::new(deployment.token_secret),
        auth,
        feed,
        exports: Arc::new(Semaphore::new(exports_max as usize)),
        exports_max: exports_max as usize,
        stopping,
    });
    Ok(App { context, grpc, http, net, tls, writers, scheduler, feed_reader, notifier, stop })
}

impl App {
    /// Where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc.local_addr().expect("a bound listener has an address")
    }

    /// Where the second port is.
    pub fn http_address(&self) -> SocketAddr {
        self.http.local_addr().expect("a bound listener has an address")
    }

    /// What the handlers work with.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Serves until `shutdown`, then stops in order, within the bound: NOT_SERVING, no new work, everything queued
    /// settled, connections closed. `supervise` keeps our own database alive meanwhile.
    pub async fn run(self, shutdown: impl Future<Output = ()>, embedded: Option<&Embedded>) -> anyhow::Result<()> {
        let Self { context, grpc, http, net, tls, writers, scheduler, feed_reader, notifier, stop } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let (ready, is_ready) = watch::channel(web::Readiness::Starting);
        let (report_stop, health_reports_stop) = watch::channel(false);
        let handlers = Handlers::new(context.clone());
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // With these, grpcurl shows error details as fields instead of bytes.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let web_state = web::WebState {
            metrics: web::recorder(),
            pool: context.engine.pool.clone(),
            ingest: context.engine.ingest.clone(),
            auth: context.auth.clone(),
            ready: is_ready,
        };
        let pricing = jobs::start_pricing(
            &context.engine.pool,
            &context.engine.catalog,
            &context.engine.alert_settings,
            &context.engine.pricing_wanted,
            &context.stopping,
        );
        let scheduler = tokio::spawn(scheduler.run(context.engine.jobs_wanted.clone(), context.stopping.clone()));
        let mut jobs = vec![pricing, scheduler, feed_reader];
        jobs.extend(context.auth.follow(&context.stopping));
        jobs.push(tokio::spawn(notifier.run(context.engine.notifications_wanted.clone(), context.stopping.clone())));
        let probe = connect::Probe::new(&context.engine.pool.connect_options());
        jobs.push(tokio::spawn(watch_database(context.clone(), probe, health, ready, report_stop)));

        let settings = context.settings.clone();
        let port = |name, tls| net::Port { name, tls, stopping: context.stopping.clone(), config: net.clone() };
        let grpc_port = port("grpc", tls.as_ref().map(net::Tls::grpc));
        let http_port = port("http", tls.as_ref().map(net::Tls::http));
        if let Some(tls) = tls {
            jobs.push(tokio::spawn(tls.reload_on_change(context.stopping.clone())));
        }
        let mut http = tokio::spawn(net::serve(http, http_port, web::router(web_state)));
        let request_timeout = Duration::from_secs(settings.request_timeout_seconds.into());
        let limits = AdmissionLimits {
            slots: SlotLimits {
                calls_max: settings.net.calls_max as usize,
                streams_max: settings.net.streams_max as usize,
                response_bytes_max: settings.net.answer_bytes_max as usize,
            },
            request_bytes_max: settings.net.request_bytes_max as usize,
            receive_timeout: request_timeout,
            unread_timeout: net.unread_timeout,
        };
        let rules = AccessRules {
            auth: context.auth.clone(),
            health: settings.auth.health,
            reflection: settings.auth.reflection,
        };
        let routes = Routes::new(handlers.usage())
            .add_service(handlers.alerts())
            .add_service(handlers.catalog())
            .add_service(handlers.clients())
            .add_service(handlers.jobs())
            .add_service(handlers.keys())
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        let layers = Layers {
            call: CallLayer { request_timeout },
            shutdown: ShutdownLayer { health_reports_stop },
            guard: GuardLayer { rules, web_origins: settings.web_origins.as_slice().into() },
            admission: AdmissionLayer::new(&limits),
        };
        // The first is the outermost.
        let service = ServiceBuilder::new()
            .layer(cors(&settings.web_origins)?)
            // Outside of the other layers, so that their responses are converted to gRPC-Web, too.
            .layer(tonic_web::GrpcWebLayer::new())
            .service(layers.wrap(routes));
        let mut grpc = tokio::spawn(net::serve(grpc, grpc_port, service));

        let bound = Duration::from_secs(context.settings.stop_timeout_seconds.into());
        tokio::select! {
            () = shutdown => tracing::info!("stopping: settling what is under way"),
            ended = &mut grpc => {
                ended?;
                anyhow::bail!("the gRPC server ended by itself");
            }
            () = supervise(embedded) => unreachable!("supervision never ends"),
        }
        stop.send_replace(true);
        context.engine.ingest.close();
        let drain = async {
            for writer in writers {
                drop(writer.await);
            }
            for job in jobs {
                drop(job.await);
            }
            drop((&mut grpc).await);
            drop((&mut http).await);
        };
        if tokio::time::timeout(bound, drain).await.is_err() {
            tracing::warn!(seconds = bound.as_secs(), "not everything settled in time; callers will send it again");
            grpc.abort();
            http.abort();
        }
        // What still holds a connection then is a read that nobody will get the answer of.
        let close = async {
            tokio::join!(
                context.engine.pool.close(),
                context.engine.reads.close(),
                context.feed.close(),
                context.auth.keys.close()
            )
        };
        drop(tokio::time::timeout(POOL_CLOSE_TIMEOUT, close).await);
        Ok(())
    }
}

/// Restarts our own database when it has died.
async fn supervise(embedded: Option<&Embedded>) {
    let Some(embedded) = embedded else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_EVERY / 4).await;
        match embedded.ensure_running().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the embedded PostgreSQL had ended and is running again"),
            Err(error) => tracing::error!(%error, "the embedded PostgreSQL has ended and does not start"),
        }
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let services =
        ["Usage", "Alert", "Catalog", "Client", "Job", "Key"].map(|name| format!("metering.v1.{name}Service"));
    for service in std::iter::once(String::new()).chain(services) {
        health.set_service_status(service, status).await;
    }
}

/// What the database's answer means for those who ask for health.
async fn readiness(probe: &mut connect::Probe) -> web::Readiness {
    match tokio::time::timeout(PING_TIMEOUT, probe.ask()).await {
        Ok(Ok(connect::Writes::Taken)) => web::Readiness::Ready,
        Ok(Ok(connect::Writes::ReadOnly)) => web::Readiness::DatabaseReadOnly,
        Ok(Ok(connect::Writes::Standby)) => web::Readiness::DatabaseStandby,
        Ok(Err(_)) | Err(_) => web::Readiness::DatabaseAway,
    }
}

/// Reports health: each service serves while the database takes writes and the server is not stopping. Sets `report_stop` once
/// the health service reports the stop, and returns then.
async fn watch_database(
    context: Arc<Context>,
    mut probe: connect::Probe,
    health: HealthReporter,
    ready: watch::Sender<web::Readiness>,
    report_stop: watch::Sender<bool>,
) {
    let mut stopping = context.stopping.clone();
    let mut before = None;
    loop {
        let found = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => web::Readiness::Stopping,
            found = readiness(&mut probe) => found,
        };
        let is_stopping = *stopping.borrow();
        let found = if is_stopping { web::Readiness::Stopping } else { found };
        if before != Some(found) {
            let serving = found == web::Readiness::Ready;
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            set_health(&health, status).await;
            ready.send_replace(found);
            // A server that starts does so over a database that answers and takes writes.
            if !is_stopping && (before.is_some() || !serving) {
                let text = if serving { "ready again: the database takes writes" } else { found.text() };
                tracing::warn!(serving, "{text}");
            }
            before = Some(found);
        }
        if is_stopping {
            report_stop.send_replace(true);
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PING_EVERY) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }
}

/// Lets pages of these origins call with gRPC-Web.
fn cors(origins: &[String]) -> anyhow::Result<CorsLayer> {
    use tonic::codegen::http::{HeaderName, HeaderValue, Method};
    let origins = origins.iter().filter(|origin| !origin.is_empty());
    let origins = origins.map(|origin| Ok(HeaderValue::from_str(origin)?)).collect::<anyhow::Result<Vec<_>>>()?;
    if origins.is_empty() {
        return Ok(CorsLayer::new());
    }
    let headers = ["content-type", "x-grpc-web", "x-user-agent", "grpc-timeout", "authorization", "x-request-id"];
    let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"];
    Ok(CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers(headers.map(HeaderName::from_static))
        .expose_headers(exposed.map(HeaderName::from_static)))
}
