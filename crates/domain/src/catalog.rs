//! An immutable snapshot of services, prices and aliases, and the rule that selects a price.

use crate::alert::numbered;
use crate::event::{Charge, UnpricedReason, UsageEvent};
use crate::model_names::{ModelName, NameRules};
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

/// The name of a model with prices, as rules take it apart and as a whole.
type PricedModel = (ModelName, Arc<str>);

/// Prices of one service: model → operation → timeline. An empty model or operation matches any.
type ServicePrices = ByName<ByName<Timeline>>;

/// How a price was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum PriceMatch {
    /// The price is for exactly the model of the event.
    Model = 1,
    /// The model of the event is an alias of the model of the price.
    Alias = 2,
    /// The rules for names of models found the model of the price.
    Name = 3,
    /// The price is for any model.
    General = 4,
}

/// The price of an event, and how it was found.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a> {
    pub price: &'a Price,
    pub price_match: PriceMatch,
}

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
    name_rules: NameRules,
    /// Service → base of the name → models with prices.
    names: ByName<ByName<Vec<PricedModel>>>,
    /// The model of each price that has one, also of prices that are not in force any more.
    models: HashMap<i64, Arc<str>, RandomState>,
}

impl Catalog {
    /// Creates an empty catalogue with this version, and with rules for names of models.
    pub fn new(version: i64, name_rules: NameRules) -> Self {
        Self { version, name_rules, ..Self::default() }
    }

    /// Adds a service.
    pub fn add_service(&mut self, service: Service) {
        self.services.insert(service.service.clone(), service);
    }

    /// Adds a price for a scope. An empty operation or model matches any.
    pub fn add_price(&mut self, service: &str, operation: &str, model: &str, price: Price) {
        let prices = self.prices.entry(service.into()).or_default();
        if !model.is_empty() && !prices.contains_key(model) && !self.name_rules.is_empty() {
            let name = self.name_rules.parse(model);
            let names = self.names.entry(service.into()).or_default();
            names.entry(name.base.as_str().into()).or_default().push((name, model.into()));
        }
        let timeline = prices.entry(model.into()).or_default().entry(operation.into()).or_default();
        let at = timeline.partition_point(|other| other.effective_time <= price.effective_time);
        timeline.insert(at, price);
    }

    /// Adds the model of a price, for [`Self::model_of`].
    pub fn add_model(&mut self, price_id: i64, model: &str) {
        if !model.is_empty() {
            self.models.insert(price_id, model.into());
        }
    }

    /// Returns the model of a price, or `None` if the price is for any model or does not exist.
    pub fn model_of(&self, price_id: i64) -> Option<&Arc<str>> {
        self.models.get(&price_id)
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
    /// model that it is an alias of. If neither has a price, the rules for names search for the model: its price is used if all
    /// models that the name may mean have the same rates.
    pub fn select(&self, service: &str, operation: &str, model: &str, time: DateTime<Utc>) -> Option<Selected<'_>> {
        let prices = self.prices.get(service)?;
        let in_force = |model: &str, operation: &str| {
            let timeline = prices.get(model)?.get(operation)?;
            let later = timeline.partition_point(|price| price.effective_time.is_none_or(|from| from <= time));
            timeline[..later].last().filter(|price| price.end_time.is_none_or(|end| time < end))
        };
        let alias = self.aliases.get(service).and_then(|aliases| aliases.get(model));
        let selected = |price_match| move |price| Selected { price, price_match };
        let of_model = |operation: &str| {
            let own = in_force(model, operation).map(selected(PriceMatch::Model));
            own.or_else(|| in_force(alias?, operation).map(selected(PriceMatch::Alias)))
        };
        if !model.is_empty() {
            let of_any_operation = |model: &str| in_force(model, operation).or_else(|| in_force(model, ""));
            let specific = of_model(operation).or_else(|| of_model(""));
            let specific =
                specific.or_else(|| self.by_name(service, model, of_any_operation).map(selected(PriceMatch::Name)));
            if specific.is_some() {
                return specific;
            }
        }
        in_force("", operation).or_else(|| in_force("", "")).map(selected(PriceMatch::General))
    }

