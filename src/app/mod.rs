//! `build()` connects the parts of a server; `run()` serves, and stops in order.

mod grpc_port;
mod health;

use crate::config::{ModelNames, Settings, UnknownService};
use crate::grpc::{Context, PageTokens};
use crate::{net, preflight, web};
use anyhow::Context as _;
use health::{set_health, supervise, watch_database};
use meterd_embedded_postgres::Embedded;
use meterd_engine::alerts::feed::Feed;
use meterd_engine::alerts::notify::{Notifier, Sender};
use meterd_engine::alerts::raise::AlertSettings;
use meterd_engine::auth::{Auth, KeyCache};
use meterd_engine::catalog::{CatalogCache, built_in, seed};
use meterd_engine::clock::Clock;
use meterd_engine::ingest::{Ingest, KeyFilters, SharedState};
use meterd_engine::jobs;
use meterd_engine::jobs::{Scheduler, Work};
use meterd_engine::plans;
use meterd_engine::{Engine, EngineConfig};
use meterd_store::database::deployment::{self, Deployment};
use meterd_store::database::reads::ReadPool;
use meterd_store::database::{connect, distribution, fitness};
use meterd_store::locks;
use sqlx::Connection;
use sqlx::postgres::PgConnectOptions;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;

/// Maximum time to close the database connections at the end.
const POOL_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Updates the schema, and creates the deployment if there is none. Several replicas can do this at the same time.
pub async fn prepare(options: &PgConnectOptions, settings: &Settings) -> anyhow::Result<Deployment> {
    let mut conn = connect::open(options).await?;
    fitness::check(&mut conn, settings.database.allow_non_durable_database).await?;
    connect::migrate(options).await.context("cannot update the database schema")?;
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
    if deployment.currency == built_in::CURRENCY {
        plans::seed(&mut tx).await?;
    }
    tx.commit().await?;
    conn.close().await?;
    anyhow::ensure!(
        deployment.currency == settings.currency,
        "--currency {}: must be {}, because the currency of a deployment is fixed at its first start: start with --currency {}",
        settings.currency,
        deployment.currency,
        deployment.currency
    );
    Ok(deployment)
}

/// Allows what replicas of the previous release would get wrong. None may run.
pub async fn end_previous_release(options: &PgConnectOptions) -> anyhow::Result<()> {
    Ok(deployment::end_previous_release(&mut connect::open(options).await?).await?)
}

/// A server that listens on its ports and is ready to run.
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

