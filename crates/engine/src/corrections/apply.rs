//! Applies changes to events of locked months.

use crate::alerts::raise::AlertSettings;
use crate::ledger::{AlertEffect, MonthsLocked};
use meterd_domain::adjustment::{AdjustmentKind, field_changes};
use meterd_domain::alert::Alert;
use meterd_domain::event::{Charge, PricedEvent, UsageEvent};
use meterd_domain::period::Month;
use meterd_domain::rollup::Deltas;
use meterd_store::catalog::pricing;
use meterd_store::usage::adjustments::{self, NewAdjustment, Origin};
use meterd_store::usage::events::RecordedEvent;
use std::collections::BTreeSet;

/// A recorded event that counts, and what becomes of it.
pub struct Changed<'a> {
    pub recorded: &'a RecordedEvent,
    /// The new contents. `None`: they stay.
    pub event: Option<UsageEvent>,
    /// The new charge. `None`: the event is voided.
    pub charge: Option<Charge>,
}

/// Applies changes of events of one client: the events, their adjustments, the sums, and the alerts of their months. Returns the
/// alerts that were raised, which the caller must pass to [`crate::alerts::raise::count`] after the commit.
///
/// The months of all events are locked, and `changes` has each event at most once.
pub async fn apply(
    mut tx: MonthsLocked<'_>,
    settings: &AlertSettings,
    origin: &Origin<'_>,
    client_id: &str,
    changes: &[Changed<'_>],
) -> meterd_store::Result<Vec<Alert>> {
    let mut deltas = Deltas::default();
    let (mut new, mut voided, mut charged, mut corrected) = (vec![], vec![], vec![], vec![]);
    let mut months = BTreeSet::new();
    for Changed { recorded, event, charge } in changes {
        let RecordedEvent { id, day, event: old, .. } = recorded;
        deltas.remove_event(old, *day, recorded.charge);
        match (charge, event) {
            (None, _) => voided.push((client_id, *id)),
            (Some(charge), None) => {
                deltas.add_event(old, *day, *charge);
                charged.push((client_id, *id, *charge));
            }
            (Some(charge), Some(event)) => {
                deltas.add_event(event, *day, *charge);
                corrected.push(PricedEvent { event, id: *id, day: *day, charge: *charge });
            }
        }
        months.insert(Month::of(*day));
        let changes = event.as_ref().map(|event| field_changes(old, event)).unwrap_or_default();
        new.push(NewAdjustment { client_id, event: *id, old: recorded.charge, new: *charge, changes });
    }
    if !voided.is_empty() {
        adjustments::void(tx.conn(), &voided).await?;
    }
    if !charged.is_empty() {
        pricing::set_charges(tx.conn(), &charged).await?;
    }
    if !corrected.is_empty() {
        adjustments::correct(tx.conn(), &corrected).await?;
    }
    if !new.is_empty() {
        adjustments::insert(tx.conn(), origin, &new).await?;
    }
    let months: Vec<Month> = months.into_iter().collect();
    let mut posted = tx.post(deltas).await?;
    if origin.kind != AdjustmentKind::Reprice {
        posted.delete_zeros(client_id, &months).await?;
    }
    Ok(posted.run_effects(settings, AlertEffect::Check { client_id, months: &months }).await?.into_raised())
}
