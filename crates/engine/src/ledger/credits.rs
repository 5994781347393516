//! Pays what the usage of a transaction costs with the credits of its clients.

use super::ClientSettings;
use chrono::NaiveDate;
use chrono_tz::Tz;
use meterd_domain::credits::{ChangedMonth, Grant, GrantSource, settle};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_domain::plan::{PlanTerms, PlanTimeline};
use meterd_domain::rollup::{DayKey, Sums};
use meterd_store::clients;
use meterd_store::credits::{self as store, CreditGrant, NewGrant};
use meterd_store::usage::rollups::MonthRow;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};

/// The priority of the credits that a plan includes, and of other grants unless they have another one.
pub const DEFAULT_PRIORITY: i32 = 100;

/// The months of a client whose cost changes.
type Months = BTreeMap<Month, ChangedMonth>;

/// What decides about the credits that the plans of a client include.
struct Terms<'a> {
    zone: Tz,
    plans: Option<&'a PlanTimeline>,
}

/// Pays for new usage. `days` are its sums, and `months` the new sums of its months, which are locked. Makes no call if no client has
/// credits.
pub(super) async fn pay_for_new_usage(
    conn: &mut PgConnection,
    settings: &ClientSettings,
    days: &[(DayKey, Sums)],
    months: &[MonthRow],
) -> meterd_store::Result<()> {
    let with_credits = |(row, _): &(DayKey, Sums)| settings.has_credits(&row.0);
    if !days.iter().any(with_credits) {
        return Ok(());
    }
    let changed = changed_months(days.iter().filter(|day| with_credits(day)), months);
    let terms = |client_id: &str| Some(Terms { zone: settings.zone(client_id)?, plans: settings.plans.of(client_id) });
    pay(conn, changed, terms).await
}

/// Pays for usage whose charges or days have changed, and returns what its months cost less. See [`pay_for_new_usage`].
pub(super) async fn pay_for_changed_usage(
    conn: &mut PgConnection,
    days: &[(DayKey, Sums)],
    months: &[MonthRow],
) -> meterd_store::Result<()> {
    let client_ids: BTreeSet<&str> = months.iter().map(|month| month.client_id.as_str()).collect();
    let client_ids: Vec<String> = client_ids.into_iter().map(str::to_owned).collect();
    let settings = clients::settings(conn, &client_ids).await?;
    let with_credits = |client_id: &str| {
        settings.with_grants.contains(client_id) || settings.plans.of(client_id).is_some_and(PlanTimeline::has_credits)
    };
    let changed = changed_months(days.iter().filter(|(row, _)| with_credits(&row.0)), months);
    let terms =
        |client_id: &str| Some(Terms { zone: *settings.zones.get(client_id)?, plans: settings.plans.of(client_id) });
    pay(conn, changed, terms).await
}

/// Returns the months of these days, by client.
fn changed_months<'a>(days: impl Iterator<Item = &'a (DayKey, Sums)>, months: &[MonthRow]) -> BTreeMap<String, Months> {
    let costs: BTreeMap<(&str, Month), Total> =
        months.iter().map(|row| ((row.client_id.as_str(), row.month), row.cost)).collect();
    let mut changed = BTreeMap::<String, Months>::new();
    for ((client_id, day, ..), sums) in days {
        let month = Month::of(*day);
        let of_month = changed.entry(client_id.to_string()).or_default().entry(month).or_default();
        of_month.cost = costs.get(&(&**client_id, month)).copied().unwrap_or_default();
        *of_month.days.entry(*day).or_default() += sums.cost;
    }
    changed
}

async fn pay<'a>(
    conn: &mut PgConnection,
    mut changed: BTreeMap<String, Months>,
    terms: impl Fn(&str) -> Option<Terms<'a>>,
) -> meterd_store::Result<()> {
    changed.retain(|_, months| {
        months.retain(|_, month| month.days.values().any(|more| *more != Total::ZERO));
        !months.is_empty()
    });
    if changed.is_empty() {
        return Ok(());
    }
    let (client_ids, days): (Vec<String>, Vec<NaiveDate>) = changed
        .iter()
        .filter_map(|(client_id, months)| Some((client_id.clone(), months.first_key_value()?.0.first_day())))
        .unzip();
    let mut grants = BTreeMap::<String, Vec<CreditGrant>>::new();
    for grant in store::lock(conn, &client_ids, &days).await? {
        grants.entry(grant.client_id.clone()).or_default().push(grant);
    }
    read_uses(conn, &mut changed).await?;
    let mut draws = BTreeMap::new();
    for (client_id, months) in &changed {
        let mut of_client = grants.remove(client_id).unwrap_or_default();
        if let Some(Terms { zone, plans: Some(plans) }) = terms(client_id) {
            include_credits(conn, client_id, months, plans, zone, &mut of_client).await?;
        }
        let mut of_client: Vec<Grant> = of_client.iter().map(CreditGrant::grant).collect();
        let drawn = settle(&mut of_client, months);
        if !drawn.is_empty() {
            draws.insert(client_id.clone(), drawn);
        }
    }
    match draws.is_empty() {
        true => Ok(()),
        false => store::draw(conn, &draws).await,
    }
}

/// Reads what grants have paid of the months that cost less.
async fn read_uses(conn: &mut PgConnection, changed: &mut BTreeMap<String, Months>) -> meterd_store::Result<()> {
    let cheaper = |month: &ChangedMonth| month.days.values().copied().sum::<Total>() < Total::ZERO;
    let (client_ids, months): (Vec<String>, Vec<NaiveDate>) = changed
        .iter()
        .flat_map(|(client_id, months)| months.iter().map(move |(month, changed)| (client_id, month, changed)))
        .filter(|(_, _, changed)| cheaper(changed))
        .map(|(client_id, month, _)| (client_id.clone(), month.first_day()))
        .unzip();
    if client_ids.is_empty() {
        return Ok(());
    }
    for ((client_id, month), uses) in store::uses(conn, &client_ids, &months).await? {
        if let Some(changed) = changed.get_mut(&client_id).and_then(|months| months.get_mut(&month)) {
            changed.uses = uses;
        }
    }
    Ok(())
}

/// Grants the credits that the plans of a client include in the months that cost more, unless they are granted. A plan with more credits
/// raises those of its month.
async fn include_credits(
    conn: &mut PgConnection,
    client_id: &str,
    months: &Months,
    plans: &PlanTimeline,
    zone: Tz,
    grants: &mut Vec<CreditGrant>,
) -> meterd_store::Result<()> {
    for (month, changed) in months {
        let last_day = changed.days.iter().filter(|(_, more)| **more > Total::ZERO).map(|(day, _)| *day).next_back();
        let Some(included) = last_day.and_then(|day| plans.included_credits(day, zone)) else { continue };
        let PlanTerms { plan_id, included_credits, rollover_months } = included;
        let grant_id = format!("plan-{month}");
        let new = NewGrant {
            client_id,
            grant_id: &grant_id,
            source: GrantSource::Plan.into(),
            plan_id: &plan_id,
            amount: included_credits,
            priority: DEFAULT_PRIORITY,
            first_day: month.first_day(),
            last_day: Some((0..rollover_months).fold(*month, |month, _| month.next()).last_day()),
            note: "",
        };
        match grants.iter_mut().find(|grant| grant.grant_id == grant_id) {
            None => grants.push(store::insert(conn, &new).await?),
            Some(grant) if grant.void_time.is_none() && grant.amount < included_credits => {
                store::raise(conn, &new).await?;
                (grant.amount, grant.last_day) = (included_credits, grant.last_day.max(new.last_day));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
