//! An immutable snapshot of services, prices and aliases, and the rule that selects a price.

use crate::model_names::{ModelName, NameRules};
use crate::numbered::numbered;
use crate::price::Price;
use crate::tiers::TieredRate;
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

/// What a price is for. An empty client, plan, operation, model or service tier matches any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PriceScope<'a> {
    /// Only if `plan_id` is empty.
    pub client_id: &'a str,
    pub plan_id: &'a str,
    pub service: &'a str,
    pub operation: &'a str,
    pub model: &'a str,
    pub service_tier: &'a str,
    /// The price is only for events with more input tokens. `None`: with any number.
    pub above_input_tokens: Option<i64>,
}

/// What a price is searched for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub client_id: &'a str,
    /// The plan that the client has at `time`.
    pub plan_id: &'a str,
    pub service: &'a str,
    pub operation: &'a str,
    pub model: &'a str,
    pub service_tier: &'a str,
    pub input_tokens: i64,
    pub time: DateTime<Utc>,
}

/// The prices of one service, operation and model for one service tier and number of input tokens.
#[derive(Debug)]
struct Variant {
    service_tier: Arc<str>,
    above_input_tokens: Option<i64>,
    /// Sorted by time.
    timeline: Vec<Price>,
}

impl Variant {
    fn is_for(&self, wanted: &Wanted<'_>) -> bool {
        (self.service_tier.is_empty() || *self.service_tier == *wanted.service_tier)
            && self.above_input_tokens.is_none_or(|bound| wanted.input_tokens > bound)
    }

    fn in_force(&self, time: DateTime<Utc>) -> Option<&Price> {
        let later = self.timeline.partition_point(|price| price.effective_time.is_none_or(|from| from <= time));
        self.timeline[..later].last().filter(|price| price.end_time.is_none_or(|end| time < end))
    }
}

/// The name of a model with prices, as rules take it apart and as a whole.
type PricedModel = (ModelName, Arc<str>);

/// Prices of one service: model → operation → variants. An empty model or operation matches any.
type ServicePrices = ByName<ByName<Vec<Variant>>>;

/// Prices by service.
type Prices = ByName<ServicePrices>;

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
    /// The prices for any client and plan.
    prices: Prices,
    /// The prices for one client.
    client_prices: ByName<Prices>,
    /// The prices for one plan.
    plan_prices: ByName<Prices>,
    /// Service → alias → model.
    aliases: ByName<ByName<Arc<str>>>,
    name_rules: NameRules,
    /// Service → base of the name → models with prices.
    names: ByName<ByName<Vec<PricedModel>>>,
    /// The model of each price that has one, also of prices that are not in force any more.
    models: HashMap<i64, Arc<str>, RandomState>,
    /// The tiers of each price that has some, also of prices that are not in force any more.
    tiers: HashMap<i64, Vec<TieredRate>>,
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

    /// Adds a price for a scope.
    pub fn add_price(&mut self, scope: &PriceScope<'_>, price: Price) {
        let PriceScope { client_id, plan_id, service, operation, model, service_tier, above_input_tokens } = *scope;
        if !model.is_empty() && !self.name_rules.is_empty() {
            let name = self.name_rules.parse(model);
            let names = self.names.entry(service.into()).or_default();
            let names = names.entry(name.base.as_str().into()).or_default();
            if !names.iter().any(|(_, known)| **known == *model) {
                names.push((name, model.into()));
            }
        }
        let prices = match (client_id, plan_id) {
            ("", "") => &mut self.prices,
            ("", _) => self.plan_prices.entry(plan_id.into()).or_default(),
            _ => self.client_prices.entry(client_id.into()).or_default(),
        };
        let prices = prices.entry(service.into()).or_default();
        let variants = prices.entry(model.into()).or_default().entry(operation.into()).or_default();
        let is_same =
            |of: &&mut Variant| *of.service_tier == *service_tier && of.above_input_tokens == above_input_tokens;
        if let Some(variant) = variants.iter_mut().find(is_same) {
            let at = variant.timeline.partition_point(|other| other.effective_time <= price.effective_time);
            variant.timeline.insert(at, price);
        } else {
            variants.push(Variant { service_tier: service_tier.into(), above_input_tokens, timeline: vec![price] });
        }
    }

    /// Adds the tiers of a price, for [`Self::tiers_of`].
    pub fn add_tiers(&mut self, price_id: i64, tiers: &[TieredRate]) {
        if !tiers.is_empty() {
            self.tiers.insert(price_id, tiers.to_vec());
        }
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

    /// Returns the most specific price that is valid at the time. Prices for the client come first, then those for its plan, then those
    /// for any client. Of these, the order is service+operation+model, then service+model, then service+operation, then service. On each
    /// level, the model's own name is tried before the model that it is an alias of. If neither has a price, the rules for names search
    /// for the model: its price is used if all models that the name may mean have the same rates.
    ///
    /// Of the prices of a level, one for the service tier comes before one for any, and then one with a higher bound of input
    /// tokens before one with a lower bound or none.
    pub fn select(&self, wanted: &Wanted<'_>) -> Option<Selected<'_>> {
        let of_client = self.client_prices.get(wanted.client_id).and_then(|prices| self.select_of(prices, wanted));
        let of_plan = || self.plan_prices.get(wanted.plan_id).and_then(|prices| self.select_of(prices, wanted));
        of_client.or_else(of_plan).or_else(|| self.select_of(&self.prices, wanted))
    }

    /// Selects a price: of the prices of one client, of one plan, or for any client.
    fn select_of<'a>(&'a self, prices: &'a Prices, wanted: &Wanted<'_>) -> Option<Selected<'a>> {
        let Wanted { service, operation, model, .. } = *wanted;
        let prices = prices.get(service)?;
        let in_force = |model: &str, operation: &str| {
            let variants = prices.get(model)?.get(operation)?.iter().filter(|variant| variant.is_for(wanted));
            let valid = variants.filter_map(|variant| Some((variant, variant.in_force(wanted.time)?)));
            let rank = |variant: &Variant| (!variant.service_tier.is_empty(), variant.above_input_tokens);
            valid.max_by_key(|(variant, _)| rank(variant)).map(|(_, price)| price)
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

    /// Returns whether a price is for one plan.
    pub fn has_plans(&self) -> bool {
        !self.plan_prices.is_empty()
    }

    /// Returns the services that a plan has prices for.
    pub fn services_of_plan(&self, plan_id: &str) -> impl Iterator<Item = &str> {
        self.plan_prices.get(plan_id).into_iter().flat_map(|services| services.keys().map(|service| &**service))
    }

    /// Returns whether a price has tiers, or had some.
    pub fn has_tiers(&self) -> bool {
        !self.tiers.is_empty()
    }

    /// Returns the tiered rates of a price, which may not be in force any more.
    pub fn tiers_of(&self, price_id: i64) -> &[TieredRate] {
        self.tiers.get(&price_id).map_or(&[], |tiers| tiers)
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
