//! A price to create, and its checks.

use super::check_service;
use crate::fields::{Fields, UnixTime};
use crate::refusal::{Reason, shown};
use chrono::{DateTime, SecondsFormat, Utc};
use meterd_domain::catalog::{Catalog, PriceScope};
use meterd_domain::decimal::{Decimal, Rate};
use meterd_domain::event::{ID_BYTES_MAX, TOKENS_MAX};
use meterd_domain::measures::check_name;
use meterd_domain::price::Rates;
use meterd_domain::tiers::{TIERED_RATES_MAX, TIERS_MAX, Tier, TierMode, TieredRate};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maximum number of rates of other measures.
const MEASURE_RATES_MAX: usize = 32;
/// Maximum length of the source of a price, in bytes.
pub(super) const SOURCE_BYTES_MAX: usize = 256;
/// Maximum length of the note of a price, in bytes.
const NOTE_BYTES_MAX: usize = 1_024;

/// A price to create, unchecked.
#[derive(Debug, Default)]
pub struct NewPrice {
    /// Empty: any client.
    pub client_id: String,
    /// Empty: any plan.
    pub plan_id: String,
    pub service: String,
    /// Empty: any operation.
    pub operation: String,
    /// Empty: any model.
    pub model: String,
    /// Empty: any service tier.
    pub service_tier: String,
    /// `None`: any number of input tokens.
    pub above_input_tokens: Option<i64>,
    /// `None`: from the beginning of time.
    pub effective_time: Option<UnixTime>,
    /// `None`: until a later price replaces it.
    pub end_time: Option<UnixTime>,
    /// Components of [`Rates`] by name, with their decimals.
    pub rates: Vec<(&'static str, String)>,
    /// Rates of other measures by name.
    pub measure_rates: BTreeMap<String, String>,
    pub tiered_rates: Vec<NewTieredRate>,
    pub source: String,
    pub note: String,
}

/// A rate with tiers, unchecked.
#[derive(Debug)]
pub struct NewTieredRate {
    pub component: String,
    /// `Err` has the text of a value that is not a mode.
    pub mode: Result<TierMode, String>,
    /// A decimal. Only for packages.
    pub package_size: String,
    pub tiers: Vec<NewTier>,
}

/// A tier, unchecked. All are decimals.
#[derive(Debug)]
pub struct NewTier {
    /// If absent, 0.
    pub above: String,
    pub rate: String,
    /// If absent, 0.
    pub flat_fee: String,
}

/// The checked values of a price.
pub(super) struct Checked {
    pub effective_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    pub rates: Rates,
}

impl NewPrice {
    /// Returns what the price is for.
    pub(super) fn scope(&self) -> PriceScope<'_> {
        PriceScope {
            client_id: &self.client_id,
            plan_id: &self.plan_id,
            service: &self.service,
            operation: &self.operation,
            model: &self.model,
            service_tier: &self.service_tier,
            above_input_tokens: self.above_input_tokens,
        }
    }

    /// Checks all fields. `path` is the path of the price in the request, such as "price".
    pub(super) fn check(&self, fields: &mut Fields, catalog: &Catalog, path: &str) -> Checked {
        let at = |field: &str| format!("{path}.{field}");
        fields.identifier(&at("client_id"), &self.client_id, ID_BYTES_MAX);
        fields.identifier(&at("plan_id"), &self.plan_id, ID_BYTES_MAX);
        if !self.client_id.is_empty() && !self.plan_id.is_empty() {
            fields.wrong(
                at("plan_id"),
                "must be absent if client_id is set: a price is for one client, for one plan, or for all",
            );
        }
        fields.required(&at("service"), &self.service, ID_BYTES_MAX);
        fields.identifier(&at("operation"), &self.operation, ID_BYTES_MAX);
        fields.identifier(&at("model"), &self.model, ID_BYTES_MAX);
        fields.identifier(&at("service_tier"), &self.service_tier, ID_BYTES_MAX);
        fields.count(&at("above_input_tokens"), self.above_input_tokens.unwrap_or_default(), TOKENS_MAX);
        check_service(fields, catalog, &at("service"), &self.service);
        fields.text(&at("source"), &self.source, SOURCE_BYTES_MAX);
        fields.text(&at("note"), &self.note, NOTE_BYTES_MAX);
        let effective_time = self.effective_time.and_then(|time| fields.time(&at("effective_time"), time));
        let end_time = self.end_time.and_then(|time| fields.time(&at("end_time"), time));
        check_end(fields, &at("end_time"), effective_time, end_time);
        Checked { effective_time, end_time, rates: self.check_rates(fields, &at("rates")) }
    }

    fn check_rates(&self, fields: &mut Fields, path: &str) -> Rates {
        let mut rates = Rates::default();
        for (name, value) in &self.rates {
            let field = format!("{path}.{name}");
            match rates.component_mut(name) {
                Some(component) => *component = fields.rate(&field, value),
                None => fields.wrong(field, "is no component of a price"),
            }
        }
        let measures = &self.measure_rates;
        if measures.len() > MEASURE_RATES_MAX {
            let description = format!("must be at most {MEASURE_RATES_MAX}, has {}", measures.len());
            fields.wrong(format!("{path}.measures"), description);
            return rates;
        }
        for (name, value) in measures {
            match check_name(name) {
                Ok(()) => {
                    let rate = fields.rate(&rate_field(path, name), value);
                    rates.measures.extend(rate.map(|rate| (Arc::from(name.as_str()), rate)));
                }
                Err(predicate) => fields.wrong(format!("{path}.measures"), format!("{} {predicate}", shown(name))),
            }
        }
        check_tiers(fields, path, &mut rates, &self.tiered_rates);
        if self.rates.is_empty() && measures.is_empty() && self.tiered_rates.is_empty() {
            fields.wrong(path, "needs at least one component");
        }
        rates
    }
}

