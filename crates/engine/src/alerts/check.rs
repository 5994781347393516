//! Evaluates all alert rules of a client: those that depend on the time, and those whose result a changed policy or a correction of
//! sums may change. [`super::raise`] evaluates the rules about months that new usage has changed.

use super::raise::{AlertSettings, Raising, count, raise};
use super::{silence, unpriced};
use crate::limits::counters as limits;
use crate::refusal::Refusal;
use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use futures_util::stream::{self, StreamExt};
use meterd_domain::alert::{ANOMALY_DAYS_BEFORE, Alert, AlertSet, AlertType, Change, DayFacts, Details, Finding};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_domain::policy::Policy;
use meterd_store::alerts::{feed as alert_feed, policies};
use meterd_store::usage::rollups::{self, DayRow, MonthRow};
use meterd_store::{StoreError, alerts, clients, locks};
use sqlx::{PgConnection, PgPool};
use std::collections::{BTreeMap, HashSet};
use std::pin::pin;

/// Maximum numbers of clients that are read by one statement, and that are checked at the same time.
const CLIENTS_PAGE: i64 = 500;
const CLIENTS_AT_ONCE: usize = 4;
/// Number of days that are checked for anomalies, including today. Usage may arrive late, and checks may have been missed.
const ANOMALY_DAYS_CHECKED: u64 = 7;
/// Maximum number of alerts, and of failures, that a report contains.
const REPORTED_MAX: usize = 1_000;

/// The result of a check of one client.
#[derive(Debug, Default)]
pub struct Checked {
    pub raised: Vec<Alert>,
    pub resolved_count: usize,
}

/// The result of a check of all clients.
#[derive(Debug, Default)]
pub struct Report {
    pub checked_count: u64,
    pub raised_count: u64,
    pub resolved_count: u64,
    pub failed_count: u64,
    /// The first raised alerts.
    pub raised: Vec<Alert>,
    /// The first clients whose check failed, with the error.
    pub failed: Vec<(String, String)>,
}

/// Checks a client: raises alerts of its current month, of its last seven days and of its silence, and resolves alerts of its silence,
/// of these days, of this month and of the month before. Returns `None` if the client does not exist.
///
/// The transaction must hold or share the versions lock, and this must be its last write.
pub async fn client(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    client_id: &str,
) -> meterd_store::Result<Option<Checked>> {
    let Some(zone) = clients::time_zone(conn, client_id).await? else { return Ok(None) };
    let today = settings.today(zone);
    let month = Month::of(today);
    let months = [month.previous(), month];
    let rows = rollups::lock_client_months(conn, client_id, &months).await?;
    let days: Vec<NaiveDate> = (0..ANOMALY_DAYS_CHECKED).rev().map(|ago| today - Days::new(ago)).collect();
    // Whole months, because the services that were used before are known by month.
    let first = Month::of(days[0] - Days::new(ANOMALY_DAYS_BEFORE.into()));
    let usage = DayUsage {
        rows: rollups::days(conn, client_id, first.first_day(), today).await?,
        services_before: rollups::services_before(conn, client_id, first).await?,
    };
    // Without a row, the month has no usage.
    let limits = match rows.iter().any(|row| row.month == month) {
        true => limits::check(conn, client_id, today).await?,
        false => limits::Evaluated::default(),
    };
    let scope =
        Scope { client_id, zone, today, raise_from: month, rows, days: &days, usage, limits, with_silence: true };
    evaluate(conn, settings, scope).await.map(Some)
}

/// Checks months of a client whose sums were corrected: raises and resolves alerts. It is the last write of the transaction,
/// which need not share the versions lock: if a policy changes at the same time, that change checks the client after it. `limits` is
/// what becomes of the alerts about limits.
pub async fn corrected_months(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    client_id: &str,
    months: &[Month],
    limits: limits::Evaluated,
) -> meterd_store::Result<Checked> {
    let Some(zone) = clients::time_zone(conn, client_id).await? else { return Ok(Checked::default()) };
    let has_none = months.is_empty() && limits.findings.is_empty() && limits.resolved.is_empty();
    if has_none {
        return Ok(Checked::default());
    }
    let raise_from = months.iter().min().copied().unwrap_or_else(|| Month::of(settings.today(zone)));
    let rows = rollups::lock_client_months(conn, client_id, months).await?;
    let (today, usage) = (settings.today(zone), DayUsage::default());
    let scope = Scope { client_id, zone, today, raise_from, rows, days: &[], usage, limits, with_silence: false };
    evaluate(conn, settings, scope).await
}

/// The months and days of a check.
struct Scope<'a> {
    client_id: &'a str,
    zone: Tz,
    /// The day in this time zone.
    today: NaiveDate,
    /// Alerts are raised for this month and later ones. Alerts of earlier months are only resolved.
    raise_from: Month,
    /// Rows of the months. They are locked.
    rows: Vec<MonthRow>,
    /// Days that are checked for anomalies.
    days: &'a [NaiveDate],
    usage: DayUsage,
    /// What becomes of the alerts about limits.
    limits: limits::Evaluated,
    /// Whether it is checked if the client still sends events.
    with_silence: bool,
}

