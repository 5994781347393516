//! Applies changes to events of locked months.

use crate::alerts::raise::AlertSettings;
use crate::ledger::{AlertEffect, MonthsLocked};
use meterd_domain::adjustment::{AdjustmentKind, field_changes};
use meterd_domain::alert::Alert;
use meterd_domain::event::{Charge, EventId, UsageEvent};
use meterd_domain::period::Month;
use meterd_domain::rollup::Deltas;
use meterd_store::catalog::pricing;
use meterd_store::usage::adjustments::{self, NewAdjustment, Origin};
use meterd_store::usage::events::RecordedEvent;
use std::collections::BTreeMap;

/// A recorded event that counts, and what becomes of it.
pub struct Changed<'a> {
    pub recorded: &'a RecordedEvent,
    /// The new contents. `None`: they stay.
    pub event: Option<UsageEvent>,
    /// The new charge. `None`: the event is voided.
    pub charge: Option<Charge>,
}

/// Applies changes: the events, their adjustments, the sums, and the alerts of their months. Returns the alerts that were raised,
/// which the caller must pass to [`crate::alerts::raise::count`] after the commit.
///
/// The months of all events are locked, and `changes` has each event at most once.
pub async fn apply(
    mut tx: MonthsLocked<'_>,
    settings: &AlertSettings,
    origin: &Origin<'_>,
    changes: &[Changed<'_>],
) -> meterd_store::Result<Vec<Alert>> {
    let mut deltas = Deltas::default();
    let mut new = vec![];
    let mut voided: Vec<(&str, EventId)> = vec![];
    let mut charged: Vec<(&str, EventId, Charge)> = vec![];
    let mut months = BTreeMap::<String, Vec<Month>>::new();
    for Changed { recorded, event, charge } in changes {
        let RecordedEvent { id, day, event: old, .. } = recorded;
        deltas.remove_event(old, *day, recorded.charge);
        match (charge, event) {
            (None, _) => voided.push((&old.client_id, *id)),
            (Some(charge), None) => {
                deltas.add_event(old, *day, *charge);
                charged.push((&old.client_id, *id, *charge));
            }
            (Some(charge), Some(event)) => {
                deltas.add_event(event, *day, *charge);
                adjustments::correct(tx.conn(), *id, event, *charge).await?;
            }
        }
        let of_client = months.entry(old.client_id.to_string()).or_default();
        of_client.push(Month::of(*day));
        let changes = event.as_ref().map(|event| field_changes(old, event)).unwrap_or_default();
        new.push(NewAdjustment { client_id: &old.client_id, event: *id, old: recorded.charge, new: *charge, changes });
    }
    for of_client in months.values_mut() {
        of_client.sort_unstable();
        of_client.dedup();
    }
    if !voided.is_empty() {
        adjustments::void(tx.conn(), &voided).await?;
    }
    if !charged.is_empty() {
        pricing::set_charges(tx.conn(), &charged).await?;
    }
    if !new.is_empty() {
        adjustments::insert(tx.conn(), origin, &new).await?;
    }
    let mut posted = tx.post(deltas).await?;
    if origin.kind != AdjustmentKind::Reprice {
        for (client_id, months) in &months {
            posted.delete_zeros(client_id, months).await?;
        }
    }
    Ok(posted.run_effects(settings, AlertEffect::Check { clients: &months }).await?.into_raised())
}
