//! One transaction: claim keys, insert the events whose keys were new, add them to days and months, commit.

use super::{Outcome, Recorded, Submission};
use crate::alerts::raise::{self, AlertSettings, ChangedMonth, raise_reached};
use crate::catalog::CatalogCache;
use crate::domain::alert::Alert;
use crate::domain::event::{ACCEPT_FUTURE_SECONDS_MAX, EventId, PricedEvent};
use crate::domain::period::{Month, day_of};
use crate::domain::rollup::Deltas;
use crate::error::Error;
use crate::store::keys::{Claimed, Claims, KeyHolder};
use crate::store::rollups::MonthRow;
use crate::store::{catalog, clients, events, is_lock_timeout, keys, locks, rollups};
use chrono::{NaiveDate, TimeDelta};
use sqlx::{Executor, PgConnection};
use std::collections::{BTreeSet, HashMap, HashSet};

/// An event lies at most so far after the time at which its key was claimed: the most that may be accepted.
const KEY_LEAD: TimeDelta = TimeDelta::seconds(ACCEPT_FUTURE_SECONDS_MAX as i64);

/// Records a batch and gives an outcome for each, in order. An event of a closed month, or one whose key may be pruned, is
/// refused, unless its key is there. On an error the connection is in a transaction: drop it.
///
/// Lock order: versions, keys, months, month services, days, alerts, feed counter; within each, sorted.
pub(super) async fn record(
    conn: &mut PgConnection,
    cache: &CatalogCache,
    alert_settings: &AlertSettings,
    batch: &[&Submission],
) -> sqlx::Result<Vec<Outcome>> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; batch.len()];
    let mut open: Vec<usize> = (0..batch.len()).collect();
    // Twice at most, unless a month closes in between: what stays open had the key of an event that was refused, and every
    // other event that would be refused has been.
    while !open.is_empty() {
        let submissions: Vec<_> = open.iter().map(|&index| batch[index]).collect();
        let settled = record_once(conn, cache, alert_settings, &submissions).await?;
        open.iter().zip(settled).for_each(|(&index, outcome)| outcomes[index] = outcome);
        open.retain(|&index| outcomes[index].is_none());
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// Does one transaction. No outcome, where an event may claim its key now that the one before it was refused.
async fn record_once(
    conn: &mut PgConnection,
    cache: &CatalogCache,
    alert_settings: &AlertSettings,
    batch: &[&Submission],
) -> sqlx::Result<Vec<Option<Outcome>>> {
    let leaders = leaders(batch);
    let mut claims = Claims::default();
    for submission in leaders.iter().map(|&index| batch[index]).filter(|leader| leader.refuse_if_new.is_none()) {
        let event = &submission.event;
        let Submission { payload_hash, id, backfill, .. } = submission;
        claims.push(&event.client_id, &event.idempotency_key, payload_hash, *id, *backfill);
    }
    let client_ids: BTreeSet<&str> = batch.iter().map(|submission| &*submission.event.client_id).collect();
    let client_ids: Vec<String> = client_ids.into_iter().map(String::from).collect();

    // Held against all clients, not one: no reason to try them apart.
    let held_for_all = |error| if is_lock_timeout(&error) { sqlx::Error::PoolTimedOut } else { error };
    locks::begin_sharing_versions(conn).await.map_err(held_for_all)?;
    let claimed = keys::claim(conn, &claims, &client_ids).await?;
    let mut catalog = cache.current();
    if claimed.catalog_version != catalog.version {
        // Nobody can change it again before the commit: the versions lock is held.
        catalog = cache.adopt(catalog::load(conn).await?);
    }

    // Who has each key when this transaction is through: an event of the batch, or one that was there.
    let mut holders: HashMap<(&str, &str), KeyHolder> = HashMap::with_capacity(leaders.len());
    let mut recorded = Vec::with_capacity(leaders.len());
    let (mut taken_clients, mut taken_keys) = (vec![], vec![]);
    // New events that are refused: their keys are free again with the commit.
    let (mut free_clients, mut free_keys) = (vec![], vec![]);
    for &index in &leaders {
        let Submission { event, id, payload_hash, .. } = batch[index];
        if claimed.event_seqs.contains(&id.seq) {
            let day = day(&claimed, batch[index])?;
            if refusal(&claimed, batch[index], day).is_some() {
                free_clients.push(event.client_id.to_string());
                free_keys.push(event.idempotency_key.to_string());
                continue;
            }
            let charge = catalog.charge(event);
            recorded.push(PricedEvent { event, id: *id, day, charge });
            let holder = KeyHolder { payload_hash: payload_hash.to_vec(), id: *id, charge: Some(charge) };
            holders.insert(key(batch[index]), holder);
        } else {
            taken_clients.push(event.client_id.to_string());
            taken_keys.push(event.idempotency_key.to_string());
        }
    }
    if !free_keys.is_empty() {
        keys::give_back(conn, &free_clients, &free_keys).await?;
    }
    let earlier =
        if taken_keys.is_empty() { HashMap::new() } else { keys::holders(conn, &taken_clients, &taken_keys).await? };
    let mut raised = vec![];
    if !recorded.is_empty() {
        events::insert(conn, &recorded).await?;
        let months = rollups::add(conn, &Deltas::of_events(&recorded)).await?;
        raised = raise_alerts(conn, alert_settings, batch, &recorded, &claimed, &months).await?;
    }
    conn.execute("COMMIT").await?;
    raise::count(&raised);

    holders.extend(earlier.iter().map(|((client, key), holder)| ((&**client, &**key), holder.clone())));
    let free: HashSet<(&str, &str)> =
        free_clients.iter().zip(&free_keys).map(|(client_id, key)| (client_id.as_str(), key.as_str())).collect();
    let settle = |&submission: &&Submission| {
        if !free.contains(&key(submission)) || submission.refuse_if_new.is_some() {
            return outcome(submission, holders.get(&key(submission))).map(Some);
        }
        Ok(refusal(&claimed, submission, day(&claimed, submission)?).map(Outcome::Rejected))
    };
    batch.iter().map(settle).collect()
}

/// The day of an event in its client's zone.
fn day(claimed: &Claimed, submission: &Submission) -> sqlx::Result<NaiveDate> {
    let zone = claimed.time_zones.get(&*submission.event.client_id).ok_or_else(client_vanished)?;
    Ok(day_of(submission.event.event_time, clients::zone(zone)?))
}

/// Why an event is not taken as a new one, if it is not.
fn refusal(claimed: &Claimed, submission: &Submission, day: NaiveDate) -> Option<Error> {
    if let Some(closed) = claimed.closed_through.filter(|closed| Month::of(day) <= *closed) {
        return Some(Error::month_closed(closed));
    }
    let pruned = claimed.keys_pruned_through.filter(|_| !submission.backfill)?;
    (submission.event.event_time < pruned + KEY_LEAD).then(|| Error::key_pruned(pruned))
}

/// Raises the alerts that the changed months have reached.
async fn raise_alerts(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    batch: &[&Submission],
    recorded: &[PricedEvent<'_>],
    claimed: &Claimed,
    months: &[MonthRow],
) -> sqlx::Result<Vec<Alert>> {
    let backfilled: HashSet<EventId> =
        batch.iter().filter(|submission| submission.backfill).map(|submission| submission.id).collect();
    // Months that more than a backfill has changed; without one there is nothing to tell apart.
    let live: HashSet<(&str, Month)> = recorded
        .iter()
        .filter(|priced| !backfilled.is_empty() && !backfilled.contains(&priced.id))
        .map(|priced| (&*priced.event.client_id, Month::of(priced.day)))
        .collect();
    let changed = months
        .iter()
        .map(|row| {
            let zone = claimed.time_zones.get(&row.client_id).ok_or_else(client_vanished)?;
            let backfill = !backfilled.is_empty() && !live.contains(&(row.client_id.as_str(), row.month));
            Ok(ChangedMonth { row, zone: clients::zone(zone)?, backfill })
        })
        .collect::<sqlx::Result<Vec<_>>>()?;
    raise_reached(conn, settings, &claimed.policies, &changed).await
}

/// The first event of each client and key, sorted by client and key: the one that may claim it. Of several with the same
/// key, one that may be new leads before one that may only be a repeat.
fn leaders(batch: &[&Submission]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|&index| {
        let Submission { event, refuse_if_new, .. } = batch[index];
        (&event.client_id, &event.idempotency_key, refuse_if_new.is_some(), index)
    });
    order.dedup_by_key(|&mut index| key(batch[index]));
    order
}

fn key(submission: &Submission) -> (&str, &str) {
    (&submission.event.client_id, &submission.event.idempotency_key)
}

/// The outcome of an event, by comparison with the one that has its key.
fn outcome(submission: &Submission, holder: Option<&KeyHolder>) -> sqlx::Result<Outcome> {
    match (holder, &submission.refuse_if_new) {
        (Some(holder), _) if holder.payload_hash != submission.payload_hash => Ok(Outcome::Conflict(holder.id)),
        (Some(holder), _) => {
            let recorded = Recorded { id: holder.id, charge: holder.charge };
            // Its own: recorded now, or by an earlier try of this batch that had come through after all.
            let own = holder.id == submission.id;
            Ok(if own { Outcome::Accepted(recorded) } else { Outcome::Duplicate(recorded) })
        }
        (None, Some(refusal)) => Ok(Outcome::Rejected(refusal.clone())),
        (None, None) => Err(sqlx::Error::Protocol("an idempotency key was neither free nor taken".into())),
    }
}

fn client_vanished() -> sqlx::Error {
    sqlx::Error::Protocol("a client was removed while its event was recorded".into())
}
