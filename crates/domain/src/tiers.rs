//! Rates that depend on how much a client has used in a month.
//!
//! A tiered rate has a function F: F(q) is the cost of the quantity q of a month. An event that takes the quantity of its client from
//! a to b is charged F(b) − F(a), and an event that no longer counts gives F(a) − F(b) back, where b is the quantity at that time. So the
//! cost of the month is F of its quantity, whatever the order of the events is.

use crate::decimal::{
    DECIMALS, Decimal, INTEGER_DIGITS, PRODUCT_DECIMALS, RATE_DECIMALS, Rate, divide_half_even, plain, product,
};
use crate::measures::whole_of;
use crate::numbered::numbered;
use ethnum::I256;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maximum number of tiers of a rate.
pub const TIERS_MAX: usize = 32;
/// Maximum number of tiered rates of a price.
pub const TIERED_RATES_MAX: usize = 8;
/// Maximum quantity that is charged by tiers in a month: 10^15. So the quantity before an event has as many digits as other quantities,
/// and every cost is below 10^25, which fits into [`Decimal`].
pub const TIER_QUANTITY_MAX: Decimal = Decimal::from_scaled(10i128.pow(INTEGER_DIGITS + DECIMALS));

/// How the tiers of a rate apply. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum TierMode {
    /// Each part of the quantity has the rate of its tier.
    Graduated = 1,
    /// The whole quantity has the rate of the tier that it reaches.
    Volume = 2,
    /// The rate is for a package, and a package that is begun is charged as a whole.
    Package = 3,
}
numbered!(TierMode, "mode of tiers", [Graduated, Volume, Package]);

/// A tier: it begins above a quantity, and ends with the beginning of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The tier is for the quantity above this one. 0 for the first tier.
    pub above: Decimal,
    /// Per unit, or per package.
    pub rate: Rate,
    /// Charged once if the quantity is above `above`.
    pub flat_fee: Rate,
}

/// A rate with tiers for one component of a price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredRate {
    /// `unit`, `input_token`, `output_token`, `cached_input_token`, or the name of another measure.
    pub component: Arc<str>,
    pub mode: TierMode,
    /// Ascending. The first begins above 0.
    pub tiers: Vec<Tier>,
    /// Quantity of a package, at least 1. Only used by [`TierMode::Package`].
    pub package_size: Decimal,
}

/// A part of the charge of an event by a tiered rate. A negative quantity takes back what earlier events of the month were charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierLine {
    pub above: Decimal,
    pub quantity: Decimal,
    pub rate: Rate,
    /// The exact product and the fee of the tier, in units of 10^-38.
    pub amount: I256,
}

/// What an event has used of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierUse {
    pub component: Arc<str>,
    /// The quantity of the month before the event.
    pub before: Decimal,
    /// The quantity of the event.
    pub quantity: Decimal,
}

/// The part of the charge of an event that is computed by tiers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventTiers {
    /// May be negative if a volume rate falls.
    pub charge: Decimal,
    pub uses: Vec<TierUse>,
}

/// The quantities that a client has used in a month, by price and component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MonthUse(pub BTreeMap<(i64, Arc<str>), Decimal>);

impl MonthUse {
    fn of(&mut self, price_id: i64, component: &Arc<str>) -> &mut Decimal {
        self.0.entry((price_id, component.clone())).or_default()
    }
}

fn plus(left: Decimal, right: Decimal) -> Decimal {
    Decimal::from_scaled(left.scaled() + right.scaled())
}

fn minus(left: Decimal, right: Decimal) -> Decimal {
    Decimal::from_scaled(left.scaled() - right.scaled())
}

fn fee(tier: &Tier) -> I256 {
    I256::from(tier.flat_fee.scaled()) * I256::from(10i128.pow(PRODUCT_DECIMALS - RATE_DECIMALS))
}

impl TierLine {
    /// Returns the exact amount in plain digits.
    pub fn amount_text(&self) -> String {
        plain(self.amount, PRODUCT_DECIMALS as usize)
    }
}

impl MonthUse {
    /// Returns the cost of the quantities. `tiers_of` returns the tiered rates of a price.
    pub fn cost<'a>(&self, tiers_of: impl Fn(i64) -> &'a [TieredRate]) -> Decimal {
        let of = |((price_id, component), quantity): (&(i64, Arc<str>), &Decimal)| {
            let rate = tiers_of(*price_id).iter().find(|rate| rate.component == *component);
            rate.map_or(Decimal::ZERO, |rate| rate.cost(*quantity))
        };
        self.0.iter().map(of).fold(Decimal::ZERO, plus)
    }
}

impl TieredRate {
    /// Returns whether the rate is for tokens.
    pub fn is_of_tokens(&self) -> bool {
        self.component.ends_with("_token") || whole_of(&self.component).is_some()
    }

    /// Returns whether some quantity costs something.
    pub fn charges(&self) -> bool {
        self.tiers.iter().any(|tier| tier.rate.scaled() != 0 || tier.flat_fee.scaled() != 0)
    }

