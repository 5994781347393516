//! Health: watches the database, reports the status of the services, and restarts the embedded database.

use crate::grpc::Context;
use crate::web;
use meterd_embedded_postgres::Embedded;
use meterd_store::database::fitness;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How often the database is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The database is reported as away if it does not answer a ping within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Restarts the embedded database whenever it has stopped.
pub async fn supervise(embedded: Option<&Embedded>) {
    let Some(embedded) = embedded else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL / 4).await;
        match embedded.ensure_running().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the embedded PostgreSQL had stopped and is running again"),
            Err(error) => tracing::error!(%error, "the embedded PostgreSQL has stopped and does not start"),
        }
    }
}

/// Sets the status of all services.
pub async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let services =
        ["Usage", "Alert", "Catalog", "Client", "Job", "Key"].map(|name| format!("metering.v1.{name}Service"));
    for service in std::iter::once(String::new()).chain(services) {
        health.set_service_status(service, status).await;
    }
}

/// Returns the readiness that follows from the answer of the database.
async fn readiness(probe: &mut fitness::Probe) -> web::Readiness {
    match tokio::time::timeout(PING_TIMEOUT, probe.ask()).await {
        Ok(Ok(fitness::Writes::Accepted)) => web::Readiness::Ready,
        Ok(Ok(fitness::Writes::ReadOnly)) => web::Readiness::DatabaseReadOnly,
        Ok(Ok(fitness::Writes::Standby)) => web::Readiness::DatabaseStandby,
        Ok(Err(_)) | Err(_) => web::Readiness::DatabaseAway,
    }
}

/// Reports health: every service is SERVING while the database accepts writes and the server is not stopping. When the server
/// stops, reports NOT_SERVING, sets `report_stop` and returns.
pub async fn watch_database(
    context: Arc<Context>,
    mut probe: fitness::Probe,
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
            // At the start, a database that accepts writes is the normal case and is not logged.
            if !is_stopping && (before.is_some() || !serving) {
                let text = if serving { "ready again: the database accepts writes" } else { found.text() };
                tracing::warn!(serving, "{text}");
            }
            before = Some(found);
        }
        if is_stopping {
            report_stop.send_replace(true);
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PING_INTERVAL) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }
}
