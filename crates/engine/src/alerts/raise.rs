//! Raises alerts in the transaction that records the usage.

use super::unpriced::{self, Evaluated, UnpricedChanges};
use crate::clock::Clock;
use crate::limits::counters as limits;
use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use meterd_domain::alert::{Alert, AlertSet, AlertType, Change, Details, Finding, Severity};
use meterd_domain::period::{Month, day_of};
use meterd_store::alerts::policies::Policies;
use meterd_store::alerts::{self, NewAlert};
use meterd_store::alerts::{feed as alert_feed, notifications};
use meterd_store::clients;
use meterd_store::usage::rollups::{self, MonthRow};
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};

/// The settings of the deployment that alerts depend on.
#[derive(Clone, Debug)]
pub struct AlertSettings {
    pub clock: Clock,
    pub currency: String,
    /// Alerts of months that ended more than this number of days ago do not send notifications: only backfills, pricing and corrections
    /// change such months.
    pub accept_past_days: u32,
}

/// A month that the transaction has changed. Its row is locked.
pub struct ChangedMonth {
    pub row: MonthRow,
    pub zone: Tz,
    /// Whether only backfills have changed it. Then its alerts do not send notifications.
    pub backfill: bool,
    /// Whether the bound in its row is for the client's current day and the current versions. Only then is a new bound
    /// stored.
    pub bound_holds: bool,
}

impl AlertSettings {
    /// Returns the current day in the time zone of a client.
    pub fn today(&self, zone: Tz) -> NaiveDate {
        day_of(self.clock.now(), zone)
    }

    /// Returns whether alerts of this month send notifications.
    pub fn notifies(&self, month: Month, today: NaiveDate) -> bool {
        month.last_day() + Days::new(self.accept_past_days.into()) >= today
    }
}

/// A finding that becomes an alert.
pub struct Raising<'a> {
    pub client_id: &'a str,
    pub finding: Finding,
    pub details: Details,
    /// Whether the alert sends notifications.
    pub notifies: bool,
}

/// Evaluates the rules about the changed months, and returns the alerts that were raised. Must be the last write of the transaction.
///
/// The rules about the cost of a month are evaluated only if the cost has reached the month's alert bound, and the rule about
/// unpriced events only if their number has changed. `limits` is what becomes of the alerts about limits of these months.
pub async fn raise_alerts(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    policies: &Policies,
    changed: Vec<ChangedMonth>,
    unpriced: &UnpricedChanges,
    limits: limits::Evaluated,
) -> meterd_store::Result<Vec<Alert>> {
    let Evaluated { findings, mut resolved } = unpriced::evaluate(conn, policies, unpriced).await?;
    for (client_id, alert_ids) in limits.resolved {
        resolved.entry(client_id).or_default().extend(alert_ids);
    }
    let reached: Vec<&ChangedMonth> = changed.iter().filter(|month| month.has_reached_bound()).collect();
    let rows: Vec<&MonthRow> = reached.iter().map(|month| &month.row).collect();
    let contexts = if rows.is_empty() { vec![] } else { rollups::month_contexts(conn, &rows).await? };

    let (mut raising, mut bounds) = (Vec::new(), Vec::new());
    for (changed @ ChangedMonth { row, zone, bound_holds, .. }, context) in reached.into_iter().zip(contexts) {
        let MonthRow { client_id, month, .. } = row;
        let (mut raised, mut open) = (row.raised, row.open);
        let (today, policy) = (settings.today(*zone), policies.of(client_id));
        let notifies = changed.notifies(settings);
        let facts = row.facts(today, context);
        for finding in facts.to_raise(policy, raised, open) {
            let AlertSet(bit) = AlertSet::of(finding.kind, finding.severity);
            raised.0 |= bit;
            open.0 |= bit;
            raising.push(Raising { client_id, finding, details: Details::None, notifies });
        }
        // Only for the current month: new events in the month before it reset its bound, but not the bound of an
        // earlier month.
        if *bound_holds && *month == Month::of(today) {
            bounds.push((row, facts.alert_bound(policy, raised, open)));
        }
    }
    if !findings.is_empty() || !limits.findings.is_empty() {
        let months: HashMap<_, _> =
            changed.iter().map(|month| ((month.row.client_id.as_str(), month.row.month), month)).collect();
        raising.extend(findings.iter().filter_map(|((client_id, month, _), finding, details)| {
            let notifies = months.get(&(&**client_id, *month))?.notifies(settings);
            Some(Raising { client_id, finding: finding.clone(), details: details.clone(), notifies })
        }));
        raising.extend(limits.findings.iter().filter_map(|(client_id, finding)| {
            let notifies = months.get(&(client_id.as_str(), Month::of(finding.period)))?.notifies(settings);
            Some(Raising { client_id, finding: finding.clone(), details: Details::None, notifies })
        }));
    }
    let mut changes = vec![];
    for (client_id, alert_ids) in &resolved {
        let resolved = alerts::resolve(conn, client_id, alert_ids).await?;
        changes.extend(resolved.into_iter().map(|alert| (Change::Resolved, alert)));
    }
    let raised = if raising.is_empty() { vec![] } else { raise(conn, settings, &raising).await? };
    if !bounds.is_empty() {
        rollups::set_alert_bounds(conn, &bounds).await?;
    }
    changes.extend(raised.iter().map(|alert| (Change::Raised, alert.clone())));
    alert_feed::append(conn, &changes).await?;
    Ok(raised)
}

