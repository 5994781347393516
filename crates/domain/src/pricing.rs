//! Charges of events.

use crate::catalog::{Catalog, Selected, Wanted};
use crate::event::{Charge, UnpricedReason, UsageEvent};
use crate::plan::ClientPlans;
use crate::tiers::{EventTiers, MonthUse};

/// What the charges of events depend on: the catalogue, and the plans of their clients.
#[derive(Clone, Copy, Debug)]
pub struct Pricing<'a> {
    pub catalog: &'a Catalog,
    pub plans: &'a ClientPlans,
}

impl Pricing<'_> {
    /// Returns the charge of an event by the price that is valid at its time, if this price has no tiers. By a price with tiers, it is
    /// the charge of the first event of a month.
    pub fn charge(&self, event: &UsageEvent) -> Charge {
        self.charge_in_month(event, &mut MonthUse::default()).0
    }

    /// Returns the charge of an event by the price that is valid at its time, and what tiers contribute to it. `used` are the quantities
    /// of the month of its client, to which the event is added.
    pub fn charge_in_month(&self, event: &UsageEvent, used: &mut MonthUse) -> (Charge, Option<EventTiers>) {
        if self.catalog.service(&event.service).is_none() {
            return (Charge::Unpriced(UnpricedReason::UnknownService), None);
        }
        let Some(Selected { price, .. }) = self.catalog.select(&self.wanted(event)) else {
            return (Charge::Unpriced(UnpricedReason::NoPrice), None);
        };
        match price.charge_in_month(&event.measures, used) {
            Ok((charge, tiers)) => (Charge::Priced { charge, price_id: price.price_id }, tiers),
            Err(reason) => (Charge::Unpriced(reason), None),
        }
    }

    /// Returns the price of an event if it has tiers.
    pub fn tiered_price(&self, event: &UsageEvent) -> Option<i64> {
        if !self.catalog.has_tiers() {
            return None;
        }
        let Selected { price, .. } = self.catalog.select(&self.wanted(event))?;
        (!price.rates.tiers.is_empty()).then_some(price.price_id)
    }

    /// Returns what the price of an event is searched for.
    fn wanted<'e>(&'e self, event: &'e UsageEvent) -> Wanted<'e> {
        Wanted {
            client_id: &event.client_id,
            plan_id: match self.catalog.has_plans() {
                true => self.plans.at(&event.client_id, event.event_time),
                false => "",
            },
            service: &event.service,
            operation: &event.operation,
            model: &event.model,
            service_tier: &event.service_tier,
            input_tokens: event.measures.input_tokens,
            time: event.event_time,
        }
    }
}