/// Checks rates with tiers, and adds them to the others.
fn check_tiers(fields: &mut Fields, path: &str, rates: &mut Rates, tiered: &[NewTieredRate]) {
    if tiered.len() > TIERED_RATES_MAX {
        let description = format!("must be at most {TIERED_RATES_MAX}, has {}", tiered.len());
        return fields.wrong(format!("{path}.tiers"), description);
    }
    for (number, new) in tiered.iter().enumerate() {
        let at = |field: &str| format!("{path}.tiers[{number}].{field}");
        let NewTieredRate { component, mode, package_size, tiers } = new;
        let is_token = matches!(component.as_str(), "unit" | "input_token" | "output_token" | "cached_input_token");
        let known = if is_token { Ok(()) } else { check_name(component) };
        if let Err(predicate) = known {
            let others = "unit, input_token, output_token, cached_input_token, or another measure";
            fields.wrong(at("component"), format!("{} {predicate}; possible are {others}", shown(component)));
            continue;
        }
        let has_flat =
            rates.component_mut(component).is_some_and(|rate| rate.is_some()) || rates.measure(component).is_some();
        if has_flat || rates.tier(component).is_some() {
            fields.wrong(at("component"), format!("must have one rate, has another for {component}"));
            continue;
        }
        let mode = match mode {
            Ok(mode) => *mode,
            Err(value) => {
                fields.wrong(at("mode"), format!("{value} is no mode: graduated, volume or package"));
                continue;
            }
        };
        let package_size = match (mode, package_size.as_str()) {
            (TierMode::Package, size) => fields.decimal(&at("package_size"), size),
            (_, "") => Decimal::ONE,
            _ => {
                fields.wrong(at("package_size"), "must be absent: it is only for the mode package");
                Decimal::ONE
            }
        };
        if package_size < Decimal::ONE {
            fields.wrong(at("package_size"), "must be at least 1");
        }
        let most = if mode == TierMode::Package { 1 } else { TIERS_MAX };
        if !(1..=most).contains(&tiers.len()) {
            let range = if most == 1 { "exactly 1".to_owned() } else { format!("1 to {most}") };
            fields.wrong(at("tiers"), format!("must be {range}, has {}", tiers.len()));
            continue;
        }
        let tiers = check_tier_list(fields, &at("tiers"), tiers);
        rates.tiers.push(TieredRate { component: component.as_str().into(), mode, tiers, package_size });
    }
    rates.tiers.sort_by(|left, right| left.component.cmp(&right.component));
}

fn check_tier_list(fields: &mut Fields, path: &str, new: &[NewTier]) -> Vec<Tier> {
    let mut tiers: Vec<Tier> = vec![];
    let zero = |text: &str| if text.is_empty() { "0".to_owned() } else { text.to_owned() };
    for (number, tier) in new.iter().enumerate() {
        let at = |field: &str| format!("{path}[{number}].{field}");
        let above = fields.decimal(&at("above"), &zero(&tier.above));
        let rate = fields.rate(&at("rate"), &tier.rate);
        let flat_fee = fields.rate(&at("flat_fee"), &zero(&tier.flat_fee));
        match tiers.last() {
            None if above != Decimal::ZERO => {
                fields.wrong(at("above"), format!("must be 0 in the first tier, got {above}"));
            }
            Some(last) if above <= last.above => {
                let description = format!("must be more than in the tier before, {}, got {above}", last.above);
                fields.wrong(at("above"), description);
            }
            _ => {}
        }
        if let (Some(rate), Some(flat_fee)) = (rate, flat_fee) {
            tiers.push(Tier { above, rate, flat_fee });
        }
    }
    tiers
}

/// Returns the path of a rate: a component, or a measure that is a part of the tokens.
fn rate_field(path: &str, name: &str) -> String {
    match Rates::default().component_mut(name) {
        Some(_) => format!("{path}.{name}"),
        None => format!("{path}.measures[\"{name}\"]"),
    }
}

/// Adds an error for each rate per token above `max`, because it may be meant per million tokens.
pub(super) fn check_high_rates(fields: &mut Fields, path: &str, rates: &Rates, max: Rate) {
    let for_one = |what: &str, rate: Rate| {
        format!(
            "is {rate} for one {what}, which is more than {max}: if it is meant for a million tokens, send {}, else set \
             confirm_high_rates",
            rate.per_million()
        )
    };
    for (name, rate) in rates.token_rates().filter(|(_, rate)| *rate > max) {
        let field = rate_field(&format!("{path}.rates"), name);
        fields.wrong_because(Reason::RateNotConfirmed, field, for_one("token", rate));
    }
    for tiered in rates.tiers.iter().filter(|tiered| tiered.is_of_tokens()) {
        let Some(tier) = tiered.tier_above(max) else { continue };
        let (rate, component, size) = (tier.rate, &tiered.component, tiered.package_size);
        let description = match tiered.mode {
            TierMode::Package => {
                format!(
                    "is {rate} for {size} of {component}, which is more than {max} for one: if it is meant, set confirm_high_rates"
                )
            }
            TierMode::Graduated | TierMode::Volume => for_one(component, rate),
        };
        fields.wrong_because(Reason::RateNotConfirmed, format!("{path}.rates.tiers"), description);
    }
}

pub(super) fn instant(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Adds an error if a price would end before it begins.
pub(super) fn check_end(fields: &mut Fields, field: &str, from: Option<DateTime<Utc>>, end: Option<DateTime<Utc>>) {
    if let (Some(from), Some(end)) = (from, end)
        && end <= from
    {
        fields.wrong(field, format!("must be later than the effective time, {}", instant(from)));
    }
}
