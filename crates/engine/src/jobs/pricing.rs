//! Prices waiting events after the catalogue has changed. Its state is a row, moved on in the transaction that prices: a
//! killed job goes on where it was, on any replica.

use crate::alerts::raise::{self, AlertSettings, ChangedMonth, raise_reached};
use crate::catalog::CatalogCache;
use meterd_domain::alert::Alert;
use meterd_domain::event::{Charge, EventId};
use meterd_domain::period::Month;
use meterd_domain::rollup::{Deltas, Sums};
use meterd_store::events::RecordedEvent;
use meterd_store::pricing::{self, Waiting};
use meterd_store::record;
use meterd_store::rollups::MonthRow;
use meterd_store::{catalog, clients, deployment, locks, policies, rollups};
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeSet;

/// Events of one transaction. It holds their month rows, which ingest of the same clients waits for: so it is short.
const BATCH_EVENTS: i64 = 2_000;

/// Does one transaction's worth of the oldest open task. False, when there is none.
///
/// Lock order: versions, (client, month), (client, month, service), days, alerts, feed counter.
pub async fn run_once(
    pool: &PgPool,
    cache: &CatalogCache,
    alert_settings: &AlertSettings,
) -> meterd_store::Result<bool> {
    let mut tx = pool.begin().await?;
    locks::share_versions(&mut tx).await?;
    let Some(task) = pricing::take_task(&mut tx).await? else { return Ok(false) };
    // Under the versions lock, so it is in force until the commit.
    let mut prices = cache.current();
    if catalog::version(&mut tx).await? != prices.version {
        prices = cache.adopt(catalog::load(&mut tx).await?);
    }

    // None is closed before the commit, as closing takes the versions lock.
    let closed = deployment::closed_through(&mut tx).await?;
    let waiting = pricing::next_waiting(&mut tx, &task, closed, BATCH_EVENTS).await?;
    let months: BTreeSet<(String, Month)> =
        waiting.iter().map(|at| (at.client_id.clone(), Month::of(at.day))).collect();
    let (clients, firsts): (Vec<_>, Vec<_>) =
        months.iter().map(|(client_id, month)| (client_id.clone(), month.first_day())).unzip();
    rollups::lock_months(&mut tx, &clients, &firsts).await?;

    let mut deltas = Deltas::default();
    let mut charges: Vec<(&str, EventId, Charge)> = Vec::new();
    let (mut priced, mut priced_events) = (0, vec![]);
    let events = pricing::still_waiting(&mut tx, &waiting).await?;
    for recorded in &events {
        let event = &recorded.event;
        if !months.contains(&(event.client_id.to_string(), Month::of(recorded.day))) {
            // Moved into a month that is not locked, in between. Begin again.
            return Ok(true);
        }
        let charge = prices.charge(event);
        if charge == recorded.charge {
            continue;
        }
        charges.push((&event.client_id, recorded.id, charge));
        if let Charge::Priced { charge, .. } = charge {
            priced += 1;
            priced_events.push(recorded);
            let (client, service) = (event.client_id.clone(), event.service.clone());
            let key = (client, recorded.day, service, event.operation.clone(), event.model.clone());
            deltas.add(key, Sums::of_pricing(charge.into()));
        }
    }
    if !charges.is_empty() {
        pricing::set_charges(&mut tx, &charges).await?;
    }
    let changed = if priced > 0 { record::add(&mut tx, &deltas).await? } else { vec![] };
    let last: Option<&Waiting> = waiting.last();
    pricing::advance(&mut tx, task.task_id, last, waiting.len() as i64, priced).await?;
    let raised = raise_alerts(&mut tx, alert_settings, changed, &priced_events).await?;
    tx.commit().await?;
    raise::count(&raised);
    if priced > 0 {
        metrics::counter!("meterd_events_priced_later_total").increment(priced as u64);
        tracing::info!(service = task.service, events = priced, "waiting events priced");
    }
    Ok(true)
}

/// Raises the alerts that the priced months have reached. Those that only events of a backfill have changed notify nobody.
async fn raise_alerts(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    months: Vec<MonthRow>,
    priced: &[&RecordedEvent],
) -> meterd_store::Result<Vec<Alert>> {
    if months.is_empty() {
        return Ok(vec![]);
    }
    let client_ids: BTreeSet<&str> = months.iter().map(|row| row.client_id.as_str()).collect();
    let client_ids: Vec<String> = client_ids.into_iter().map(String::from).collect();
    let zones = clients::time_zones(conn, &client_ids).await?;
    let policies = policies::load(conn, &client_ids).await?;
    let live = pricing::live_months(conn, priced).await?;
    let changed = months
        .into_iter()
        .filter_map(|row| {
            let backfill = !live.contains(&(row.client_id.clone(), row.month));
            Some(ChangedMonth { zone: *zones.get(&row.client_id)?, backfill, row })
        })
        .collect();
    raise_reached(conn, settings, &policies, changed).await
}
