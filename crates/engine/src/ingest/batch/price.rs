//! Prices the events that may claim their keys.

use super::Submission;
use super::claim::Claims;
use super::date::Dated;
use meterd_domain::catalog::Catalog;
use meterd_domain::event::PricedEvent;
use meterd_store::usage::holders::KeyHolder;
use meterd_store::usage::record::NewEvent;

/// The events to post, sorted by client and key.
pub struct Priced<'a> {
    pub new: Vec<NewEvent<'a>>,
    /// For each of `new`, its claim.
    pub claims: Vec<usize>,
}

/// Prices the events that make a claim, are not refused, and whose keys have no known holder. `earlier` has the known
/// holders by claim. `catalog` must be that of the batch's version.
pub fn price<'a>(catalog: &Catalog, dated: &[Dated<'a>], claims: &Claims, earlier: &[Option<KeyHolder>]) -> Priced<'a> {
    let (claims, new) = claims
        .event_of
        .iter()
        .enumerate()
        .filter(|&(claim, &event)| dated[event].refusal.is_none() && earlier[claim].is_none())
        .map(|(claim, &event)| {
            let Dated { submission: Submission { event, id, payload_hash, backfill, .. }, day, .. } = dated[event];
            let priced = PricedEvent { event, id: *id, day, charge: catalog.charge(event) };
            (claim, NewEvent { priced, payload_hash, backfill: *backfill })
        })
        .unzip();
    Priced { new, claims }
}