/// Connects the parts of a server and listens on its ports. The database must be prepared.
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
    let bind = |name: &str, address: SocketAddr| {
        let failed = || format!("{name} {address}: cannot listen on this address (is another server running?)");
        net::bind(address).with_context(failed)
    };
    let grpc = bind("--listen", settings.listen)?;
    let http = bind("--http-listen", settings.http_listen)?;
    web::recorder();
    let notify_config = settings.notifications.config()?;
    let auth_config = settings.auth.config()?;
    let sender = Sender::new(&notify_config, &deployment.currency, &clock)?;
    let read_connections_max = settings.database.connections_max / 2;
    let reads = ReadPool::new(options.clone(), read_connections_max);
    let pool_connections_max = settings.database.connections_max - read_connections_max;
    let pool = connect::pool(options.clone(), pool_connections_max);
    // An export uses a connection until it ends. One connection stays free for other calls.
    let exports_max = settings.exports_max.min(pool_connections_max.saturating_sub(1)).max(1);
    let catalog = Arc::new(CatalogCache::new(settings.model_names == ModelNames::Rules));
    catalog.refresh(&pool).await?;
    if deployment.currency == built_in::CURRENCY {
        built_in::log_age(&mut *pool.acquire().await?, &clock).await?;
    }
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
    let key_filters = KeyFilters::load(&pool, ingest_config.key_filter_bytes_max).await?;
    let writer_options = connect::writer_options(options, distribution::is_distributed(&pool).await?);
    let shared = SharedState {
        catalog: catalog.clone(),
        key_filters: key_filters.clone(),
        pending_usage: Arc::default(),
        alert_settings: alert_settings.clone(),
    };
    let (ingest, writers) = Ingest::start(&ingest_config, &writer_options, &shared);
    let (stop, stopping) = watch::channel(false);
    key_filters.start(&pool, stopping.clone());
    shared.pending_usage.start(&pool, stopping.clone());
    let notifications_wanted = Arc::new(Notify::new());
    let (feed, feed_reader) =
        Feed::start(options, settings.subscriptions_max, notifications_wanted.clone(), stopping.clone()).await?;
    let keys = KeyCache::load(options, auth_config.requests_per_second).await?;
    let auth = Auth::new(&auth_config, keys.clone(), clock.clone())?;
    preflight::check_callers(&auth, &settings.database)?;
    let config = EngineConfig {
        correction_days: settings.correction_days,
        accept_past_days: settings.accept_past_days,
        accept_future_seconds: settings.accept_future_seconds,
        keep_unknown_services: settings.unknown_service == UnknownService::Keep,
        high_token_rate: settings.high_token_rate,
        exports_max: exports_max as usize,
        ingest: ingest_config,
        notify: notify_config,
    };
    let engine = Engine {
        pool,
        reads,
        catalog,
        ingest,
        key_filters,
        keys,
        clock,
        alert_settings,
        currency: deployment.currency,
        exports: Arc::new(Semaphore::new(config.exports_max)),
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
        stopping,
    });
    Ok(App { context, grpc, http, net, tls, writers, scheduler, feed_reader, notifier, stop })
}

impl App {
    /// Address of the gRPC port.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc.local_addr().expect("a bound listener has an address")
    }

    /// Address of the second port.
    pub fn http_address(&self) -> SocketAddr {
        self.http.local_addr().expect("a bound listener has an address")
    }

    /// The context of the handlers.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Serves until `shutdown`. Then reports NOT_SERVING, accepts no new work, settles all queued events and closes the
    /// connections, within the stop timeout. Meanwhile `supervise` restarts the embedded database if it stops.
    pub async fn run(self, shutdown: impl Future<Output = ()>, embedded: Option<&Embedded>) -> anyhow::Result<()> {
        let Self { context, grpc, http, net, tls, writers, scheduler, feed_reader, notifier, stop } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let (ready, is_ready) = watch::channel(web::Readiness::Starting);
        let (report_stop, health_reports_stop) = watch::channel(false);
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
        let probe = fitness::Probe::new(&context.engine.pool.connect_options());
        jobs.push(tokio::spawn(watch_database(context.clone(), probe, health, ready, report_stop)));

        let port = |name, tls| net::Port { name, tls, stopping: context.stopping.clone(), config: net.clone() };
        let grpc_port = port("grpc", tls.as_ref().map(net::Tls::grpc));
        let http_port = port("http", tls.as_ref().map(net::Tls::http));
        if let Some(tls) = tls {
            jobs.push(tokio::spawn(tls.reload_on_change(context.stopping.clone())));
        }
        let mut http = tokio::spawn(net::serve(http, http_port, web::router(web_state)));
        let mut grpc = grpc_port::serve(grpc, grpc_port, &context, health_service, health_reports_stop)?;

        let bound = Duration::from_secs(context.settings.stop_timeout_seconds.into());
        tokio::select! {
            () = shutdown => tracing::info!("stopping: waiting for queued events and calls in progress"),
            ended = &mut grpc => {
                ended?;
                anyhow::bail!("the gRPC server stopped unexpectedly");
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
            tracing::warn!(
                seconds = bound.as_secs(),
                "some events or calls did not finish in time; their callers must send them again"
            );
            grpc.abort();
            http.abort();
        }
        // Only reads whose callers have disconnected can still use a connection.
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
