//! Raises alerts in the transaction that records the usage.

use crate::clock::Clock;
use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use meterd_domain::alert::{Alert, AlertSet, AlertType, Change, Finding, Severity};
use meterd_domain::period::{Month, day_of};
use meterd_store::alerts::policies::Policies;
use meterd_store::alerts::{self, NewAlert};
use meterd_store::alerts::{feed as alert_feed, notifications};
use meterd_store::clients;
use meterd_store::usage::rollups::{self, MonthRow};
use sqlx::PgConnection;
use std::collections::HashSet;

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
    pub fn notifies(&self, row: &MonthRow, today: NaiveDate) -> bool {
        row.month.last_day() + Days::new(self.accept_past_days.into()) >= today
    }
}

/// A finding that becomes an alert.
pub struct Raising<'a> {
    pub client_id: &'a str,
    pub finding: Finding,
    /// Whether the alert sends notifications.
    pub notifies: bool,
}

/// Evaluates the rules about the changed months, and returns the alerts that were raised. Must be the last write of the transaction.
///
/// The rules of a month are evaluated only if its cost has reached its alert bound.
pub async fn raise_alerts(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    policies: &Policies,
    mut changed: Vec<ChangedMonth>,
) -> meterd_store::Result<Vec<Alert>> {
    changed.retain(|ChangedMonth { row, .. }| row.alert_bound.is_some_and(|bound| row.cost >= bound));
    if changed.is_empty() {
        return Ok(vec![]);
    }
    let rows: Vec<&MonthRow> = changed.iter().map(|month| &month.row).collect();
    let contexts = rollups::month_contexts(conn, &rows).await?;

    let (mut raising, mut bounds) = (Vec::new(), Vec::new());
    for (ChangedMonth { row, zone, backfill, bound_holds }, context) in changed.iter().zip(contexts) {
        let MonthRow { client_id, month, .. } = row;
        let (mut raised, mut open) = (row.raised, row.open);
        let (today, policy) = (settings.today(*zone), policies.of(client_id));
        let notifies = !backfill && settings.notifies(row, today);
        let facts = row.facts(today, context);
        for finding in facts.to_raise(policy, raised, open) {
            let AlertSet(bit) = AlertSet::of(finding.kind, finding.severity);
            raised.0 |= bit;
            open.0 |= bit;
            raising.push(Raising { client_id, finding, notifies });
        }
        // Only for the current month: new events in the month before it reset its bound, but not the bound of an
        // earlier month.
        if *bound_holds && *month == Month::of(today) {
            bounds.push((row, facts.alert_bound(policy, raised, open)));
        }
    }
    let raised = if raising.is_empty() { vec![] } else { raise(conn, settings, &raising).await? };
    if !bounds.is_empty() {
        rollups::set_alert_bounds(conn, &bounds).await?;
    }
    if !raised.is_empty() {
        let changes: Vec<_> = raised.iter().map(|alert| (Change::Raised, alert.clone())).collect();
        alert_feed::append(conn, &changes).await?;
    }
    Ok(raised)
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
        .map(|Raising { client_id, finding, .. }| {
            let name = names.get(*client_id).map_or(*client_id, String::as_str);
            let message = finding.message(name, &settings.currency);
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

/// Returns the key of an alert. There is at most one open alert with the same key.
fn key<'a>(client_id: &'a str, finding: &'a Finding) -> (&'a str, AlertType, Severity, &'a str, NaiveDate) {
    (client_id, finding.kind, finding.severity, &finding.service, finding.period)
}
