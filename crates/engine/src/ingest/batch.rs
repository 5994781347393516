//! One transaction: claim keys, insert the events whose keys were new, add them to days and months, commit.

mod preview;

pub use preview::preview;

use super::clients::ClientSettings;
use super::{Outcome, Submission, repeats};
use crate::alerts::raise::{self, AlertSettings, ChangedMonth, raise_reached};
use crate::catalog::CatalogCache;
use crate::refusal::Refusal;
use chrono::NaiveDate;
use chrono_tz::Tz;
use foldhash::fast::RandomState;
use meterd_domain::alert::Alert;
use meterd_domain::event::{KEY_LEAD, PricedEvent};
use meterd_domain::period::{Month, day_of};
use meterd_domain::rollup::Deltas;
use meterd_store::StoreError;
use meterd_store::catalog;
use meterd_store::holders::KeyHolder;
use meterd_store::locks::{self, Versions};
use meterd_store::record::{self, NewEvent, Written};
use meterd_store::rollups::MonthRow;
use sqlx::{Executor, PgConnection};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// So many new events and more are copied; below it one statement is faster.
const COPY_EVENTS_MIN: usize = 50;

/// Records a batch and gives an outcome for each, in order. An event of a closed month, or one whose key may be pruned, is
/// refused, unless its key is there. On an error the connection is in a transaction: drop it.
///
/// Lock order: versions, keys, months, month services, days, alerts, feed counter; within each, sorted.
pub(super) async fn record(
    conn: &mut PgConnection,
    cache: &CatalogCache,
    clients: &mut ClientSettings,
    alert_settings: &AlertSettings,
    batch: &[&Submission],
) -> meterd_store::Result<Vec<Outcome>> {
    let of_clients = Clients::of(batch);
    let mut catalog = cache.current();
    let mut copy = true;
    // Twice at most: with a copy, and without where that has met a key that was taken.
    loop {
        let versions = begin(conn).await?;
        if versions.catalog != catalog.version {
            // Nobody can change it again before the commit: the versions lock is held.
            catalog = cache.adopt(catalog::load(conn).await?);
        }
        clients.know(conn, versions.client_settings, &of_clients.ids).await?;
        let dated = dated(clients, &versions, &of_clients, batch)?;
        let order = Order::of(&dated, &of_clients);
        let (leaders, new): (Vec<usize>, Vec<NewEvent<'_>>) = order
            .leaders
            .iter()
            .enumerate()
            .filter(|&(_, &index)| dated[index].refusal.is_none())
            .map(|(leader, &index)| {
                let Dated { submission: Submission { event, id, payload_hash, backfill, .. }, day, .. } = dated[index];
                let priced = PricedEvent { event, id: *id, day, charge: catalog.charge(event) };
                (leader, NewEvent { priced, payload_hash, backfill: *backfill })
            })
            .unzip();
        copy &= new.len() >= COPY_EVENTS_MIN;
        match write(conn, &new, copy).await {
            Ok(Wrote { claimed, months }) => {
                let is_recorded =
                    |new: &NewEvent<'_>| claimed.as_ref().is_none_or(|all| all.contains(&new.priced.id.seq));
                let recorded = || new.iter().filter(|new| is_recorded(new));
                let raised = raise_alerts(conn, alert_settings, clients, recorded, months).await?;
                let mut holders = vec![None; order.leaders.len()];
                for (leader, new) in leaders.iter().zip(&new).filter(|(_, new)| is_recorded(new)) {
                    let NewEvent { priced: PricedEvent { id, charge, .. }, payload_hash, .. } = new;
                    holders[*leader] = Some(KeyHolder { payload_hash: **payload_hash, id: *id, charge: Some(*charge) });
                }
                let earlier = repeats::find_earlier_holders(conn, &dated, &order, &mut holders).await?;
                let conflicts = repeats::conflicts(conn, &dated, &order, &holders).await?;
                conn.execute("COMMIT").await?;
                raise::count(&raised);
                let outcome = |(index, (dated, &leader)): (usize, (&Dated<'_>, &usize))| {
                    // A month that is closed is told also where the key goes to another event of the batch.
                    let told = dated.is_of_closed_time() && !earlier.contains(&leader);
                    let holder = holders[leader].as_ref().filter(|_| !told);
                    repeats::outcome(dated, holder, conflicts.get(&index))
                };
                return dated.iter().zip(&order.leader_of).enumerate().map(outcome).collect();
            }
            Err(error) if copy && error.is_unique_violation() => {
                copy = false;
                conn.execute("ROLLBACK").await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The clients of a batch, sorted, and which of them each event is of.
struct Clients<'a> {
    ids: Vec<&'a Arc<str>>,
    of: Vec<usize>,
}

impl<'a> Clients<'a> {
    fn of(batch: &[&'a Submission]) -> Self {
        let mut numbers: HashMap<&str, usize, RandomState> = HashMap::default();
        let mut ids = vec![];
        let mut of = Vec::with_capacity(batch.len());
        for submission in batch {
            let client_id = &submission.event.client_id;
            of.push(*numbers.entry(client_id).or_insert_with(|| {
                ids.push(client_id);
                ids.len() - 1
            }));
        }
        let mut sorted: Vec<usize> = (0..ids.len()).collect();
        sorted.sort_unstable_by_key(|&number| ids[number]);
        let mut places = vec![0; ids.len()];
        sorted.iter().enumerate().for_each(|(place, &number)| places[number] = place);
        of.iter_mut().for_each(|number| *number = places[*number]);
        Self { ids: sorted.iter().map(|&number| ids[number]).collect(), of }
    }
}

async fn begin(conn: &mut PgConnection) -> meterd_store::Result<Versions> {
    // Held against all clients, not one: no reason to try them apart.
    let held_for_all = |error: StoreError| if error.is_lock_timeout() { StoreError::Timeout } else { error };
    locks::begin_sharing_versions(conn).await.map_err(held_for_all)
}

/// What was written.
struct Wrote {
    /// Sequence numbers of the events whose keys were free, unless all were.
    claimed: Option<HashSet<i64>>,
    months: Vec<MonthRow>,
}

/// Writes the events whose keys are free.
async fn write(conn: &mut PgConnection, new: &[NewEvent<'_>], copy: bool) -> meterd_store::Result<Wrote> {
    if new.is_empty() {
        return Ok(Wrote { claimed: None, months: vec![] });
    }
    let deltas = Deltas::of_events(new.iter().map(|new| &new.priced));
    if copy {
        return Ok(Wrote { claimed: None, months: record::copy(conn, new, &deltas).await? });
    }
    let claimed = match record::record(conn, new, &deltas).await? {
        Written::All(months) => return Ok(Wrote { claimed: None, months }),
        Written::Claimed(claimed) => claimed,
    };
    let free: Vec<NewEvent<'_>> = new.iter().filter(|new| claimed.contains(&new.priced.id.seq)).cloned().collect();
    let deltas = Deltas::of_events(free.iter().map(|new| &new.priced));
    let months = if free.is_empty() { vec![] } else { record::record_claimed(conn, &free, &deltas).await? };
    Ok(Wrote { claimed: Some(claimed), months })
}

/// A submission with the day of its event, and why it is not taken as a new one, if it is not.
pub(super) struct Dated<'a> {
    pub submission: &'a Submission,
    /// In its client's zone.
    day: NaiveDate,
    pub refusal: Option<Refusal>,
}

impl Dated<'_> {
    /// Its month is closed, or keys of its time may be pruned.
    fn is_of_closed_time(&self) -> bool {
        self.refusal.is_some() && self.submission.refuse_if_new.is_none()
    }
}

fn client_vanished() -> StoreError {
    StoreError::Stale("a client was removed while its event was recorded")
}

fn dated<'a>(
    settings: &ClientSettings,
    versions: &Versions,
    clients: &Clients<'_>,
    batch: &[&'a Submission],
) -> meterd_store::Result<Vec<Dated<'a>>> {
    let zones: Vec<Option<Tz>> = clients.ids.iter().map(|client_id| settings.zone(client_id)).collect();
    let dated = batch.iter().zip(&clients.of).map(|(&submission, &client)| {
        let Submission { event, backfill, refuse_if_new, .. } = submission;
        // What may only be a repeat is not written, and brings no client into being.
        let zone = zones[client].or(refuse_if_new.is_some().then_some(Tz::UTC)).ok_or_else(client_vanished)?;
        let day = day_of(event.event_time, zone);
        let closed = versions.closed_through.filter(|closed| Month::of(day) <= *closed);
        let pruned = versions.keys_pruned_through.filter(|pruned| !backfill && event.event_time < *pruned + KEY_LEAD);
        let refusal = refuse_if_new.clone().or_else(|| closed.map(Refusal::month_closed));
        Ok(Dated { submission, day, refusal: refusal.or_else(|| pruned.map(Refusal::key_pruned)) })
    });
    dated.collect()
}

/// Which events may claim their keys.
pub(super) struct Order {
    /// The first event of each client and key, sorted by client and key. Of several with the same key, one that may be new
    /// leads before one that may only be a repeat.
    pub leaders: Vec<usize>,
    /// Of each event, where in `leaders` the one is that has its key.
    pub leader_of: Vec<usize>,
}

impl Order {
    fn of(dated: &[Dated<'_>], clients: &Clients<'_>) -> Self {
        let key = |index: usize| (clients.of[index], dated[index].submission.event.idempotency_key.as_bytes());
        let keys: Vec<_> = (0..dated.len()).map(|index| (key(index), dated[index].refusal.is_some())).collect();
        let (mut leaders, mut leader_of) = (Vec::with_capacity(dated.len()), vec![0; dated.len()]);
        for index in in_order(&keys) {
            if leaders.last().is_none_or(|&leader| key(leader) != key(index)) {
                leaders.push(index);
            }
            leader_of[index] = leaders.len() - 1;
        }
        Self { leaders, leader_of }
    }
}

/// A client's number, and a key.
type ClientKey<'a> = (usize, &'a [u8]);

/// The places of these, sorted by client, key, and whether it is refused.
///
/// Keys often begin alike: what follows is compared as a number, and almost never as a text.
fn in_order(keys: &[(ClientKey<'_>, bool)]) -> Vec<usize> {
    let text = |index: usize| keys[index].0.1;
    let alike = (1..keys.len()).fold(usize::MAX, |alike, index| alike.min(alike_of(text(index - 1), text(index))));
    let number = |index| number_of(text(index).get(alike..).unwrap_or_default());
    let mut sorted: Vec<_> = (0..keys.len()).map(|index| (keys[index].0.0, number(index), index)).collect();
    sorted.sort_unstable_by(|left, right| {
        let rest = |index: usize| (text(index), keys[index].1, index);
        (left.0, left.1).cmp(&(right.0, right.1)).then_with(|| rest(left.2).cmp(&rest(right.2)))
    });
    sorted.into_iter().map(|(.., index)| index).collect()
}

/// How many bytes two texts begin with alike.
fn alike_of(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// The first eight bytes as a number that is in their order.
fn number_of(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    let count = bytes.len().min(first.len());
    first[..count].copy_from_slice(&bytes[..count]);
    u64::from_be_bytes(first)
}

/// Raises the alerts that the changed months have reached.
async fn raise_alerts<'a, I: Iterator<Item = &'a NewEvent<'a>>>(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    clients: &ClientSettings,
    recorded: impl Fn() -> I,
    months: Vec<MonthRow>,
) -> meterd_store::Result<Vec<Alert>> {
    // Months that more than a backfill has changed; without one there is nothing to tell apart.
    let any_backfill = recorded().any(|new| new.backfill);
    let live: HashSet<(&str, Month)> = recorded()
        .filter(|new| any_backfill && !new.backfill)
        .map(|new| (&*new.priced.event.client_id, Month::of(new.priced.day)))
        .collect();
    let changed = months
        .into_iter()
        .map(|row| {
            let backfill = any_backfill && !live.contains(&(row.client_id.as_str(), row.month));
            Ok(ChangedMonth { zone: clients.zone(&row.client_id).ok_or_else(client_vanished)?, backfill, row })
        })
        .collect::<meterd_store::Result<Vec<_>>>()?;
    raise_reached(conn, settings, &clients.policies, changed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_are_in_the_order_of_their_bytes(
            start in "[a-z\\x00]{0,12}",
            rows in proptest::collection::vec((0usize..3, "[ab\\x00]{0,12}|[0-9]{1,3}", proptest::bool::ANY), 0..60)
        ) {
            let texts: Vec<String> = rows.iter().map(|row| format!("{start}{}", row.1)).collect();
            let keys: Vec<_> = rows.iter().zip(&texts).map(|(row, text)| ((row.0, text.as_bytes()), row.2)).collect();
            let mut sorted: Vec<usize> = (0..keys.len()).collect();
            sorted.sort_by_key(|&index| keys[index]);
            proptest::prop_assert_eq!(in_order(&keys), sorted);
        }
    }
}
