//! Prices waiting events after the catalogue has changed. The state of a task is a row, which advances in the transaction that
//! prices. So any replica can continue a job that was killed.

use crate::alerts::raise::{self, AlertSettings};
use crate::catalog::CatalogCache;
use crate::ledger::{AlertEffect, Begun, ClientSettings, MonthsLocked, Tiers, months_of, tier_month};
use crate::plans;
use meterd_domain::adjustment::AdjustmentKind;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, EventId};
use meterd_domain::period::Month;
use meterd_domain::pricing::Pricing;
use meterd_domain::rollup::{Deltas, Sums};
use meterd_store::catalog::pricing::{self, NewCharge, Waiting};
use meterd_store::usage::adjustments::{self, NewAdjustment, Origin};
use meterd_store::usage::events::RecordedEvent;
use meterd_store::usage::rollups::MonthRow;
use sqlx::PgPool;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Maximum number of events of one transaction. It locks their months, and ingest of the same clients waits for it. So it is short.
const BATCH_EVENTS: i64 = 2_000;
/// Reason and actor of the adjustments.
const LATE_PRICE: &str = "a price of the service or the plan of the client has changed";
const ACTOR: &str = "meterd";

/// Works on the oldest open task for one transaction. Returns false if there is none.
pub async fn run_once(
    pool: &PgPool,
    cache: &CatalogCache,
    alert_settings: &AlertSettings,
) -> meterd_store::Result<bool> {
    let mut transaction = pool.begin().await?;
    let mut tx = Begun::new(&mut transaction).share_versions().await?;
    let Some(task) = pricing::take_task(tx.conn()).await? else { return Ok(false) };
    let catalog = tx.catalog(cache).await?;
    let (version, closed) = (tx.versions.client_settings, tx.versions.closed_through);
    let waiting = pricing::next_waiting(tx.conn(), &task, closed, BATCH_EVENTS).await?;
    let months: BTreeSet<(String, Month)> =
        waiting.iter().flat_map(|at| at.months().map(|month| (at.client_id.clone(), month))).collect();
    let mut tx = tx.lock_months(&months).await?;
    let events = pricing::still_waiting(tx.conn(), &waiting).await?;
    if !months_of(events.iter()).is_subset(&months) {
        // An event was moved into a month that is not locked. The next run begins again.
        return Ok(true);
    }
    let plans = plans::of_clients(tx.conn(), &catalog, months.iter().map(|(client_id, _)| client_id.as_str())).await?;
    let pricing = Pricing { catalog: &catalog, plans: &plans };
    let Priced { events, changes } = price(&mut tx, pricing, &months, &events).await?;
    let count = events.len() as i64;
    let last: Option<&Waiting> = waiting.last();
    pricing::advance(tx.conn(), task.task_id, last, waiting.len() as i64, count).await?;
    let mut posted = tx.post(changes).await?;
    let mut settings = ClientSettings::default();
    let client_ids: BTreeSet<Arc<str>> = posted.months().iter().map(|row| row.client_id.as_str().into()).collect();
    settings.know(posted.conn(), version, &client_ids.iter().collect::<Vec<_>>()).await?;
    // Alerts of months that only backfills have changed do not send notifications.
    let live = match count {
        0 => HashSet::new(),
        _ => pricing::live_months(posted.conn(), &events).await?,
    };
    let is_backfill = |row: &MonthRow| !live.contains(&(row.client_id.clone(), row.month));
    let effect = AlertEffect::Raise { clients: &settings, is_backfill: &is_backfill };
    let raised = posted.run_effects(alert_settings, effect).await?.into_raised();
    transaction.commit().await?;
    raise::count(&raised);
    if count > 0 {
        metrics::counter!("meterd_events_priced_later_total").increment(count as u64);
        tracing::info!(service = task.service, events = count, "waiting events priced");
    }
    Ok(true)
}

/// Events that have received a charge.
struct Priced<'a> {
    events: Vec<&'a RecordedEvent>,
    /// The changes of the sums by these charges.
    changes: Deltas,
}

/// Sets the charges of waiting events of locked months, or another reason why they have none.
async fn price<'a>(
    tx: &mut MonthsLocked<'_>,
    pricing: Pricing<'_>,
    months: &BTreeSet<(String, Month)>,
    waiting: &'a [RecordedEvent],
) -> meterd_store::Result<Priced<'a>> {
    let mut tiers = Tiers::read(tx.conn(), pricing, months).await?;
    let mut priced = Priced { events: vec![], changes: Deltas::default() };
    let mut charges: Vec<NewCharge<'_>> = vec![];
    for recorded in waiting {
        let event = &recorded.event;
        let (charge, of_tiers) = tiers.add(event, tier_month(recorded));
        if charge == recorded.charge {
            continue;
        }
        charges.push(NewCharge { client_id: &event.client_id, event: recorded.id, charge, tiers: of_tiers });
        if let Charge::Priced { charge, .. } = charge {
            priced.events.push(recorded);
            let (client, service) = (event.client_id.clone(), event.service.clone());
            let key = (client, recorded.day, service, event.operation.clone(), event.model.clone());
            priced.changes.add(key, Sums::of_pricing(charge.into()));
        }
    }
    tiers.write(tx.conn()).await?;
    if !charges.is_empty() {
        pricing::set_charges(tx.conn(), &charges).await?;
        adjust(tx, waiting, &charges).await?;
    }
    Ok(priced)
}

/// Stores adjustments of the charged events that have some, so that the adjustments of an event always lead to its charge.
async fn adjust(
    tx: &mut MonthsLocked<'_>,
    waiting: &[RecordedEvent],
    charges: &[NewCharge<'_>],
) -> meterd_store::Result<()> {
    let ids: Vec<(&str, EventId)> = charges.iter().map(|new| (new.client_id, new.event)).collect();
    let adjusted = adjustments::adjusted(tx.conn(), &ids).await?;
    if adjusted.is_empty() {
        return Ok(());
    }
    let old: HashMap<(&str, EventId), Charge> =
        waiting.iter().map(|recorded| ((&*recorded.event.client_id, recorded.id), recorded.charge)).collect();
    let mut new = vec![];
    for NewCharge { client_id, event, charge, .. } in charges {
        if adjusted.contains(&((*client_id).to_owned(), *event)) {
            let (old, new_charge) = (old[&(*client_id, *event)], Some(*charge));
            let (changes, tier_residue) = (Default::default(), Decimal::ZERO);
            new.push(NewAdjustment { client_id, event: *event, old, new: new_charge, tier_residue, changes });
        }
    }
    let origin = Origin { kind: AdjustmentKind::LatePrice, reason: LATE_PRICE, actor: ACTOR, run_id: None };
    adjustments::insert(tx.conn(), &origin, &new).await
}
