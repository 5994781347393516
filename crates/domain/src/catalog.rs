//! An immutable snapshot of services, prices and aliases, and the rule that selects a price.

use crate::alert::numbered;
use crate::event::{Charge, UnpricedReason, UsageEvent};
use crate::price::Price;
use chrono::{DateTime, Utc};
use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The category of a service. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum ServiceCategory {
    Ai = 1,
    Messaging = 2,
    Voice = 3,
    Payment = 4,
    Storage = 5,
    Other = 6,
}
numbered!(ServiceCategory, "category", [Ai, Messaging, Voice, Payment, Storage, Other]);

/// Something that can be metered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name in events.
    pub service: Arc<str>,
    /// Name shown to people.
    pub display_name: String,
    /// A number of [`ServiceCategory`].
    pub category: i16,
    /// Name of the unit.
    pub unit: String,
    /// Charged once per period and therefore not scaled in projections.
    pub recurring: bool,
    /// Operations that are charged but not included in message, call and minute counts.
    pub uncounted_operations: Vec<String>,
}

/// A map that is read for every event.
type ByName<T> = HashMap<Arc<str>, T, RandomState>;

/// Prices of one scope, sorted by time.
type Timeline = Vec<Price>;

/// Prices of one service: model → operation → timeline. An empty model or operation matches any.
type ServicePrices = ByName<ByName<Timeline>>;

/// Everything that pricing needs, from one version of the catalogue.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The version of the catalogue.
    pub version: i64,
    services: BTreeMap<Arc<str>, Service>,
    /// By service.
    prices: ByName<ServicePrices>,
    /// Service → alias → model.
    aliases: ByName<ByName<Arc<str>>>,
}

impl Catalog {
    /// Creates an empty catalogue with this version.
    pub fn new(version: i64) -> Self {
        Self { version, ..Self::default() }
    }

    /// Adds a service.
    pub fn add_service(&mut self, service: Service) {
        self.services.insert(service.service.clone(), service);
    }

    /// Adds a price for a scope. An empty operation or model matches any.
    pub fn add_price(&mut self, service: &str, operation: &str, model: &str, price: Price) {
        let scope = self.prices.entry(service.into()).or_default().entry(model.into()).or_default();
        let timeline = scope.entry(operation.into()).or_default();
        let at = timeline.partition_point(|other| other.effective_time <= price.effective_time);
        timeline.insert(at, price);
    }

    /// Adds another name for a model.
    pub fn add_alias(&mut self, service: &str, alias: &str, model: &str) {
        self.aliases.entry(service.into()).or_default().insert(alias.into(), model.into());
    }

    /// Returns the service with this name.
    pub fn service(&self, service: &str) -> Option<&Service> {
        self.services.get(service)
    }

    /// Returns all services, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Returns whether a name is an alias.
    pub fn is_alias(&self, service: &str, name: &str) -> bool {
        self.aliases.get(service).is_some_and(|aliases| aliases.contains_key(name))
    }

    /// Returns whether a model has an alias.
    pub fn is_aliased(&self, service: &str, model: &str) -> bool {
        self.aliases.get(service).is_some_and(|aliases| aliases.values().any(|name| &**name == model))
    }

    /// Returns the price that is valid at `time`. The most specific price is used: service+operation+model, then
    /// service+model, then service+operation, then service. On each level, the model's own name is tried before the
    /// model that it is an alias of.
    pub fn price(&self, service: &str, operation: &str, model: &str, time: DateTime<Utc>) -> Option<&Price> {
        let prices = self.prices.get(service)?;
        let in_force = |model: &str, operation: &str| {
            let timeline = prices.get(model)?.get(operation)?;
            let later = timeline.partition_point(|price| price.effective_time.is_none_or(|from| from <= time));
            timeline[..later].last().filter(|price| price.end_time.is_none_or(|end| time < end))
        };
        let alias = self.aliases.get(service).and_then(|aliases| aliases.get(model));
        let of_model = |operation: &str| in_force(model, operation).or_else(|| in_force(alias?, operation));
        if !model.is_empty() {
            let specific = of_model(operation).or_else(|| of_model(""));
            if specific.is_some() {
                return specific;
            }
        }
        in_force("", operation).or_else(|| in_force("", ""))
    }