    /// Returns the first tier whose rate for one is above `max`, a rate for one.
    pub fn tier_above(&self, max: Rate) -> Option<&Tier> {
        // For a package, the rate is compared with that of as many single ones.
        let count = if self.mode == TierMode::Package { self.package_size } else { Decimal::ONE };
        let bound = I256::from(max.scaled()) * I256::from(count.scaled());
        self.tiers.iter().find(|tier| I256::from(tier.rate.scaled()) * I256::from(Decimal::ONE.scaled()) > bound)
    }

    /// Returns F of a quantity from 0 to [`TIER_QUANTITY_MAX`], rounded half to even to 12 decimals.
    pub fn cost(&self, quantity: Decimal) -> Decimal {
        let exact: I256 = self.parts(quantity).iter().map(|line| line.amount).sum();
        let rounded = divide_half_even(exact, I256::from(10i128.pow(PRODUCT_DECIMALS - DECIMALS)));
        Decimal::from_scaled(rounded.as_i128())
    }

    /// Returns the parts of the cost of a quantity, one for each tier that it uses.
    fn parts(&self, quantity: Decimal) -> Vec<TierLine> {
        let reached = self.tiers.partition_point(|tier| tier.above < quantity);
        let line = |tier: &Tier, quantity: Decimal| TierLine {
            above: tier.above,
            quantity,
            rate: tier.rate,
            amount: product(quantity, tier.rate, 100) + fee(tier),
        };
        let reached = &self.tiers[..reached];
        match self.mode {
            TierMode::Graduated => {
                let ends = reached.iter().skip(1).map(|tier| tier.above).chain([quantity]);
                reached.iter().zip(ends).map(|(tier, end)| line(tier, minus(end, tier.above))).collect()
            }
            TierMode::Volume => reached.last().map(|tier| line(tier, quantity)).into_iter().collect(),
            TierMode::Package => reached.first().map(|tier| line(tier, self.packages(quantity))).into_iter().collect(),
        }
    }

    /// Returns the number of packages that a quantity begins.
    fn packages(&self, quantity: Decimal) -> Decimal {
        let size = self.package_size.scaled();
        Decimal::from_scaled((quantity.scaled() + size - 1) / size * Decimal::ONE.scaled())
    }

    /// Returns the parts of F(`after`) − F(`before`). Parts that cancel each other are left out.
    pub fn lines(&self, before: Decimal, after: Decimal) -> Vec<TierLine> {
        let mut lines: Vec<TierLine> = vec![];
        let (added, taken) = (self.parts(after), self.parts(before));
        let taken = taken.into_iter().map(|line| TierLine {
            quantity: Decimal::from_scaled(-line.quantity.scaled()),
            amount: -line.amount,
            ..line
        });
        for line in taken.chain(added) {
            match lines.iter_mut().find(|of| of.above == line.above) {
                Some(of) => {
                    of.quantity = plus(of.quantity, line.quantity);
                    of.amount += line.amount;
                }
                None => lines.push(line),
            }
        }
        lines.retain(|line| line.quantity != Decimal::ZERO || line.amount != I256::ZERO);
        lines
    }
}

/// Formats what an event has used as a JSON object: `{"unit": ["100", "50"]}` if it took the units of the month from 100 to 150.
pub fn uses_json(uses: &[TierUse]) -> String {
    let of =
        |TierUse { component, before, quantity }: &TierUse| format!("\"{component}\":[\"{before}\",\"{quantity}\"]");
    // Names and decimals need no escapes.
    format!("{{{}}}", uses.iter().map(of).collect::<Vec<_>>().join(","))
}

/// Adds an event with these quantities to the month of its client. Returns what its price charges by tiers, or `None`, and changes
/// nothing, if a quantity would be above [`TIER_QUANTITY_MAX`].
pub fn add(used: &mut MonthUse, price_id: i64, quantities: &[(&TieredRate, Decimal)]) -> Option<EventTiers> {
    let mut tiers = EventTiers::default();
    for (rate, quantity) in quantities {
        let before = *used.of(price_id, &rate.component);
        let after = plus(before, *quantity);
        if after > TIER_QUANTITY_MAX {
            return None;
        }
        tiers.charge = plus(tiers.charge, minus(rate.cost(after), rate.cost(before)));
        tiers.uses.push(TierUse { component: rate.component.clone(), before, quantity: *quantity });
    }
    for TierUse { component, quantity, .. } in &tiers.uses {
        let of = used.of(price_id, component);
        *of = plus(*of, *quantity);
    }
    Some(tiers)
}

/// Removes an event from the month of its client. Returns what remains of its charge by tiers: the cost of the month must fall by
/// F(b) − F(a), where b is the present quantity, and this is another amount than the event was charged if other events came after
/// it.
pub fn remove(used: &mut MonthUse, price_id: i64, rates: &[TieredRate], tiers: &EventTiers) -> Decimal {
    let mut rest = tiers.charge;
    for TierUse { component, quantity, .. } in &tiers.uses {
        let of = used.of(price_id, component);
        let after = minus(*of, *quantity);
        if let Some(rate) = rates.iter().find(|rate| rate.component == *component) {
            rest = plus(rest, minus(rate.cost(after), rate.cost(*of)));
        }
        *of = after;
    }
    rest
}

#[cfg(test)]
#[path = "tiers_tests.rs"]
mod tests;
