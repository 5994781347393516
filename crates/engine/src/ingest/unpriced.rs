//! Counts events that were recorded without a charge.

use super::Outcome;
use super::queue::Item;
use meterd_domain::event::{Charge, UnpricedReason};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The label of all services that are not in the catalogue. Callers choose their names, and each label needs memory.
const UNKNOWN_SERVICE: &str = "unknown";

/// Adds the accepted events of a batch that have no charge to the metric.
pub(super) fn count(items: &[Item], outcomes: &[Outcome]) {
    let mut counts: BTreeMap<(Arc<str>, i16), u64> = BTreeMap::new();
    for (item, outcome) in items.iter().zip(outcomes) {
        if let Outcome::Accepted(recorded) = outcome
            && let Some(Charge::Unpriced(reason)) = recorded.charge
        {
            let service = match reason {
                UnpricedReason::UnknownService => UNKNOWN_SERVICE.into(),
                _ => item.submission.event.service.clone(),
            };
            *counts.entry((service, reason as i16)).or_default() += 1;
        }
    }
    for ((service, reason), count) in counts {
        metrics::counter!("meterd_events_unpriced_total", "service" => service, "reason" => UnpricedReason::from_number(reason).name()).increment(count);
    }
}
