//! Alert bounds: the cost of a month from which its alert rules must be evaluated. Below it, no rule can raise an alert, so a batch
//! can be recorded without an evaluation.
//!
//! The row of a month stores its bound. A bound depends on the policy and the time zone of the client, on the client's day, on the
//! alerts that the month has had, and on the cost of the month before. So it holds for one version of policies and time
//! zones and for one day. Every transaction that changes the alerts of a month, or the cost of the month before, sets
//! its bound to 0.

use super::ClientSettings;
use crate::alerts::raise::AlertSettings;
use crate::alerts::unpriced::UnpricedChanges;
use crate::limits::counters::Limits;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::alert::MonthFacts;
use meterd_domain::decimal::Total;
use meterd_domain::period::{Month, day_of};
use meterd_domain::policy::Policy;
use meterd_domain::rollup::{MonthKey, NewSums};
use meterd_store::usage::changes::{AlertBound, MonthChange, NewUsage};
use meterd_store::usage::record::Unpriced;
use meterd_store::usage::rollups;
use sqlx::PgConnection;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Version of the alert rules. Increase it with every change of the rules in `domain/alert.rs`, so that a bound of an earlier release
/// does not hold. From 0 to 255.
const RULES_VERSION: i64 = 0;

/// Computes the alert bounds of the months that new events change.
pub struct AlertBounds<'a> {
    clients: &'a ClientSettings,
    now: DateTime<Utc>,
}

impl<'a> AlertBounds<'a> {
    /// `clients` must know the clients of the events, at the version of the transaction.
    pub fn new(settings: &AlertSettings, clients: &'a ClientSettings) -> Self {
        Self { clients, now: settings.clock.now() }
    }

    /// Returns the settings of the clients.
    pub(super) fn clients(&self) -> &ClientSettings {
        self.clients
    }

    /// Returns the time for which the bounds are computed.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Returns the limits of the clients.
    pub(super) fn limits(&self) -> &Limits {
        &self.clients.limits
    }

    fn today(&self, client_id: &str) -> Option<NaiveDate> {
        self.clients.zone(client_id).map(|zone| day_of(self.now, zone))
    }

    /// Adds to each month a bound that holds for any content of its row.
    pub(super) fn usage(&self, sums: NewSums) -> NewUsage {
        // Nearly all months of a batch have the same policy and day.
        let mut last: Option<(&Policy, Month, NaiveDate, Option<Total>)> = None;
        NewUsage::of(sums, |(client_id, month)| {
            let Some(today) = self.today(client_id) else { return AlertBound::UNKNOWN };
            let policy = self.clients.policies.of(client_id);
            let cost = match last {
                Some((of, in_month, on, cost)) if std::ptr::eq(of, policy) && (in_month, on) == (*month, today) => cost,
                _ => facts(*month, today).lowest_cost_to_raise_for_any_row(policy),
            };
            last = Some((policy, *month, today, cost));
            AlertBound { cost, holds: Some((today, self.clients.version() << 8 | RULES_VERSION)) }
        })
    }

    /// Returns the services whose clients have the rule about unpriced events turned on.
    pub(super) fn watched(&self, changes: &UnpricedChanges) -> Unpriced {
        let mut unpriced = Unpriced::default();
        for key in changes.keys() {
            let policy = self.clients.policies.of(&key.0);
            if policy.unpriced_enabled {
                unpriced.keys.push(key);
                unpriced.minimums.push(policy.unpriced_events_min.into());
            }
        }
        unpriced
    }

    /// Returns the current month of each client whose previous month is changed.
    pub(super) fn months_after(&self, changed: &[MonthChange]) -> BTreeSet<(Arc<str>, Month)> {
        let keys = changed.iter().map(|month| &month.key);
        keys.filter_map(|(client_id, month)| {
            let current = Month::of(self.today(client_id)?);
            (*month == current.previous()).then(|| (client_id.clone(), current))
        })
        .collect()
    }
}

/// Locks the rows of the changed months and of `months_after`, in order, and sets the bounds of `months_after` to 0. Does
/// nothing if `months_after` is empty.
pub(super) async fn reset_bounds_after(
    conn: &mut PgConnection,
    changed: &[MonthChange],
    months_after: &BTreeSet<(Arc<str>, Month)>,
) -> meterd_store::Result<()> {
    if months_after.is_empty() {
        return Ok(());
    }
    let keys = changed.iter().map(|month| &month.key);
    let all: BTreeSet<&MonthKey> = keys.chain(months_after).collect();
    let (clients, months) = columns(all);
    rollups::lock_months(conn, &clients, &months).await?;
    let (clients, months) = columns(months_after);
    rollups::reset_alert_bounds(conn, &clients, &months).await
}

fn columns<'k>(keys: impl IntoIterator<Item = &'k MonthKey>) -> (Vec<String>, Vec<NaiveDate>) {
    keys.into_iter().map(|(client_id, month)| (client_id.to_string(), month.first_day())).unzip()
}

/// Returns the facts of a month of which only the month and the day are known.
fn facts(month: Month, today: NaiveDate) -> MonthFacts {
    MonthFacts { month, cost: Total::ZERO, recurring_cost: Total::ZERO, previous_cost: Total::ZERO, today }
}