impl ChangedMonth {
    fn has_reached_bound(&self) -> bool {
        self.row.alert_bound.is_some_and(|bound| self.row.cost >= bound)
    }

    /// Returns whether the alerts of this month send notifications.
    fn notifies(&self, settings: &AlertSettings) -> bool {
        !self.backfill && settings.notifies(self.row.month, settings.today(self.zone))
    }
}

/// Adds alerts to the metrics, after their transaction has committed.
pub fn count(raised: &[Alert]) {
    for alert in raised {
        let kind = format!("{:?}", alert.finding.kind).to_lowercase();
        metrics::counter!("meterd_alerts_raised_total", "type" => kind).increment(1);
    }
}

/// Raises alerts and queues their notifications. Returns the alerts that were not open already. The caller must append these to the
/// feed, as the last write of the transaction.
pub async fn raise(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    raising: &[Raising<'_>],
) -> meterd_store::Result<Vec<Alert>> {
    let client_ids: HashSet<&str> = raising.iter().map(|raising| raising.client_id).collect();
    let client_ids: Vec<String> = client_ids.into_iter().map(String::from).collect();
    let names = clients::names(conn, &client_ids).await?;
    let new: Vec<NewAlert> = raising
        .iter()
        .map(|Raising { client_id, finding, details, .. }| {
            let name = names.get(*client_id).map_or(*client_id, String::as_str);
            let message = finding.message_with(name, &settings.currency, details);
            NewAlert { client_id: client_id.to_string(), finding: finding.clone(), message }
        })
        .collect();
    let alerts = alerts::raise(conn, &new).await?;
    let silent: HashSet<_> = raising
        .iter()
        .filter(|raising| !raising.notifies)
        .map(|raising| key(raising.client_id, &raising.finding))
        .collect();
    let notified: Vec<Alert> =
        alerts.iter().filter(|alert| !silent.contains(&key(&alert.client_id, &alert.finding))).cloned().collect();
    notifications::insert(conn, &notified).await?;
    Ok(alerts)
}

/// Returns the key of an alert. Alerts about limits of the same period can share a key. Either all of them send notifications, or none.
fn key<'a>(client_id: &'a str, finding: &'a Finding) -> (&'a str, AlertType, Severity, &'a str, NaiveDate) {
    (client_id, finding.kind, finding.severity, &finding.service, finding.period)
}
