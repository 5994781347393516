//! Credits: grants that pay for usage.
//!
//! For each month of a client, cost = credits + payable amount, and neither is negative. Usage is paid when it is recorded, by grants
//! that are valid on its day. If a correction lowers the cost of a month, first the payable amount falls, and then credits return.

use crate::decimal::Total;
use crate::numbered::numbered;
use crate::period::Month;
use chrono::{DateTime, NaiveDate, Utc};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Where a grant comes from. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum GrantSource {
    /// The credits that a plan includes.
    Plan = 1,
    Promotion = 2,
    Purchase = 3,
}
numbered!(GrantSource, "grant source", [Plan, Promotion, Purchase]);

/// What a transaction needs to know of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub grant_id: String,
    /// A grant with a lower number pays first.
    pub priority: i32,
    pub first_day: NaiveDate,
    /// `None`: the grant does not expire.
    pub last_day: Option<NaiveDate>,
    pub create_time: DateTime<Utc>,
    /// What is left of the amount.
    pub remaining: Total,
    /// Whether the grant was voided, and pays for nothing more.
    pub is_void: bool,
}

/// A month of a client whose cost a transaction changes.
#[derive(Clone, Debug, Default)]
pub struct ChangedMonth {
    /// The new cost.
    pub cost: Total,
    /// What the month costs more or less.
    pub more: Total,
    /// What each day costs more or less. The sum is `more`, unless a rebuild corrects the sums of days or of the month alone.
    pub days: BTreeMap<NaiveDate, Total>,
    /// What each grant paid of the old cost. `None`: it is not known, and the month only has new usage.
    pub uses: Option<BTreeMap<String, Total>>,
}

/// Changes of what grants pay: by grant and month.
pub type Draws = BTreeMap<(String, Month), Total>;

impl Grant {
    /// Returns whether the grant can pay for usage of a day.
    pub fn covers(&self, day: NaiveDate) -> bool {
        !self.is_void && self.first_day <= day && self.last_day.is_none_or(|last| day <= last)
    }

    /// Compares the positions in the order in which grants pay: by priority, then the one that expires first, then the oldest.
    pub fn compare(&self, other: &Self) -> Ordering {
        fn position(grant: &Grant) -> impl Ord + '_ {
            (grant.priority, grant.last_day.is_none(), grant.last_day, grant.create_time, &grant.grant_id)
        }
        position(self).cmp(&position(other))
    }
}

/// Pays what the months cost more, and returns what they cost less. Updates what remains of the grants.
pub fn settle(grants: &mut [Grant], months: &BTreeMap<Month, ChangedMonth>) -> Draws {
    grants.sort_by(Grant::compare);
    let mut draws = Draws::new();
    for (month, changed) in months {
        let used = changed.uses.as_ref().map(|uses| uses.values().copied().sum::<Total>());
        match used {
            Some(used) if used > changed.cost => give_back(grants, *month, changed, used, &mut draws),
            _ => {
                let payable = used.map_or(changed.more, |used| changed.cost - used);
                pay(grants, *month, changed, changed.more.min(payable), &mut draws);
            }
        }
    }
    draws
}

/// Pays for at most `unpaid` of the month.
fn pay(grants: &mut [Grant], month: Month, changed: &ChangedMonth, mut unpaid: Total, draws: &mut Draws) {
    for (day, cost) in &changed.days {
        let mut of_day = (*cost).min(unpaid);
        for grant in grants.iter_mut().filter(|grant| grant.covers(*day)) {
            let drawn = of_day.min(grant.remaining);
            if drawn > Total::ZERO {
                grant.remaining = grant.remaining - drawn;
                of_day = of_day - drawn;
                unpaid = unpaid - drawn;
                *draws.entry((grant.grant_id.clone(), month)).or_default() += drawn;
            }
        }
    }
}

/// Returns what grants have paid above the cost of the month, the last one first.
fn give_back(grants: &mut [Grant], month: Month, changed: &ChangedMonth, used: Total, draws: &mut Draws) {
    let mut excess = used - changed.cost;
    for grant in grants.iter_mut().rev() {
        let Some(used) = changed.uses.as_ref().and_then(|uses| uses.get(&grant.grant_id)) else { continue };
        let returned = excess.min(*used);
        if returned > Total::ZERO {
            grant.remaining += returned;
            excess = excess - returned;
            *draws.entry((grant.grant_id.clone(), month)).or_default() += Total::ZERO - returned;
        }
    }
}

#[cfg(test)]
#[path = "credits_tests.rs"]
mod tests;
