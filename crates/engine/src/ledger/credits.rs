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
use meterd_store::usage::changes::{Changes, MonthChange, NewUsage};
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

/// Pays for new usage, whose changes of sums are `days` and `months`. `rows` are the new sums of the months, which are locked. Makes no
/// call if no client has credits.
pub(super) async fn pay_for_new_usage(
    conn: &mut PgConnection,
    settings: &ClientSettings,
    usage: &NewUsage,
    rows: &[MonthRow],
) -> meterd_store::Result<()> {
    let has_credits = |client_id: &str| settings.has_credits(client_id);
    if !usage.months.iter().any(|month| has_credits(&month.key.0)) {
        return Ok(());
    }
    let changed = changed_months(has_credits, &usage.days, &usage.months, rows);
    let terms = |client_id: &str| Some(Terms { zone: settings.zone(client_id)?, plans: settings.plans.of(client_id) });
    pay(conn, changed, false, terms).await
}

/// Pays for usage whose charges or days have changed, and returns what grants have paid above the cost of its months. See
/// [`pay_for_new_usage`].
pub(super) async fn pay_for_changed_usage(
    conn: &mut PgConnection,
    changes: &Changes,
    rows: &[MonthRow],
) -> meterd_store::Result<()> {
    let client_ids: BTreeSet<&str> = rows.iter().map(|row| row.client_id.as_str()).collect();
    let client_ids: Vec<String> = client_ids.into_iter().map(str::to_owned).collect();
    let settings = clients::settings(conn, &client_ids).await?;
    let has_credits = |client_id: &str| settings.has_credits(client_id);
    let mut changed = changed_months(has_credits, &changes.days, &changes.months, rows);
    read_uses(conn, &mut changed).await?;
    let terms =
        |client_id: &str| Some(Terms { zone: *settings.zones.get(client_id)?, plans: settings.plans.of(client_id) });
    pay(conn, changed, true, terms).await
}

/// Returns the changed months of clients with credits, by client. Days of months whose own sums do not change are left out: a rebuild can
/// correct the sums of days alone, which changes no cost.
fn changed_months(
    has_credits: impl Fn(&str) -> bool,
    days: &[(DayKey, Sums)],
    months: &[MonthChange],
    rows: &[MonthRow],
) -> BTreeMap<String, Months> {
    let costs: BTreeMap<(&str, Month), Total> =
        rows.iter().map(|row| ((row.client_id.as_str(), row.month), row.cost)).collect();
    let mut changed = BTreeMap::<String, Months>::new();
    for MonthChange { key: (client_id, month), sums, .. } in months {
        if has_credits(client_id)
            && sums.cost != Total::ZERO
            && let Some(cost) = costs.get(&(&**client_id, *month))
        {
            let of_month = ChangedMonth { cost: *cost, more: sums.cost, ..ChangedMonth::default() };
            changed.entry(client_id.to_string()).or_default().insert(*month, of_month);
        }
    }
    for ((client_id, day, ..), sums) in days {
        if let Some(month) = changed.get_mut(&**client_id).and_then(|months| months.get_mut(&Month::of(*day))) {
            *month.days.entry(*day).or_default() += sums.cost;
        }
    }
    changed
}

/// `may_return` says whether grants may get something back.
async fn pay<'a>(
    conn: &mut PgConnection,
    changed: BTreeMap<String, Months>,
    may_return: bool,
    terms: impl Fn(&str) -> Option<Terms<'a>>,
) -> meterd_store::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let (client_ids, days): (Vec<String>, Vec<NaiveDate>) = changed
        .iter()
        .filter_map(|(client_id, months)| Some((client_id.clone(), months.first_key_value()?.0.first_day())))
        .unzip();
    let mut grants = BTreeMap::<String, Vec<CreditGrant>>::new();
    for grant in store::lock(conn, &client_ids, &days, may_return).await? {
        grants.entry(grant.client_id.clone()).or_default().push(grant);
    }
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

/// Reads what grants have paid of the months.
async fn read_uses(conn: &mut PgConnection, changed: &mut BTreeMap<String, Months>) -> meterd_store::Result<()> {
    let keys = changed.iter().flat_map(|(client_id, months)| months.keys().map(move |month| (client_id, month)));
    let (client_ids, months): (Vec<String>, Vec<NaiveDate>) =
        keys.map(|(client_id, month)| (client_id.clone(), month.first_day())).unzip();
    if client_ids.is_empty() {
        return Ok(());
    }
    let mut uses = store::uses(conn, &client_ids, &months).await?;
    for (client_id, months) in changed {
        for (month, changed) in months {
            changed.uses = Some(uses.remove(&(client_id.clone(), *month)).unwrap_or_default());
        }
    }
    Ok(())
}

/// Grants the credits that the plans of a client include in the months that cost more, unless they are granted. A plan with more credits
/// or a longer rollover changes the grant of its month.
async fn include_credits(
    conn: &mut PgConnection,
    client_id: &str,
    months: &Months,
    plans: &PlanTimeline,
    zone: Tz,
    grants: &mut Vec<CreditGrant>,
) -> meterd_store::Result<()> {
    for (month, changed) in months {
        let costlier = changed.days.iter().filter(|(_, more)| **more > Total::ZERO);
        let Some(included) =
            costlier.map(|(day, _)| *day).next_back().and_then(|day| plans.included_credits(day, zone))
        else {
            continue;
        };
        let (first_day, PlanTerms { plan_id, included_credits, rollover_months }) = included;
        let grant_id = format!("plan-{month}");
        let last_day = (0..rollover_months).fold(*month, |month, _| month.next()).last_day();
        let mut new = NewGrant {
            client_id,
            grant_id: &grant_id,
            source: GrantSource::Plan.into(),
            plan_id: &plan_id,
            amount: included_credits,
            priority: DEFAULT_PRIORITY,
            first_day,
            last_day: Some(last_day),
            note: "",
        };
        match grants.iter_mut().find(|grant| grant.grant_id == grant_id) {
            None => grants.push(store::insert(conn, &new).await?),
            Some(grant) if grant.void_time.is_none() => {
                // A change of the plan takes nothing away.
                new.amount = new.amount.max(grant.amount);
                new.first_day = first_day.min(grant.first_day);
                new.last_day = new.last_day.max(grant.last_day);
                if (new.amount, new.first_day, new.last_day) != (grant.amount, grant.first_day, grant.last_day) {
                    store::change(conn, &new).await?;
                    (grant.amount, grant.first_day, grant.last_day) = (new.amount, new.first_day, new.last_day);
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}
