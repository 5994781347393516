//! Raises and resolves alerts about events without a charge, in the transaction that changes their number, and when a check runs.

use meterd_domain::alert::{Alert, Details, Finding, UnpricedFacts, UnpricedSample};
use meterd_domain::event::Charge;
use meterd_domain::period::Month;
use meterd_domain::policy::Policy;
use meterd_domain::rollup::{Deltas, MonthServiceKey};
use meterd_store::alerts::policies::Policies;
use meterd_store::alerts::unpriced as store;
use meterd_store::usage::record::NewEvent;
use sqlx::PgConnection;
use std::collections::BTreeMap;

/// How a transaction has changed the number of unpriced events of a service in a client's month.
#[derive(Clone, Debug, Default)]
pub struct UnpricedChange {
    pub event_count: i64,
    /// The new unpriced events. Empty if the change is not by new events.
    pub sample: UnpricedSample,
}

/// The services of months whose number of unpriced events a transaction has changed.
pub type UnpricedChanges = BTreeMap<MonthServiceKey, UnpricedChange>;

/// Returns the changes by new events.
pub fn of_new<'n>(new: impl IntoIterator<Item = &'n NewEvent<'n>>) -> UnpricedChanges {
    let mut changes = UnpricedChanges::new();
    for NewEvent { priced, .. } in new {
        let Charge::Unpriced(reason) = priced.charge else { continue };
        let event = priced.event;
        let key = (event.client_id.clone(), Month::of(priced.day), event.service.clone());
        let change = changes.entry(key).or_default();
        change.event_count += 1;
        change.sample.add(&event.model, reason, 1);
    }
    changes
}

/// Returns the changes by corrections.
pub fn of_deltas(deltas: &Deltas) -> UnpricedChanges {
    let changed = deltas.month_services.iter().filter(|(_, sums)| sums.unpriced_event_count != 0);
    let change = |event_count| UnpricedChange { event_count, sample: UnpricedSample::default() };
    changed.map(|(key, sums)| (key.clone(), change(sums.unpriced_event_count))).collect()
}

/// What becomes of the alerts about unpriced events.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// For each alert to raise, its client and month.
    pub findings: Vec<(MonthServiceKey, Finding, Details)>,
    /// For each client, the ids of the alerts to resolve.
    pub resolved: BTreeMap<String, Vec<String>>,
}

/// Evaluates the rule for changed services. The months are locked. Reads nothing if no service is changed for which the rule is on.
pub async fn evaluate(
    conn: &mut PgConnection,
    policies: &Policies,
    changes: &UnpricedChanges,
) -> meterd_store::Result<Evaluated> {
    let mut evaluated = Evaluated::default();
    let watched: Vec<_> =
        changes.iter().filter(|((client_id, ..), _)| policies.of(client_id).unpriced_enabled).collect();
    if watched.is_empty() {
        return Ok(evaluated);
    }
    let open = store::open(conn, &watched.iter().map(|(key, _)| *key).collect()).await?;
    // More events do not change an open alert, and fewer do not raise one.
    let undecided: Vec<_> = watched
        .into_iter()
        .zip(open)
        .filter(|((_, change), open)| open.is_some() != (change.event_count > 0))
        .collect();
    if undecided.is_empty() {
        return Ok(evaluated);
    }
    let counts = store::counts(conn, &undecided.iter().map(|((key, _), _)| *key).collect()).await?;
    for (((key, change), open), event_count) in undecided.into_iter().zip(counts) {
        let (client_id, month, service) = key;
        let facts = UnpricedFacts { service: service.to_string(), month: *month, event_count };
        match (facts.unpriced(policies.of(client_id)), open) {
            (Some(finding), None) => {
                let sample = match event_count == change.sample.event_count() as i64 {
                    true => change.sample.clone(),
                    false => store::sample(conn, client_id, *month, service).await?,
                };
                evaluated.findings.push((key.clone(), finding, Details::Unpriced(sample)));
            }
            (None, Some(alert_id)) => {
                evaluated.resolved.entry(client_id.to_string()).or_default().push(alert_id);
            }
            _ => {}
        }
    }
    Ok(evaluated)
}

/// What becomes of the alerts of months of a client.
#[derive(Debug)]
pub struct MonthsEvaluated {
    /// The alerts that are not open.
    pub findings: Vec<(Finding, Details)>,
    /// The ids of the alerts to resolve.
    pub resolved: Vec<String>,
}

/// Evaluates the rule for all services of locked months of a client, with the alerts of these months that are open. Alerts of months
/// before `raise_from` are only resolved.
pub async fn evaluate_months(
    conn: &mut PgConnection,
    policy: &Policy,
    client_id: &str,
    months: &[Month],
    raise_from: Month,
    open: &[&Alert],
) -> meterd_store::Result<MonthsEvaluated> {
    let services = match policy.unpriced_enabled {
        true => store::of_months(conn, client_id, months).await?,
        false => vec![],
    };
    let found: Vec<Finding> = services.iter().filter_map(|facts| facts.unpriced(policy)).collect();
    let is_same = |left: &Finding, right: &Finding| left.service == right.service && left.period == right.period;
    let is_found = |alert: &&&Alert| found.iter().any(|finding| is_same(finding, &alert.finding));
    let over = open.iter().filter(|alert| !is_found(alert));
    let resolved = over.map(|alert| alert.alert_id.clone()).collect();
    let mut findings = vec![];
    for finding in &found {
        let month = Month::of(finding.period);
        if month >= raise_from && !open.iter().any(|alert| is_same(finding, &alert.finding)) {
            let sample = store::sample(conn, client_id, month, &finding.service).await?;
            findings.push((finding.clone(), Details::Unpriced(sample)));
        }
    }
    Ok(MonthsEvaluated { findings, resolved })
}
