//! The HTTP port: health for probes, metrics for Prometheus.

use crate::grpc::access::authenticate;
use axum::Router;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use meterd_domain::access::Scope;
use meterd_engine::auth::Auth;
use meterd_engine::refusal::{Reason, Refusal};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use sqlx::PgPool;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Upper bounds of the latency histograms, in seconds.
const SECONDS_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Upper bounds of the batch size histogram, in events.
const EVENTS_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 10_000.0];

/// State of the handlers.
#[derive(Clone)]
pub struct WebState {
    pub metrics: PrometheusHandle,
    pub pool: PgPool,
    pub ingest: meterd_engine::ingest::Ingest,
    /// Checks who may read the metrics.
    pub auth: Arc<Auth>,
    /// Whether the server can handle calls.
    pub ready: watch::Receiver<Readiness>,
}

/// Whether the server can handle calls, and the reason if it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    Starting,
    Stopping,
    DatabaseAway,
    /// A setting makes the database reject writes.
    DatabaseReadOnly,
    /// The database rejects writes because it is a standby.
    DatabaseStandby,
}

impl Readiness {
    /// Returns the text of `/readyz`.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "not ready: the server is starting",
            Self::Stopping => "not ready: the server is stopping",
            Self::DatabaseAway => "not ready: the database does not answer",
            Self::DatabaseReadOnly => "not ready: the database takes no writes: default_transaction_read_only is on",
            Self::DatabaseStandby => "not ready: the database takes no writes: it is a standby",
        }
    }
}

/// Returns the metrics recorder of the process. Several servers in one process, as in tests, share it.
pub fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(metrics_exporter_prometheus::Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
            .and_then(|builder| {
                let events = metrics_exporter_prometheus::Matcher::Full("meterd_batch_events".into());
                builder.set_buckets_for_metric(events, &EVENTS_BUCKETS)
            });
        let handle = builder
            .and_then(PrometheusBuilder::install_recorder)
            .expect("no other recorder is installed, and there are buckets");
        describe();
        handle
    };
    RECORDER.get_or_init(install).clone()
}

fn describe() {
    metrics::describe_counter!("meterd_events_total", "Events, by outcome");
    metrics::describe_counter!("meterd_batch_retries_total", "Retried batches");
    metrics::describe_counter!("meterd_events_priced_later_total", "Events priced after they were recorded");
    metrics::describe_counter!(
        "meterd_log_lines_lost_total",
        "Log lines dropped because the reader of the log was too slow"
    );
    metrics::describe_counter!(
        "meterd_events_unpriced_total",
        "Events recorded without a charge, by service and reason"
    );
    metrics::describe_gauge!(
        "meterd_unpriced_events",
        "Events without a charge in all months, as of the last run of the job monthly_summaries on any replica"
    );
    metrics::describe_histogram!("meterd_batch_events", "Events per transaction");
    metrics::describe_histogram!("meterd_commit_seconds", "Seconds from taking a batch from the queue to its commit");
    metrics::describe_histogram!("meterd_rpc_seconds", "Seconds per call, by method and status code");
    metrics::describe_counter!("meterd_notifications_total", "Deliveries of notifications, by kind and outcome");
    metrics::describe_gauge!("meterd_notifications_pending", "Notifications waiting for delivery, on all replicas");
    metrics::describe_counter!("meterd_job_runs_total", "Runs of scheduled jobs, by result: ok, failed, lost");
    metrics::describe_histogram!("meterd_job_seconds", "Seconds per run of a scheduled job");
    metrics::describe_gauge!(
        "meterd_job_last_success_timestamp_seconds",
        "Time of the last successful run of each scheduled job, on any replica"
    );
    metrics::describe_counter!("meterd_alerts_raised_total", "Alerts raised, by type");
    metrics::describe_gauge!("meterd_tasks", "Asynchronous tasks of the process");
    metrics::describe_gauge!("meterd_key_generations", "Generations of idempotency keys");
    metrics::describe_gauge!("meterd_key_filter_bytes", "Memory of the filters of closed generations of keys");
    metrics::describe_counter!(
        "meterd_closed_key_lookups_total",
        "Lookups of keys in closed generations whose filter may contain the key or is not in memory"
    );
    metrics::describe_counter!(
        "meterd_one_call_batches_total",
        "Batches tried in one call, by result; unless it is recorded, a transaction of several statements follows"
    );
    metrics::describe_counter!(
        "meterd_pending_rows_applied_total",
        "Rows of pending usage that this replica has applied to the sums of days and services, except in corrections"
    );
    metrics::describe_gauge!("meterd_queue_events", "Events that wait for a writer");
    metrics::describe_counter!(
        "meterd_alert_changes_sent_total",
        "Alert changes sent to subscriptions, by source: memory or table"
    );
    metrics::describe_gauge!("meterd_alert_subscriptions", "Subscriptions to alerts");
    metrics::describe_gauge!(
        "meterd_alert_feed_sequence",
        "Sequence number of the last alert change that this replica has read"
    );
    metrics::describe_gauge!("meterd_connections", "Open connections, by port");
    metrics::describe_counter!(
        "meterd_connections_refused_total",
        "Connections closed before their first call, by port and reason: full, handshake_timeout, tls"
    );
    metrics::describe_counter!("meterd_calls_shed_total", "Calls rejected with SERVER_BUSY, by limit");
    metrics::describe_counter!("meterd_connections_displaced_total", "Idle connections closed for new ones, by port");
    metrics::describe_counter!(
        "meterd_connections_cut_total",
        "Connections cut because their peers abused HTTP/2, by port"
    );
    metrics::describe_counter!(
        "meterd_answers_unread_total",
        "Responses ended because their callers did not read them"
    );
    metrics::describe_counter!(
        "meterd_tls_reload_failures_total",
        "Changed certificates or keys that could not be loaded"
    );
    metrics::describe_gauge!("meterd_pool_connections", "Connections of the pool, by state");
}