    /// Returns the price of the models that a name may mean, if all of them that have one have the same rates. Models of the same
    /// region, version and date come before those for which one of these is not known.
    fn by_name<'a>(
        &'a self,
        service: &str,
        model: &str,
        price_of: impl Fn(&str) -> Option<&'a Price>,
    ) -> Option<&'a Price> {
        let names = self.names.get(service)?;
        let name = self.name_rules.parse(model);
        let agreeing = names.get(name.base.as_str())?.iter().filter(|(other, _)| other.agrees(&name));
        let priced: Vec<_> = agreeing.filter_map(|(other, model)| Some((other, price_of(model)?))).collect();
        let is_same = |other: &ModelName| other.is_same_release(&name);
        let has_same = priced.iter().any(|(other, _)| is_same(other));
        let mut prices = priced.iter().filter(|(other, _)| !has_same || is_same(other)).map(|(_, price)| *price);
        let first = prices.next()?;
        prices.all(|price| price.rates == first.rates).then_some(first)
    }

    /// Returns the price that is valid at `time`. See [`Self::select`].
    pub fn price(&self, service: &str, operation: &str, model: &str, time: DateTime<Utc>) -> Option<&Price> {
        Some(self.select(service, operation, model, time)?.price)
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

    fn name_rules() -> NameRules {
        use crate::model_names::{NamePart, NameRule};
        let rule = |part, pattern: &str| NameRule { part, pattern: pattern.into(), models: String::new() };
        NameRules::new([rule(NamePart::Provider, "openai/"), rule(NamePart::Date, "-20##-##-##")])
    }

    const NOW: &str = "2026-11-21T00:00:00Z";

    #[test]
    fn the_most_specific_price_wins() {
        let mut catalog = Catalog::new(1, NameRules::default());
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
        let mut catalog = Catalog::new(1, NameRules::default());
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
        let mut catalog = Catalog::new(1, NameRules::default());
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
        let mut catalog = Catalog::new(1, NameRules::default());
        catalog.add_price("s", "", "", price(1, None));
        catalog.add_price("s", "", "m", price(2, Some("2026-12-01T00:00:00Z")));
        assert_eq!(id(&catalog, "", "m", NOW), Some(1));
    }

    #[test]
    fn on_each_level_the_name_is_tried_before_its_alias() {
        let mut catalog = Catalog::new(1, NameRules::default());
        catalog.add_price("s", "", "m", price(1, None));
        catalog.add_price("s", "", "", price(9, None));
        catalog.add_alias("s", "m-2024", "m");
        assert_eq!(id(&catalog, "", "m-2024", NOW), Some(1));
        catalog.add_price("s", "", "m-2024", price(2, None));
        assert_eq!(id(&catalog, "", "m-2024", NOW), Some(2));
        catalog.add_price("s", "op", "m", price(3, None));
        assert_eq!(id(&catalog, "op", "m-2024", NOW), Some(3));
    }

    #[test]
    fn a_name_finds_a_price_only_if_no_exact_name_and_no_alias_does() {
        let mut catalog = Catalog::new(1, name_rules());
        catalog.add_price("s", "", "", price(9, None));
        catalog.add_price("s", "", "m", price(1, None));
        catalog.add_price("s", "op", "m", price(2, None));
        let select = |catalog: &Catalog, operation: &str, model: &str| {
            let found = catalog.select("s", operation, model, NOW.parse().unwrap()).unwrap();
            (found.price.price_id, found.price_match)
        };
        assert_eq!(select(&catalog, "", "openai/M-2026-01-01"), (1, PriceMatch::Name));
        assert_eq!(select(&catalog, "op", "openai/M-2026-01-01"), (2, PriceMatch::Name));
        assert_eq!(select(&catalog, "", "m"), (1, PriceMatch::Model));
        assert_eq!(select(&catalog, "", "m-mini"), (9, PriceMatch::General));
        catalog.add_price("s", "", "n", price(3, None));
        catalog.add_alias("s", "openai/M-2026-01-01", "n");
        assert_eq!(select(&catalog, "", "openai/M-2026-01-01"), (3, PriceMatch::Alias));
        let mut exact = Catalog::new(1, NameRules::default());
        exact.add_price("s", "", "m", price(1, None));
        assert!(exact.select("s", "", "M", NOW.parse().unwrap()).is_none(), "without rules, only exact names match");
    }

    #[test]
    fn a_name_that_may_mean_models_of_different_rates_has_no_price() {
        use crate::decimal::Rate;
        let mut catalog = Catalog::new(1, name_rules());
        let rates = |rate: &str| Rates { unit: Some(Rate::parse(rate).unwrap()), ..Rates::default() };
        catalog.add_price("s", "", "m-2026-01-01", Price { rates: rates("1"), ..price(1, None) });
        catalog.add_price("s", "", "m-2026-02-01", Price { rates: rates("1"), ..price(2, None) });
        assert_eq!(id(&catalog, "", "M", NOW), Some(1), "both cost the same");
        assert_eq!(id(&catalog, "", "m-2026-03-01", NOW), None, "each has another date");
        catalog.add_price(
            "s",
            "",
            "m-2026-02-01",
            Price { rates: rates("2"), ..price(3, Some("2026-06-01T00:00:00Z")) },
        );
        assert_eq!(id(&catalog, "", "M", NOW), None);
        assert_eq!(id(&catalog, "", "M", "2026-05-31T00:00:00Z"), Some(1), "they cost the same until June");
        assert_eq!(id(&catalog, "", "openai/m-2026-02-01", NOW), Some(3));
        catalog.add_price("s", "", "m", Price { rates: rates("4"), ..price(4, None) });
        assert_eq!(id(&catalog, "", "openai/M", NOW), Some(4), "the model without a date comes first");
        assert_eq!(id(&catalog, "", "M-2026-03-01", NOW), Some(4));
    }
}
