//! Rates with tiers as JSON.

use crate::StoreError;
use meterd_domain::decimal::{Decimal, DecimalError, Rate};
use meterd_domain::tiers::{Tier, TierMode, TieredRate};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Serialize, Deserialize)]
struct StoredRate {
    component: String,
    /// A number of [`TierMode`].
    mode: i16,
    package_size: String,
    tiers: Vec<StoredTier>,
}

#[derive(Serialize, Deserialize)]
struct StoredTier {
    above: String,
    rate: String,
    flat_fee: String,
}

pub(super) fn to_json(rates: &[TieredRate]) -> Value {
    let tier = |tier: &Tier| StoredTier {
        above: tier.above.to_string(),
        rate: tier.rate.to_string(),
        flat_fee: tier.flat_fee.to_string(),
    };
    let rate = |rate: &TieredRate| StoredRate {
        component: rate.component.to_string(),
        mode: rate.mode.into(),
        package_size: rate.package_size.to_string(),
        tiers: rate.tiers.iter().map(tier).collect(),
    };
    serde_json::to_value(rates.iter().map(rate).collect::<Vec<_>>()).expect("texts can be written as JSON")
}

pub(super) fn from_json(json: &str) -> crate::Result<Vec<TieredRate>> {
    let rates: Vec<StoredRate> = serde_json::from_str(json).map_err(StoreError::inconsistent)?;
    let tier = |tier: StoredTier| {
        Ok(Tier {
            above: Decimal::parse(&tier.above)?,
            rate: Rate::parse(&tier.rate)?,
            flat_fee: Rate::parse(&tier.flat_fee)?,
        })
    };
    let rate = |rate: StoredRate| {
        Ok(TieredRate {
            component: rate.component.into(),
            mode: TierMode::try_from(rate.mode).map_err(StoreError::inconsistent)?,
            tiers: rate
                .tiers
                .into_iter()
                .map(tier)
                .collect::<Result<_, DecimalError>>()
                .map_err(StoreError::inconsistent)?,
            package_size: Decimal::parse(&rate.package_size).map_err(StoreError::inconsistent)?,
        })
    };
    rates.into_iter().map(rate).collect()
}
