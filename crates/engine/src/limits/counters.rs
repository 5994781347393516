//! Counts usage for limits in the transaction that changes it, and says which alerts to raise and resolve.

use chrono::NaiveDate;
use foldhash::fast::RandomState;
use meterd_domain::alert::Finding;
use meterd_domain::limit::Limit;
use meterd_domain::period::Month;
use meterd_domain::rollup::{DayKey, Deltas};
use meterd_store::limits;
use meterd_store::limits::counters::{self as store, Additions, Counter, Wanted};
use meterd_store::usage::record::NewEvent;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The limits of clients, as they are at one version.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    of: HashMap<String, Vec<Limit>, RandomState>,
}

impl Limits {
    /// Reads the limits of clients.
    pub async fn load(conn: &mut PgConnection, client_ids: &[String]) -> meterd_store::Result<Self> {
        let mut limits = Self::default();
        for limit in limits::load(conn, client_ids).await? {
            limits.of.entry(limit.client_id.clone()).or_default().push(limit);
        }
        Ok(limits)
    }

    /// Adds the limits of more clients. They must have been read at the same version.
    pub fn join(&mut self, more: Self) {
        self.of.extend(more.of);
    }

    fn of(&self, client_id: &str) -> &[Limit] {
        self.of.get(client_id).map_or(&[], Vec::as_slice)
    }

    fn find(&self, client_id: &str, limit_id: &str) -> Option<&Limit> {
        self.of(client_id).iter().find(|limit| limit.limit_id == limit_id)
    }

    /// Returns whether an event counts for a limit.
    pub fn count_any<'n>(&self, new: impl IntoIterator<Item = &'n NewEvent<'n>>) -> bool {
        !self.of.is_empty()
            && new.into_iter().any(|NewEvent { priced: new, .. }| {
                self.of(&new.event.client_id).iter().any(|limit| limit.filter.matches(new.event))
            })
    }
}

/// How a transaction has changed the usage that limits count.
#[derive(Debug, Default)]
pub enum Changes {
    #[default]
    None,
    /// New events.
    New(Additions),
    /// Changed sums of days.
    Days(BTreeSet<DayKey>),
    /// Anything in whole months of a client.
    Months(String, Vec<Month>),
    /// Nothing, but the alerts of a limit in these periods, given by a day of each, depend on its new settings.
    Settings(String, String, Vec<NaiveDate>),
}

impl Changes {
    /// Returns the changes by new events.
    pub fn of_new<'n>(limits: &Limits, new: impl IntoIterator<Item = &'n NewEvent<'n>>) -> Self {
        if limits.of.is_empty() {
            return Self::None;
        }
        let mut additions = Additions::new();
        for NewEvent { priced: new, .. } in new {
            for limit in limits.of(&new.event.client_id) {
                if let Some(quantity) = limit.quantity(new) {
                    let start = limit.period.start(new.day);
                    let key = (new.event.client_id.clone(), limit.limit_id.as_str().into(), start);
                    let (_, used) = additions.entry(key).or_insert((limit.revision, Default::default()));
                    *used += quantity;
                }
            }
        }
        if additions.is_empty() { Self::None } else { Self::New(additions) }
    }

    /// Returns the changes by corrections.
    pub fn of_deltas(deltas: &Deltas) -> Self {
        match deltas.days.is_empty() {
            true => Self::None,
            false => Self::Days(deltas.days.keys().cloned().collect()),
        }
    }

    /// Returns the clients whose limits must be known.
    pub fn clients(&self) -> BTreeSet<&str> {
        match self {
            Self::None => BTreeSet::new(),
            Self::New(additions) => additions.keys().map(|(client_id, ..)| &**client_id).collect(),
            Self::Days(days) => days.iter().map(|(client_id, ..)| &**client_id).collect(),
            Self::Months(client_id, _) | Self::Settings(client_id, ..) => BTreeSet::from([client_id.as_str()]),
        }
    }
}

/// What becomes of the alerts about limits.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// For each alert to raise, its client.
    pub findings: Vec<(String, Finding)>,
    /// For each client, the ids of the alerts to resolve.
    pub resolved: BTreeMap<String, Vec<String>>,
    /// Number of counters that were stored and wrong.
    pub corrected_count: i64,
}