/// The usage that anomalies are computed from.
#[derive(Default)]
struct DayUsage {
    rows: Vec<DayRow>,
    /// Services that were used before these days.
    services_before: HashSet<String>,
}

async fn evaluate(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    scope: Scope<'_>,
) -> meterd_store::Result<Checked> {
    let Scope { client_id, zone, today, raise_from, rows, days, usage, mut limits, with_silence } = scope;
    let policies = policies::load(conn, &[client_id.to_string()]).await?;
    let policy = policies.of(client_id);
    let months: Vec<Month> = rows.iter().map(|row| row.month).collect();
    let first_day = days.first().copied().unwrap_or(NaiveDate::MAX);
    let open = alerts::open(conn, client_id, &months, first_day, with_silence).await?;
    let refs: Vec<&MonthRow> = rows.iter().collect();
    let contexts = rollups::month_contexts(conn, &refs).await?;
    let anomalies: Vec<DayFacts> = days.iter().flat_map(|day| usage.facts(*day)).collect();

    let mut resolved: Vec<String> = vec![];
    let mut raising: Vec<Raising<'_>> = vec![];
    for (row, context) in rows.iter().zip(contexts) {
        let facts = row.facts(today, context);
        let mut still_open = row.open;
        for alert in open.iter().filter(|alert| is_of_month(&alert.finding, row.month)) {
            if facts.resolves(policy, &alert.finding) {
                resolved.push(alert.alert_id.clone());
                still_open.0 &= !AlertSet::of(alert.finding.kind, alert.finding.severity).0;
            }
        }
        if row.month >= raise_from {
            let notifies = settings.notifies(row.month, today);
            let findings = facts.to_raise(policy, row.raised, still_open);
            raising.extend(findings.into_iter().map(|finding| Raising {
                client_id,
                finding,
                details: Details::None,
                notifies,
            }));
        }
    }
    for alert in of_type(&open, AlertType::Anomaly) {
        if is_anomaly_over(policy, &anomalies, &alert.finding) {
            resolved.push(alert.alert_id.clone());
        }
    }
    let is_open = |finding: &Finding| {
        let key = |finding: &Finding| (finding.kind, finding.service.clone(), finding.period);
        open.iter().any(|alert| key(&alert.finding) == key(finding) && !resolved.contains(&alert.alert_id))
    };
    let found = anomalies.iter().filter_map(|facts| facts.anomaly(policy)).filter(|finding| !is_open(finding));
    raising.extend(found.map(|finding| Raising { client_id, finding, details: Details::None, notifies: true }));

    let unpriced_open = of_type(&open, AlertType::Unpriced);
    let unpriced = unpriced::evaluate_months(conn, policy, client_id, &months, raise_from, &unpriced_open).await?;
    resolved.extend(unpriced.resolved);
    for (finding, details) in unpriced.findings {
        if let Some(row) = rows.iter().find(|row| row.month == Month::of(finding.period)) {
            raising.push(Raising { client_id, finding, details, notifies: settings.notifies(row.month, today) });
        }
    }
    resolved.extend(limits.resolved.remove(client_id).unwrap_or_default());
    raising.extend(limits.findings.into_iter().map(|(_, finding)| {
        let notifies = settings.notifies(Month::of(finding.period), today);
        Raising { client_id, finding, details: Details::None, notifies }
    }));
    if with_silence {
        let (silences, now) = (of_type(&open, AlertType::Silence), settings.clock.now());
        let silence = silence::evaluate(conn, policy, client_id, zone, now, &silences).await?;
        resolved.extend(silence.resolved);
        let found = silence.finding.into_iter();
        raising.extend(found.map(|(finding, details)| Raising { client_id, finding, details, notifies: true }));
    }

    let resolved = if resolved.is_empty() { vec![] } else { alerts::resolve(conn, client_id, &resolved).await? };
    let raised = if raising.is_empty() { vec![] } else { raise(conn, settings, &raising).await? };
    let changes: Vec<_> = resolved
        .iter()
        .map(|alert| (Change::Resolved, alert.clone()))
        .chain(raised.iter().map(|alert| (Change::Raised, alert.clone())))
        .collect();
    alert_feed::append(conn, &changes).await?;
    Ok(Checked { raised, resolved_count: resolved.len() })
}

fn of_type(alerts: &[Alert], kind: AlertType) -> Vec<&Alert> {
    alerts.iter().filter(|alert| alert.finding.kind == kind).collect()
}

fn is_of_month(finding: &Finding, month: Month) -> bool {
    finding.kind.is_of_month_cost() && finding.period == month.first_day()
}

