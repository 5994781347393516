//! Computes the charge of an event from a price. The result is exact and rounded once.

use crate::decimal::{DECIMALS, Decimal, PRODUCT_DECIMALS, Rate, Total, divide_half_even, plain, product};
use crate::event::UnpricedReason;
use crate::measures::{Measures, Whole, whole_of};
use crate::tiers::{self, EventTiers, MonthUse, TieredRate};
use chrono::{DateTime, Utc};
use ethnum::I256;
use std::sync::Arc;

/// Rates for the measures of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Per unit.
    pub unit: Option<Rate>,
    /// Per input token.
    pub input_token: Option<Rate>,
    /// Per output token.
    pub output_token: Option<Rate>,
    /// Per cached input token. If not set, cached input tokens cost as much as input tokens.
    pub cached_input_token: Option<Rate>,
    /// Percentage of the amount.
    pub percent_of_amount: Option<Rate>,
    /// Per unit, in addition to a percentage.
    pub fixed: Option<Rate>,
    /// Factor of the reported cost: 1 charges the reported cost.
    pub reported_cost: Option<Rate>,
    /// For other measures, sorted by name.
    pub measures: Vec<(Arc<str>, Rate)>,
    /// Rates with tiers, sorted by component. A component has either a rate or tiers.
    pub tiers: Vec<TieredRate>,
}

/// Rates that are valid from a point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// Charges refer to the price by this id.
    pub price_id: i64,
    /// `None`: valid for all times before the next price.
    pub effective_time: Option<DateTime<Utc>>,
    /// The price is not valid from this time on. `None`: valid until the next price.
    pub end_time: Option<DateTime<Utc>>,
    /// The rates.
    pub rates: Rates,
}

impl Price {
    /// Returns the charge of an event, and what tiers contribute to it, or the reason why there is none. `used` are the quantities of
    /// the month of its client, to which the event is added.
    pub fn charge_in_month(
        &self,
        measures: &Measures,
        used: &mut MonthUse,
    ) -> Result<(Decimal, Option<EventTiers>), UnpricedReason> {
        let flat = self.rates.flat_charge(measures)?;
        if self.rates.tiers.is_empty() {
            return Ok((flat, None));
        }
        let quantities = self.rates.tier_quantities(measures);
        let tiers = tiers::add(used, self.price_id, &quantities).ok_or(UnpricedReason::TierQuantityTooLarge)?;
        let charge = Decimal::from_scaled(flat.scaled() + tiers.charge.scaled());
        Ok((charge, Some(tiers).filter(|tiers| !tiers.uses.is_empty())))
    }

    /// Returns whether one of two prices of a scope has an end and the other one begins before it. A price without an end is
    /// replaced by a later one.
    pub fn overlaps(&self, other: &Self) -> bool {
        let begins_before_end = |first: &Self, second: &Self| {
            let end = first.end_time.filter(|_| first.effective_time <= second.effective_time);
            end.is_some_and(|end| second.effective_time.is_none_or(|from| from < end))
        };
        begins_before_end(self, other) || begins_before_end(other, self)
    }
}

/// One component of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Field of [`Rates`], or name of another measure.
    pub component: &'a str,
    /// The quantity.
    pub quantity: Decimal,
    /// The rate.
    pub rate: Rate,
    /// The product of quantity and rate in units of 10^-38.
    pub product: I256,
}

impl Line<'_> {
    /// Returns the exact product in plain digits.
    pub fn amount(&self) -> String {
        plain(self.product, PRODUCT_DECIMALS as usize)
    }
}

