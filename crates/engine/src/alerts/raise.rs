//! Raises alerts in the transaction that records the usage.

use crate::clock::Clock;
use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use meterd_domain::alert::{Alert, AlertType, Change, Finding, Severity};
use meterd_domain::period::day_of;
use meterd_store::alerts::policies::Policies;
use meterd_store::alerts::{self, NewAlert};
use meterd_store::alerts::{feed as alert_feed, notifications};
use meterd_store::clients;
use meterd_store::usage::rollups::{self, MonthContext, MonthRow};
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
/// The contexts of the months are queried only if the worst possible values would raise an alert.
pub async fn raise_alerts(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    policies: &Policies,
    mut changed: Vec<ChangedMonth>,
) -> meterd_store::Result<Vec<Alert>> {
    let facts = |month: &ChangedMonth, context| month.row.facts(settings.today(month.zone), context);
    changed.retain(|month| {
        let MonthRow { client_id, raised, open, .. } = &month.row;
        facts(month, MonthContext::default()).may_raise(policies.of(client_id), *raised, *open)
    });
    if changed.is_empty() {
        return Ok(vec![]);
    }
    let rows: Vec<&MonthRow> = changed.iter().map(|month| &month.row).collect();
    let contexts = rollups::month_contexts(conn, &rows).await?;

    let mut raising = Vec::new();
    for (month, context) in changed.iter().zip(contexts) {
        let ChangedMonth { row, zone, backfill } = month;
        let MonthRow { client_id, raised, open, .. } = row;
        let notifies = !backfill && settings.notifies(row, settings.today(*zone));
        let findings = facts(month, context).to_raise(policies.of(client_id), *raised, *open);
        raising.extend(findings.into_iter().map(|finding| Raising { client_id, finding, notifies }));
    }
    if raising.is_empty() {
        return Ok(vec![]);
    }
    let raised = raise(conn, settings, &raising).await?;
    let changes: Vec<_> = raised.iter().map(|alert| (Change::Raised, alert.clone())).collect();
    alert_feed::append(conn, &changes).await?;
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
