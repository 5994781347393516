//! Applies changes to events of locked months.

use crate::alerts::raise::AlertSettings;
use crate::ledger::{AlertEffect, MonthsLocked, Tiers, tier_month};
use meterd_domain::adjustment::{AdjustmentKind, field_changes};
use meterd_domain::alert::Alert;
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::event::{Charge, PricedEvent, UsageEvent};
use meterd_domain::period::Month;
use meterd_domain::rollup::Deltas;
use meterd_domain::tiers::EventTiers;
use meterd_store::catalog::pricing::{self, NewCharge};
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
    /// What tiers contribute to the new charge.
    pub tiers: Option<(Month, EventTiers)>,
    /// What remains in the cost of the tiers that the event does not count in any more.
    pub residue: Decimal,
}

impl<'a> Changed<'a> {
    /// Takes an event out of the tiers that it counts in, and charges it again, with new contents if there are some.
    pub fn charge(tiers: &mut Tiers<'_>, recorded: &'a RecordedEvent, event: Option<UsageEvent>) -> Self {
        let residue = tiers.remove(recorded);
        let (charge, of_tiers) = tiers.add(event.as_ref().unwrap_or(&recorded.event), tier_month(recorded));
        Self { recorded, event, charge: Some(charge), tiers: of_tiers, residue }
    }

    /// Takes an event out of the tiers that it counts in, because it is voided.
    pub fn void(tiers: &mut Tiers<'_>, recorded: &'a RecordedEvent) -> Self {
        Self { recorded, event: None, charge: None, tiers: None, residue: tiers.remove(recorded) }
    }
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
    let (mut new, mut voided, mut charged, mut corrected, mut residues) = (vec![], vec![], vec![], vec![], vec![]);
    let mut months = BTreeSet::new();
    for Changed { recorded, event, charge, tiers, residue } in changes {
        let RecordedEvent { id, day, event: old, .. } = recorded;
        deltas.remove_event(old, *day, recorded.charge);
        match (charge, event) {
            (None, _) => voided.push((client_id, *id)),
            (Some(charge), None) => {
                deltas.add_event(old, *day, *charge);
                charged.push(NewCharge { client_id, event: *id, charge: *charge, tiers: tiers.clone() });
            }
            (Some(charge), Some(event)) => {
                deltas.add_event(event, *day, *charge);
                corrected.push(PricedEvent { event, id: *id, day: *day, charge: *charge, tiers: tiers.clone() });
            }
        }
        let before = recorded.tiers.residue;
        let all = Decimal::from_scaled(before.scaled() + residue.scaled());
        if before != Decimal::ZERO || all != Decimal::ZERO {
            // What remains goes with the contents of the event.
            deltas.add_cost(old, *day, Total::ZERO - before.into());
            deltas.add_cost(event.as_ref().unwrap_or(old), *day, all.into());
            residues.push((client_id, *id, all));
        }
        months.insert(Month::of(*day));
        let changes = event.as_ref().map(|event| field_changes(old, event)).unwrap_or_default();
        new.push(NewAdjustment {
            client_id,
            event: *id,
            old: recorded.charge,
            new: *charge,
            tier_residue: *residue,
            changes,
        });
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
    if !residues.is_empty() {
        adjustments::set_residues(tx.conn(), &residues).await?;
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
