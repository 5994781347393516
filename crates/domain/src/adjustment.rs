//! Adjustments: the changes of recorded events.

use crate::decimal::{Decimal, Total};
use crate::event::{Charge, UsageEvent, labels_json};
use crate::numbered::numbered;
use crate::rollup::{Deltas, Sums};
use crate::{measures, metadata};
use chrono::NaiveDate;
use std::collections::BTreeMap;

/// The kind of an adjustment. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum AdjustmentKind {
    /// The event no longer counts.
    Void = 1,
    /// The event has other contents.
    Correction = 2,
    /// The event is charged by another price.
    Reprice = 3,
    /// The event was unpriced, and a price that was created later applies to it.
    LatePrice = 4,
}
numbered!(AdjustmentKind, "kind of an adjustment", [Void, Correction, Reprice, LatePrice]);

/// The fields that a correction has changed, with their old and new values as texts.
pub type FieldChanges = BTreeMap<String, [String; 2]>;

/// Returns the fields in which two versions of an event differ.
pub fn field_changes(old: &UsageEvent, new: &UsageEvent) -> FieldChanges {
    let (old_fields, new_fields) = (fields(old), fields(new));
    let changed = old_fields.into_iter().zip(new_fields).filter(|(old, new)| old != new);
    changed.map(|((field, old), (_, new))| (field.to_owned(), [old, new])).collect()
}

/// Returns the fields that a correction can change, as texts.
fn fields(event: &UsageEvent) -> [(&'static str, String); 15] {
    let UsageEvent { measures, .. } = event;
    let decimal = |value: Option<Decimal>| value.map_or_else(String::new, |value| value.to_string());
    [
        ("service", event.service.to_string()),
        ("operation", event.operation.to_string()),
        ("model", event.model.to_string()),
        ("service_tier", event.service_tier.clone()),
        ("units", measures.units.to_string()),
        ("input_tokens", measures.input_tokens.to_string()),
        ("output_tokens", measures.output_tokens.to_string()),
        ("cached_input_tokens", measures.cached_input_tokens.to_string()),
        ("amount", decimal(measures.amount)),
        ("reported_cost", decimal(measures.reported_cost)),
        ("measures", measures::to_json(&measures.others).unwrap_or_default()),
        ("subject", event.subject.clone()),
        ("external_id", event.external_id.clone()),
        ("labels", labels_json(&event.labels).unwrap_or_default()),
        // The database may have formatted it differently.
        ("metadata", event.metadata.as_deref().and_then(metadata::canonical).unwrap_or_default()),
    ]
}

impl Deltas {
    /// Adds an event of a day.
    pub fn add_event(&mut self, event: &UsageEvent, day: NaiveDate, charge: Charge) {
        self.change_by_event(event, day, Sums::of(&event.measures, charge), true);
    }

    /// Removes an event of a day, with the charge that it has.
    pub fn remove_event(&mut self, event: &UsageEvent, day: NaiveDate, charge: Charge) {
        self.change_by_event(event, day, Sums::default() - Sums::of(&event.measures, charge), false);
    }

    /// Adds a cost to the day of an event that the charge of the event does not include.
    pub fn add_cost(&mut self, event: &UsageEvent, day: NaiveDate, cost: Total) {
        let key = (event.client_id.clone(), day, event.service.clone(), event.operation.clone(), event.model.clone());
        self.add(key, Sums { cost, ..Sums::default() });
    }

    fn change_by_event(&mut self, event: &UsageEvent, day: NaiveDate, sums: Sums, is_added: bool) {
        let key = (event.client_id.clone(), day, event.service.clone(), event.operation.clone(), event.model.clone());
        for (name, quantity) in event.measures.summed() {
            let sum = self.day_measures.entry((key.clone(), name)).or_default();
            *sum = if is_added { *sum + quantity.into() } else { *sum - quantity.into() };
        }
        self.add(key, sums);
    }
}
