//! Prices the events that may claim their keys.

use super::Submission;
use super::claim::Claims;
use super::date::Dated;
use crate::ledger::Tiers;
use meterd_domain::event::PricedEvent;
use meterd_domain::period::Month;
use meterd_domain::pricing::Pricing;
use meterd_store::usage::holders::KeyHolder;
use meterd_store::usage::record::NewEvent;
use std::collections::BTreeSet;

/// The events to post, sorted by client and key.
pub struct Priced<'a> {
    pub new: Vec<NewEvent<'a>>,
    /// For each of `new`, its claim.
    pub claims: Vec<usize>,
    /// Whether one of them is charged by tiers, so that its charge depends on what its month already has. The charges are then not
    /// right yet.
    pub is_tiered: bool,
}

impl Priced<'_> {
    /// Returns the months of the events for which `is_new` is true.
    pub fn months(&self, is_new: impl Fn(&NewEvent<'_>) -> bool) -> BTreeSet<(String, Month)> {
        let new = self.new.iter().filter(|new| is_new(new));
        new.map(|new| (new.priced.event.client_id.to_string(), Month::of(new.priced.day))).collect()
    }

    /// Charges the events for which `is_new` is true, in order.
    pub fn charge(&mut self, tiers: &mut Tiers<'_>, is_new: impl Fn(&NewEvent<'_>) -> bool) {
        for new in self.new.iter_mut() {
            if is_new(new) {
                let (charge, of_tiers) = tiers.add(new.priced.event, Month::of(new.priced.day));
                (new.priced.charge, new.priced.tiers) = (charge, of_tiers);
            }
        }
    }
}

/// Prices the events that make a claim, are not refused, and whose keys have no known holder. `earlier` has the known
/// holders by claim. `pricing` must be that of the batch's versions.
pub fn price<'a>(
    pricing: Pricing<'_>,
    dated: &[Dated<'a>],
    claims: &Claims,
    earlier: &[Option<KeyHolder>],
) -> Priced<'a> {
    let (claims, new): (_, Vec<NewEvent<'a>>) = claims
        .event_of
        .iter()
        .enumerate()
        .filter(|&(claim, &event)| dated[event].refusal.is_none() && earlier[claim].is_none())
        .map(|(claim, &event)| {
            let Dated { submission: Submission { event, id, payload_hash, backfill, .. }, day, .. } = dated[event];
            let priced = PricedEvent { event, id: *id, day, charge: pricing.charge(event), tiers: None };
            (claim, NewEvent { priced, payload_hash, backfill: *backfill })
        })
        .unzip();
    let is_tiered =
        pricing.catalog.has_tiers() && new.iter().any(|new| pricing.tiered_price(new.priced.event).is_some());
    Priced { new, claims, is_tiered }
}