/// Returns the routes of the HTTP port.
pub fn router(state: WebState) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .with_state(state)
}

async fn ready(State(state): State<WebState>) -> impl IntoResponse {
    let readiness = *state.ready.borrow();
    let status = if readiness == Readiness::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", readiness.text()))
}

/// Checks that the caller has the scope read for all clients, because the metrics cover all clients.
async fn check_reader(auth: &Auth, request: &Parts) -> Result<(), Refusal> {
    authenticate(auth, &request.headers, request.extensions.get()).await?.check_all_clients(Scope::Read)
}

/// The HTTP status of each reason.
fn http_status(reason: Reason) -> StatusCode {
    use Reason::*;
    match reason {
        CredentialsMissing | CredentialsInvalid | CredentialsExpired | ApiKeyRevoked => StatusCode::UNAUTHORIZED,
        ScopeMissing | ClientNotCovered | OriginNotAllowed => StatusCode::FORBIDDEN,
        QueueFull | TooManyExports | TooManySubscriptions | TooManyApiKeys | TooManyLimits | RateLimited
        | ServerBusy => StatusCode::TOO_MANY_REQUESTS,
        InvalidField | UnknownService | EventTooOld | EventInFuture | PageTokenInvalid | RangeTooLong
        | ResumeTokenInvalid | MessageInvalid | RateNotConfirmed => StatusCode::BAD_REQUEST,
        ClientNotFound | EventNotFound | AlertNotFound | NotificationNotFound | JobNotFound | ApiKeyNotFound
        | PriceNotFound | RepriceRunNotFound | PlanNotFound | CreditGrantNotFound | LimitNotFound => {
            StatusCode::NOT_FOUND
        }
        IdempotencyConflict
        | ClientExists
        | ServiceExists
        | PriceExists
        | ModelAliasExists
        | RequestIdReused
        | NotificationNotFailed
        | MonthClosed
        | ApiKeyNotLive
        | PriceWithdrawn
        | PricesOverlap
        | PreviousReleaseMayRun
        | PlanExists
        | LimitExists
        | LimitBelowUsed
        | EventVoided => StatusCode::CONFLICT,
        ResumeTokenExpired | ResumeTokenAhead => StatusCode::GONE,
        DatabaseUnavailable | DatabaseBroken | ShuttingDown | ConnectionAged | IdentityProviderUnavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns the response that tells a caller of a refusal.
fn refused(refusal: Refusal) -> Response {
    let status = http_status(refusal.reason);
    let challenge = (status == StatusCode::UNAUTHORIZED).then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
    let retry = refusal.retry.map(|delay| [(header::RETRY_AFTER, delay.as_secs_f64().ceil().to_string())]);
    (status, challenge, retry, refusal.into_details().message + "\n").into_response()
}

async fn metrics_page(State(state): State<WebState>, request: Parts) -> Response {
    if let Err(error) = check_reader(&state.auth, &request).await {
        return refused(error);
    }
    metrics::gauge!("meterd_tasks").set(tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64);
    metrics::gauge!("meterd_queue_events").set(state.ingest.depth() as f64);
    let idle = state.pool.num_idle();
    metrics::gauge!("meterd_pool_connections", "state" => "idle").set(idle as f64);
    metrics::gauge!("meterd_pool_connections", "state" => "used").set((state.pool.size() as usize - idle) as f64);
    state.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}