/// Brings the counters of the changed usage up to date, and evaluates their alerts. The sums are already changed, and the months are
/// locked, so no other transaction changes the usage or these counters until the commit.
pub async fn count(conn: &mut PgConnection, limits: &Limits, changes: &Changes) -> meterd_store::Result<Evaluated> {
    if limits.of.is_empty() {
        return Ok(Evaluated::default());
    }
    let changed = match changes {
        Changes::None => return Ok(Evaluated::default()),
        Changes::New(additions) => add(conn, additions).await?,
        Changes::Days(days) => {
            let mut wanted = BTreeSet::new();
            for (client_id, day, service, operation, model) in days {
                let touched =
                    limits.of(client_id).iter().filter(|limit| limit.filter.matches_names(service, operation, model));
                wanted.extend(touched.map(|limit| (&**client_id, limit.limit_id.as_str(), limit.period.start(*day))));
            }
            compute(conn, wanted).await?
        }
        Changes::Months(client_id, months) => {
            let mut stored = vec![];
            for month in months {
                let (first, end) = (month.first_day(), month.next().first_day());
                stored.extend(store::stored_between(conn, client_id, "", first, end).await?);
            }
            compute(conn, stored.iter().map(|(limit_id, start)| (client_id.as_str(), limit_id.as_str(), *start)))
                .await?
        }
        Changes::Settings(client_id, limit_id, days) => {
            let start = |day: &NaiveDate| Some(limits.find(client_id, limit_id)?.period.start(*day));
            let starts: BTreeSet<NaiveDate> = days.iter().filter_map(start).collect();
            compute(conn, starts.into_iter().map(|start| (client_id.as_str(), limit_id.as_str(), start))).await?
        }
    };
    evaluate(conn, limits, changed).await
}

/// Evaluates the alerts of all limits of a client in the periods that contain a day, and stores the counters that are not stored. The
/// month is locked.
pub async fn check(conn: &mut PgConnection, client_id: &str, day: NaiveDate) -> meterd_store::Result<Evaluated> {
    let limits = Limits::load(conn, &[client_id.to_owned()]).await?;
    if limits.of.is_empty() || !store::are_stored(conn).await? {
        return Ok(Evaluated::default());
    }
    let mut wanted = Wanted::default();
    wanted.push(client_id, "", day);
    let counters = store::read(conn, &wanted, false).await?.into_iter().map(|(_, counter)| counter).collect();
    evaluate(conn, &limits, counters).await
}

/// Adds to counters, and computes those that are not stored.
async fn add(conn: &mut PgConnection, additions: &Additions) -> meterd_store::Result<Vec<Counter>> {
    let mut changed = store::add(conn, additions).await?;
    if changed.len() < additions.len() {
        let stored: HashSet<(&str, &str, NaiveDate)> =
            changed.iter().map(|of| (&*of.client_id, &*of.limit_id, of.period_start)).collect();
        let missing: Vec<_> = additions
            .keys()
            .map(|(client_id, limit_id, start)| (&**client_id, &**limit_id, *start))
            .filter(|key| !stored.contains(key))
            .collect();
        let computed = compute(conn, missing).await?;
        changed.extend(computed);
    }
    Ok(changed)
}

/// Computes counters from the usage.
async fn compute<'w>(
    conn: &mut PgConnection,
    counters: impl IntoIterator<Item = (&'w str, &'w str, NaiveDate)>,
) -> meterd_store::Result<Vec<Counter>> {
    let mut wanted = Wanted::default();
    counters.into_iter().for_each(|(client_id, limit_id, start)| wanted.push(client_id, limit_id, start));
    if wanted.days.is_empty() || !store::are_stored(conn).await? {
        return Ok(vec![]);
    }
    Ok(store::read(conn, &wanted, true).await?.into_iter().map(|(_, counter)| counter).collect())
}

/// Stores changed counters, and says which alerts to raise and resolve.
async fn evaluate(conn: &mut PgConnection, limits: &Limits, changed: Vec<Counter>) -> meterd_store::Result<Evaluated> {
    let mut evaluated = Evaluated::default();
    let mut over = BTreeMap::<&str, Vec<(&str, NaiveDate, u16)>>::new();
    let mut new = vec![];
    for counter in &changed {
        let Counter { client_id, limit_id, period_start, open_percents, .. } = counter;
        let Some(limit) = limits.find(client_id, limit_id) else { continue };
        let reached = limit.reached(counter.used());
        for percent in reached.difference(open_percents) {
            let finding = limit.finding(*percent, *period_start, counter.used());
            evaluated.findings.push((client_id.clone(), finding));
        }
        let of_client = || open_percents.difference(&reached).map(|percent| (&**limit_id, *period_start, *percent));
        if open_percents.difference(&reached).next().is_some() {
            over.entry(client_id).or_default().extend(of_client());
        }
        let is_wrong = counter.computed.is_some() && counter.stored != counter.computed;
        evaluated.corrected_count += i64::from(is_wrong && counter.stored.is_some());
        if is_wrong || reached != *open_percents {
            new.push((counter, reached));
        }
    }
    store::put(conn, &new).await?;
    for (client_id, percents) in over {
        let alert_ids = store::open_alerts(conn, client_id, &percents).await?;
        evaluated.resolved.insert(client_id.to_owned(), alert_ids);
    }
    Ok(evaluated)
}