/// Returns whether an open anomaly no longer applies, because of a changed policy, a correction, or late usage of the days before it.
fn is_anomaly_over(policy: &Policy, days: &[DayFacts], alert: &Finding) -> bool {
    let same = |facts: &&DayFacts| facts.day == alert.period && facts.service == alert.service;
    days.iter().find(same).is_none_or(|facts| facts.anomaly(policy).is_none())
}

impl DayUsage {
    /// Returns the facts about a day and the days before it: one of the cost, and one of the units of each service.
    fn facts(&self, day: NaiveDate) -> Vec<DayFacts> {
        // For each service, the units by day. The empty service has the cost.
        let mut values: BTreeMap<&str, BTreeMap<NaiveDate, Total>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.day <= day) {
            *values.entry("").or_default().entry(row.day).or_default() += row.cost;
            *values.entry(&row.service).or_default().entry(row.day).or_default() += row.units;
        }
        values
            .into_iter()
            .filter_map(|(service, mut values)| {
                let value = values.remove(&day)?;
                let used_before = match service {
                    "" => !self.services_before.is_empty(),
                    service => self.services_before.contains(service),
                };
                let longest = day - Days::new(ANOMALY_DAYS_BEFORE.into());
                let first = values.keys().next().copied().filter(|_| !used_before).unwrap_or(longest).max(longest);
                let before = values.range(first..);
                Some(DayFacts {
                    service: service.into(),
                    day,
                    value,
                    days_before: (day - first).num_days() as u32,
                    days_with_usage: before.clone().count() as u32,
                    sum_before: before.map(|(_, value)| *value).sum(),
                })
            })
            .collect()
    }
}

/// Checks one client in a transaction of its own. Returns `None` if the client does not exist.
pub async fn one(pool: &PgPool, settings: &AlertSettings, client_id: &str) -> meterd_store::Result<Option<Checked>> {
    let mut tx = pool.begin().await?;
    locks::share_versions(&mut tx).await?;
    let checked = client(&mut tx, settings, client_id).await?;
    tx.commit().await?;
    if let Some(checked) = &checked {
        count(&checked.raised);
    }
    Ok(checked)
}

/// Checks all clients with usage in this month or the month before, and those whose silence has begun or ended, each in a
/// transaction of its own, while `continues` returns true. If a client cannot be checked, the report contains its error, and the
/// others are still checked.
///
/// # Errors
/// If the database is not available.
pub async fn all(
    pool: &PgPool,
    settings: &AlertSettings,
    continues: impl Fn() -> bool,
) -> meterd_store::Result<Report> {
    let mut report = Report::default();
    // A day earlier, because the current day of a client may be the day before that of UTC.
    let since = Month::of(settings.clock.now().date_naive() - Days::new(1)).previous();
    let mut after = String::new();
    loop {
        let clients = clients::active_since(pool, since, &after, CLIENTS_PAGE).await?;
        let Some(last) = clients.last() else { break };
        after = last.clone();
        if !check_page(pool, settings, &mut report, clients, &continues).await? {
            return Ok(report);
        }
    }
    let mut after = Some(String::new());
    while let Some(last) = after {
        let (due, next) = silence::due(pool, settings.clock.now(), since, &last, CLIENTS_PAGE).await?;
        after = next;
        if !check_page(pool, settings, &mut report, due, &continues).await? {
            break;
        }
    }
    Ok(report)
}

/// Checks some clients. Returns false if `continues` does.
async fn check_page(
    pool: &PgPool,
    settings: &AlertSettings,
    report: &mut Report,
    clients: Vec<String>,
    continues: &impl Fn() -> bool,
) -> meterd_store::Result<bool> {
    let checks = clients.into_iter().map(|client_id| async move {
        let checked = one(pool, settings, &client_id).await;
        (client_id, checked)
    });
    let mut checks = pin!(stream::iter(checks).buffered(CLIENTS_AT_ONCE));
    while let Some((client_id, checked)) = checks.next().await {
        report.add(client_id, checked)?;
        if !continues() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Report {
    /// Adds the result of a client.
    ///
    /// # Errors
    /// If the error concerns the database and not only this client.
    fn add(&mut self, client_id: String, checked: meterd_store::Result<Option<Checked>>) -> meterd_store::Result<()> {
        match checked {
            Ok(checked) => {
                let Checked { raised, resolved_count } = checked.unwrap_or_default();
                self.checked_count += 1;
                self.raised_count += raised.len() as u64;
                self.resolved_count += resolved_count as u64;
                let room = REPORTED_MAX.saturating_sub(self.raised.len());
                self.raised.extend(raised.into_iter().take(room));
            }
            Err(error) if error.is_transient() && !matches!(error, StoreError::Driver(sqlx::Error::Database(_))) => {
                return Err(error);
            }
            Err(error) => {
                tracing::error!(%error, client_id, "the alerts of a client could not be checked");
                self.failed_count += 1;
                if self.failed.len() < REPORTED_MAX {
                    self.failed.push((client_id, Refusal::from(error).into_details().message));
                }
            }
        }
        Ok(())
    }
}
