//! Charges events by tiers, whose quantities belong to the months of clients.

use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, UsageEvent};
use meterd_domain::period::Month;
use meterd_domain::pricing::Pricing;
use meterd_domain::tiers::{self, EventTiers};
use meterd_store::usage::events::RecordedEvent;
use meterd_store::usage::tiers::{self as store, Quantities};
use sqlx::PgConnection;
use std::collections::BTreeSet;

/// The quantities of months while events are added and removed.
pub struct Tiers<'a> {
    pricing: Pricing<'a>,
    used: Quantities,
    /// As they were read.
    before: Quantities,
    /// A dry run, which keeps its own quantities.
    dry_run_id: Option<i64>,
}

impl<'a> Tiers<'a> {
    /// Reads the quantities of months, without a call if no price has tiers. If they will be written, the transaction holds the locks of
    /// the months.
    pub async fn read(
        conn: &mut PgConnection,
        pricing: Pricing<'a>,
        months: &BTreeSet<(String, Month)>,
    ) -> meterd_store::Result<Self> {
        let used = match pricing.catalog.has_tiers() && !months.is_empty() {
            true => store::read(conn, months.iter()).await?,
            false => Quantities::new(),
        };
        Ok(Self { pricing, before: used.clone(), used, dry_run_id: None })
    }

    /// Reads the quantities of months as a dry run has changed them. [`Self::write`] stores them for this run only.
    pub async fn read_of_dry_run(
        conn: &mut PgConnection,
        pricing: Pricing<'a>,
        run_id: i64,
        months: &BTreeSet<(String, Month)>,
    ) -> meterd_store::Result<Self> {
        let mut read = Self::read(conn, pricing, months).await?;
        if pricing.catalog.has_tiers() && !months.is_empty() {
            for (month, used) in store::read_of_run(conn, run_id, months.iter()).await? {
                read.used.entry(month).or_default().0.extend(used.0);
            }
        }
        Ok(Self { before: read.used.clone(), dry_run_id: Some(run_id), ..read })
    }

    /// Adds an event to a month, and returns its charge.
    pub fn add(&mut self, event: &UsageEvent, month: Month) -> (Charge, Option<(Month, EventTiers)>) {
        if self.pricing.tiered_price(event).is_none() {
            return (self.pricing.charge(event), None);
        }
        let used = self.used.entry((event.client_id.to_string(), month)).or_default();
        let (charge, tiers) = self.pricing.charge_in_month(event, used);
        (charge, tiers.map(|tiers| (month, tiers)))
    }

    /// Removes a recorded event from its month, and returns what remains in the cost.
    pub fn remove(&mut self, recorded: &RecordedEvent) -> Decimal {
        let (Charge::Priced { price_id, .. }, Some(month), Some(tiers)) =
            (recorded.charge, recorded.tiers.month, &recorded.tiers.current)
        else {
            return Decimal::ZERO;
        };
        let used = self.used.entry((recorded.event.client_id.to_string(), month)).or_default();
        tiers::remove(used, price_id, self.pricing.catalog.tiers_of(price_id), tiers)
    }

    /// Stores the quantities that have changed.
    pub async fn write(mut self, conn: &mut PgConnection) -> meterd_store::Result<()> {
        for (month, used) in &mut self.used {
            let before = self.before.remove(month).unwrap_or_default();
            used.0.retain(|key, quantity| before.0.get(key) != Some(quantity));
        }
        self.used.retain(|_, used| !used.0.is_empty());
        match self.dry_run_id {
            _ if self.used.is_empty() => Ok(()),
            Some(run_id) => store::write_of_run(conn, run_id, &self.used).await,
            None => store::write(conn, &self.used).await,
        }
    }
}

/// Returns the month in whose tiers an event counts: the month in which it was first charged by tiers, else that of its day.
pub fn tier_month(recorded: &RecordedEvent) -> Month {
    recorded.tiers.month.unwrap_or_else(|| Month::of(recorded.day))
}

/// Returns the months of the days and of the tiers of events. A change of the events changes these months.
pub fn months_of<'e>(events: impl Iterator<Item = &'e RecordedEvent>) -> BTreeSet<(String, Month)> {
    let months = |recorded: &RecordedEvent| [Month::of(recorded.day), tier_month(recorded)];
    let with_client =
        |recorded: &'e RecordedEvent| months(recorded).map(|month| (recorded.event.client_id.to_string(), month));
    events.flat_map(with_client).collect()
}
