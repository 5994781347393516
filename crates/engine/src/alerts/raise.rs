//! Raising: what a transaction's usage has reached becomes an alert in that transaction.

use crate::clock::Clock;
use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use meterd_domain::alert::{Alert, AlertType, Change, Finding, Severity};
use meterd_domain::period::day_of;
use meterd_store::alerts::{self, NewAlert};
use meterd_store::policies::Policies;
use meterd_store::rollups::{self, MonthContext, MonthRow};
use meterd_store::{alert_feed, clients, notifications};
use sqlx::PgConnection;
use std::collections::HashSet;

/// What alerts need to know of the deployment.
#[derive(Clone, Debug)]
pub struct AlertSettings {
    pub clock: Clock,
    pub currency: String,
    /// Nothing new happens in months that ended longer ago: whoever fills, prices or corrects them notifies nobody.
    pub accept_past_days: u32,
}

/// A month that the transaction has changed, and holds.
pub struct ChangedMonth {
    pub row: MonthRow,
    pub zone: Tz,
    /// Only by a backfill, which notifies nobody.
    pub backfill: bool,
}

impl AlertSettings {
    /// The client's own day.
    pub fn today(&self, zone: Tz) -> NaiveDate {
        day_of(self.clock.now(), zone)
    }

    /// Whether somebody is to be told of alerts of this month.
    pub fn notifies(&self, row: &MonthRow, today: NaiveDate) -> bool {
        row.month.last_day() + Days::new(self.accept_past_days.into()) >= today
    }
}

/// A finding of a client, and whether somebody is to be told.
pub struct Raising<'a> {
    pub client_id: &'a str,
    pub finding: Finding,
    pub notifies: bool,
}

/// Raises what the changed months have reached, and gives it. The last write of the transaction.
///
/// The contexts of the months are queried only if the worst possible values would raise an alert.
pub async fn raise_reached(
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

/// Counts alerts whose transaction has committed.
pub fn count(raised: &[Alert]) {
    for alert in raised {
        let kind = format!("{:?}", alert.finding.kind).to_lowercase();
        metrics::counter!("meterd_alerts_raised_total", "type" => kind).increment(1);
    }
}

/// Raises alerts and queues their notifications; gives those that were not open already. They still have to go into the
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
    let told: Vec<Alert> =
        alerts.iter().filter(|alert| !silent.contains(&key(&alert.client_id, &alert.finding))).cloned().collect();
    notifications::insert(conn, &told).await?;
    Ok(alerts)
}

/// What there is one alert of.
fn key<'a>(client_id: &'a str, finding: &'a Finding) -> (&'a str, AlertType, Severity, &'a str, NaiveDate) {
    (client_id, finding.kind, finding.severity, &finding.service, finding.period)
}