/// Returns the sum of lines, rounded half to even to 12 decimals.
pub fn sum_of(lines: &[Line<'_>]) -> Total {
    let exact: I256 = lines.iter().map(|line| line.product).sum();
    Total::from_scaled(divide_half_even(exact, I256::from(10i128.pow(PRODUCT_DECIMALS - DECIMALS))))
}

impl Rates {
    /// Returns the components of the charge that have a quantity and no tiers, or the reason why there is no charge.
    ///
    /// A whole is charged without its parts. A part without a rate of its own has the rate of its whole. A reported cost includes all
    /// quantities without a rate.
    pub fn lines<'a>(&'a self, measures: &'a Measures) -> Result<impl Iterator<Item = Line<'a>>, UnpricedReason> {
        let tokens = |count: i64| Decimal::from_scaled(i128::from(count) * Decimal::ONE.scaled());
        let rest_of = |whole| {
            let (all, parts) = measures.whole_and_parts(whole);
            Decimal::from_scaled(all.scaled() - parts.scaled())
        };
        if self.charges_only_tokens() && measures.reports_no_tokens() {
            return Err(UnpricedReason::TokensMissing);
        }
        let amount = match (self.percent_of_amount, measures.amount) {
            (Some(_), None) => return Err(UnpricedReason::AmountMissing),
            (_, amount) => amount.unwrap_or_default(),
        };
        let reported_cost = match (self.reported_cost, measures.reported_cost) {
            (Some(_), None) => return Err(UnpricedReason::ReportedCostMissing),
            (_, cost) => cost.unwrap_or_default(),
        };
        let cached_input = tokens(measures.cached_input_tokens);
        let unless_tiered = |component, quantity| if self.tier(component).is_some() { Decimal::ZERO } else { quantity };
        let cached_input = match self.cached_input_token {
            None => unless_tiered("input_token", cached_input),
            Some(_) => cached_input,
        };
        let without_tokens = Some(UnpricedReason::TokensNotCovered);
        // (component, quantity, rate, factor, why there is no charge without a rate)
        let components = [
            ("unit", unless_tiered("unit", measures.units), self.unit, 100, None),
            (
                "input_token",
                unless_tiered("input_token", rest_of(Whole::InputTokens)),
                self.input_token,
                100,
                without_tokens,
            ),
            (
                "output_token",
                unless_tiered("output_token", rest_of(Whole::OutputTokens)),
                self.output_token,
                100,
                without_tokens,
            ),
            (
                "cached_input_token",
                unless_tiered("cached_input_token", cached_input),
                self.cached_input_token.or(self.input_token),
                100,
                without_tokens,
            ),
            ("percent_of_amount", amount, self.percent_of_amount, 1, None),
            ("fixed", measures.units, self.fixed, 100, None),
            ("reported_cost", reported_cost, self.reported_cost, 100, None),
        ];
        let has_flat_rate = |(name, _): &&(Arc<str>, Decimal)| {
            let of_whole = || self.measure(name).is_none() && self.tier_of_whole(name).is_some();
            self.tier(name).is_none() && !of_whole()
        };
        let others = measures.others.iter().filter(has_flat_rate).map(move |(name, quantity)| {
            let own = self.measure(name);
            let (rate, without_rate) = match whole_of(name) {
                Some(Whole::InputTokens) => (own.or(self.input_token), without_tokens),
                Some(Whole::OutputTokens) => (own.or(self.output_token), without_tokens),
                None => (own, Some(UnpricedReason::MeasureNotCovered)),
            };
            (&**name, *quantity, rate, 100, without_rate)
        });
        let components = components.into_iter().chain(others).filter(|(_, quantity, ..)| *quantity != Decimal::ZERO);
        let mut without_rate = components.clone().filter(|(_, _, rate, ..)| rate.is_none());
        if self.reported_cost.is_none()
            && let Some(reason) = without_rate.find_map(|(.., reason)| reason)
        {
            return Err(reason);
        }
        let line = |(component, quantity, rate, factor, _)| {
            let rate: Rate = rate?;
            Some(Line { component, quantity, rate, product: product(quantity, rate, factor) })
        };
        Ok(components.filter_map(line))
    }

    /// Returns the tiered rate of a component.
    pub fn tier(&self, component: &str) -> Option<&TieredRate> {
        self.tiers.iter().find(|rate| *rate.component == *component)
    }

    /// Returns the tiered rate of the tokens that a measure is a part of.
    fn tier_of_whole(&self, measure: &str) -> Option<&TieredRate> {
        match whole_of(measure)? {
            Whole::InputTokens => self.tier("input_token"),
            Whole::OutputTokens => self.tier("output_token"),
        }
    }

    /// Returns the tiered rates and the quantities that they charge, without zeros. A part of the tokens without a rate of its own
    /// belongs to the quantity of its whole.
    pub fn tier_quantities(&self, measures: &Measures) -> Vec<(&TieredRate, Decimal)> {
        let scaled = |count: i64| i128::from(count) * Decimal::ONE.scaled();
        let has_own_rate = |part: &str| self.measure(part).is_some() || self.tier(part).is_some();
        let has_cached_rate = self.cached_input_token.is_some() || self.tier("cached_input_token").is_some();
        let whole = |whole: Whole, all: i64| {
            let parts = measures.others.iter().filter(|(name, _)| whole_of(name) == Some(whole) && has_own_rate(name));
            scaled(all) - parts.map(|(_, quantity)| quantity.scaled()).sum::<i128>()
        };
        let quantity = |component: &str| match component {
            "unit" => measures.units.scaled(),
            "input_token" => {
                let cached = if has_cached_rate { measures.cached_input_tokens } else { 0 };
                whole(Whole::InputTokens, measures.input_tokens) - scaled(cached)
            }
            "output_token" => whole(Whole::OutputTokens, measures.output_tokens),
            "cached_input_token" => scaled(measures.cached_input_tokens),
            _ => {
                let other = measures.others.iter().find(|(name, _)| **name == *component);
                other.map_or(0, |(_, quantity)| quantity.scaled())
            }
        };
        let quantities = self.tiers.iter().map(|rate| (rate, Decimal::from_scaled(quantity(&rate.component))));
        quantities.filter(|(_, quantity)| *quantity != Decimal::ZERO).collect()
    }

    /// Returns the charge without that of tiers, rounded once, half to even, to 12 decimals, or the reason why there is no charge.
    pub fn flat_charge(&self, measures: &Measures) -> Result<Decimal, UnpricedReason> {
        let exact: I256 = self.lines(measures)?.map(|line| line.product).sum();
        let rounded = divide_half_even(exact, I256::from(10i128.pow(PRODUCT_DECIMALS - DECIMALS)));
        Ok(Decimal::from_scaled(rounded.as_i128()))
    }

    /// Returns the component with this name.
    pub fn component_mut(&mut self, name: &str) -> Option<&mut Option<Rate>> {
        Some(match name {
            "unit" => &mut self.unit,
            "input_token" => &mut self.input_token,
            "output_token" => &mut self.output_token,
            "cached_input_token" => &mut self.cached_input_token,
            "percent_of_amount" => &mut self.percent_of_amount,
            "fixed" => &mut self.fixed,
            "reported_cost" => &mut self.reported_cost,
            _ => return None,
        })
    }

    /// Returns the rate of another measure.
    pub fn measure(&self, name: &str) -> Option<Rate> {
        self.measures.iter().find(|(of, _)| **of == *name).map(|(_, rate)| *rate)
    }

    /// Returns whether tokens are charged and nothing else is. A rate of zero does not count as a charge.
    fn charges_only_tokens(&self) -> bool {
        let charges = |rate: Rate| rate.scaled() != 0;
        let other_rates = [self.unit, self.fixed, self.percent_of_amount, self.reported_cost].into_iter().flatten();
        let of_other_measures = self.measures.iter().filter(|(name, _)| whole_of(name).is_none());
        let (of_tokens, others): (Vec<_>, Vec<_>) = self.tiers.iter().partition(|rate| rate.is_of_tokens());
        if others.iter().any(|rate| rate.charges()) {
            return false;
        }
        let mut other_rates = other_rates.chain(of_other_measures.map(|(_, rate)| *rate));
        let charges_tokens =
            self.token_rates().any(|(_, rate)| charges(rate)) || of_tokens.iter().any(|rate| rate.charges());
        charges_tokens && !other_rates.any(charges)
    }

    /// Returns the rates per token without tiers by name: a field of [`Rates`], or another measure.
    pub fn token_rates(&self) -> impl Iterator<Item = (&str, Rate)> {
        let rates = [
            ("input_token", self.input_token),
            ("output_token", self.output_token),
            ("cached_input_token", self.cached_input_token),
        ];
        let of_parts = self.measures.iter().filter(|(name, _)| whole_of(name).is_some());
        let rates = rates.into_iter().filter_map(|(name, rate)| Some((name, rate?)));
        rates.chain(of_parts.map(|(name, rate)| (&**name, *rate)))
    }

    /// Returns whether no component is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
#[path = "price_tests.rs"]
mod tests;