    /// Returns the charge of an event by the price that is valid at its time.
    pub fn charge(&self, event: &UsageEvent) -> Charge {
        if self.service(&event.service).is_none() {
            return Charge::Unpriced(UnpricedReason::UnknownService);
        }
        match self.price(&event.service, &event.operation, &event.model, event.event_time) {
            None => Charge::Unpriced(UnpricedReason::NoPrice),
            Some(price) => match price.rates.charge(&event.measures) {
                Ok(charge) => Charge::Priced { charge, price_id: price.price_id },
                Err(reason) => Charge::Unpriced(reason),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::Rates;

    fn price(price_id: i64, from: Option<&str>) -> Price {
        let effective_time = from.map(|text| text.parse().unwrap());
        Price { price_id, effective_time, end_time: None, rates: Rates::default() }
    }

    fn id(catalog: &Catalog, operation: &str, model: &str, time: &str) -> Option<i64> {
        catalog.price("s", operation, model, time.parse().unwrap()).map(|price| price.price_id)
    }

    const NOW: &str = "2026-11-21T00:00:00Z";

    #[test]
    fn the_most_specific_price_wins() {
        let mut catalog = Catalog::new(1);
        let scopes = [("", "", 1), ("op", "", 2), ("", "m", 3), ("op", "m", 4)];
        for (operation, model, price_id) in scopes {
            catalog.add_price("s", operation, model, price(price_id, None));
        }
        assert_eq!(id(&catalog, "op", "m", NOW), Some(4));
        assert_eq!(id(&catalog, "other", "m", NOW), Some(3));
        assert_eq!(id(&catalog, "op", "other", NOW), Some(2));
        assert_eq!(id(&catalog, "op", "", NOW), Some(2));
        assert_eq!(id(&catalog, "other", "", NOW), Some(1));
        assert_eq!(catalog.price("unknown", "", "", NOW.parse().unwrap()), None);
    }

    #[test]
    fn a_price_is_valid_from_its_time_until_the_next() {
        let mut catalog = Catalog::new(1);
        catalog.add_price("s", "", "m", price(2, Some("2026-06-01T00:00:00Z")));
        catalog.add_price("s", "", "m", price(3, Some("2026-12-01T00:00:00Z")));
        catalog.add_price("s", "", "m", price(1, Some("2026-01-01T00:00:00Z")));
        assert_eq!(id(&catalog, "", "m", "2025-12-31T23:59:59Z"), None);
        assert_eq!(id(&catalog, "", "m", "2026-01-01T00:00:00Z"), Some(1));
        assert_eq!(id(&catalog, "", "m", "2026-05-31T23:59:59.999999Z"), Some(1));
        assert_eq!(id(&catalog, "", "m", "2026-06-01T00:00:00Z"), Some(2));
        assert_eq!(id(&catalog, "", "m", "2099-01-01T00:00:00Z"), Some(3));
    }

    #[test]
    fn the_general_price_applies_after_the_end_of_the_specific_price() {
        let mut catalog = Catalog::new(1);
        catalog.add_price("s", "", "", price(1, None));
        let end_time = Some("2026-06-01T00:00:00Z".parse().unwrap());
        catalog.add_price("s", "", "m", Price { end_time, ..price(2, None) });
        catalog.add_price("s", "", "m", price(3, Some("2026-12-01T00:00:00Z")));
        assert_eq!(id(&catalog, "", "m", "2026-05-31T23:59:59.999999Z"), Some(2));
        assert_eq!(id(&catalog, "", "m", "2026-06-01T00:00:00Z"), Some(1));
        assert_eq!(id(&catalog, "", "m", "2026-12-01T00:00:00Z"), Some(3));
    }

    #[test]
    fn the_general_price_applies_until_the_specific_price_is_valid() {
        let mut catalog = Catalog::new(1);
        catalog.add_price("s", "", "", price(1, None));
        catalog.add_price("s", "", "m", price(2, Some("2026-12-01T00:00:00Z")));
        assert_eq!(id(&catalog, "", "m", NOW), Some(1));
    }

    #[test]
    fn on_each_level_the_name_is_tried_before_its_alias() {
        let mut catalog = Catalog::new(1);
        catalog.add_price("s", "", "m", price(1, None));
        catalog.add_price("s", "", "", price(9, None));
        catalog.add_alias("s", "m-2024", "m");
        assert_eq!(id(&catalog, "", "m-2024", NOW), Some(1));
        catalog.add_price("s", "", "m-2024", price(2, None));
        assert_eq!(id(&catalog, "", "m-2024", NOW), Some(2));
        catalog.add_price("s", "op", "m", price(3, None));
        assert_eq!(id(&catalog, "op", "m-2024", NOW), Some(3));
    }
}
