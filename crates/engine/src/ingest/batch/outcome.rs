//! Decides the outcome of each event, by comparison with the event that has its key.

use super::claim::Claims;
use super::date::Dated;
use crate::ingest::key_filters::ClosedGenerations;
use crate::ingest::{Conflict, Outcome, Recorded};
use meterd_domain::event::{UsageEvent, differing_fields, repeats};
use meterd_store::StoreError;
use meterd_store::database::connect;
use meterd_store::usage::holders::{self, KeyHolder, WantedKeys};
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};

/// The events that have the keys of the claims, as far as they were looked up.
pub struct Holders {
    /// The current generation of keys.
    generation: i32,
    /// By claim.
    pub of: Vec<Option<KeyHolder>>,
}

impl Holders {
    /// Returns the claims whose holders are known.
    pub fn known(&self) -> HashSet<usize> {
        (0..self.of.len()).filter(|&claim| self.of[claim].is_some()).collect()
    }
}

/// Returns holders that are all unknown, or `None` if a key may be in a closed generation.
pub fn none_in_closed(closed: &ClosedGenerations, dated: &[Dated<'_>], claims: &Claims) -> Option<Holders> {
    let may_be_closed = claims.event_of.iter().any(|&event| {
        let event = &dated[event].submission.event;
        closed.that_may_have(&event.client_id, &event.idempotency_key).next().is_some()
    });
    (!may_be_closed).then(|| Holders { generation: closed.current, of: vec![None; claims.event_of.len()] })
}

/// Returns the holder of each claim's key in the closed generations.
pub async fn find_in_closed(
    conn: &mut PgConnection,
    closed: &ClosedGenerations,
    dated: &[Dated<'_>],
    claims: &Claims,
) -> meterd_store::Result<Holders> {
    let mut holders = Holders { generation: closed.current, of: vec![None; claims.event_of.len()] };
    if closed.is_empty() {
        return Ok(holders);
    }
    let (mut wanted, mut claims_of) = (WantedKeys::default(), vec![]);
    for (claim, &event) in claims.event_of.iter().enumerate() {
        let event = &dated[event].submission.event;
        for generation in closed.that_may_have(&event.client_id, &event.idempotency_key) {
            wanted.push(generation, &event.client_id, &event.idempotency_key);
            claims_of.push(claim);
        }
    }
    if claims_of.is_empty() {
        return Ok(holders);
    }
    metrics::counter!("meterd_closed_key_lookups_total").increment(claims_of.len() as u64);
    for (claim, holder) in claims_of.into_iter().zip(holders::find(conn, &wanted).await?) {
        holders.of[claim] = holders.of[claim].take().or(holder);
    }
    if holders.of.iter().any(Option::is_some) {
        // `holders::find` has turned on custom plans. Planning the statements of a small post takes longer than running
        // them.
        connect::plan_as_configured(conn).await?;
    }
    Ok(holders)
}

/// Adds the holders of keys that were taken in the current generation, and returns the claims of these keys.
pub async fn find_in_current(
    conn: &mut PgConnection,
    dated: &[Dated<'_>],
    claims: &Claims,
    holders: &mut Holders,
) -> meterd_store::Result<HashSet<usize>> {
    let Holders { generation, of: holders } = holders;
    let taken: Vec<usize> = (0..holders.len()).filter(|&claim| holders[claim].is_none()).collect();
    if taken.is_empty() {
        return Ok(HashSet::new());
    }
    let mut wanted = WantedKeys::default();
    for &claim in &taken {
        let event = &dated[claims.event_of[claim]].submission.event;
        wanted.push(*generation, &event.client_id, &event.idempotency_key);
    }
    let earlier = holders::find(conn, &wanted).await?;
    for (&claim, holder) in taken.iter().zip(earlier) {
        holders[claim] = holder;
    }
    Ok(taken.into_iter().filter(|&claim| holders[claim].is_some()).collect())
}

fn is_repeat(dated: &Dated<'_>, holder: &KeyHolder) -> bool {
    let submission = dated.submission;
    repeats((&submission.event, &submission.payload_hash), (holder.id.time, &holder.payload_hash))
}

/// Decides the outcome of each event. `holders` has the event that holds the key of each claim; `earlier` has the claims whose
/// holder was recorded before this batch.
pub async fn decide(
    conn: &mut PgConnection,
    dated: &[Dated<'_>],
    claims: &Claims,
    holders: &[Option<KeyHolder>],
    earlier: &HashSet<usize>,
) -> meterd_store::Result<Vec<meterd_store::Result<Outcome>>> {
    let conflicts = conflicts(conn, dated, claims, holders).await?;
    let decide = |(index, (dated, &claim)): (usize, (&Dated<'_>, &usize))| {
        // A closed month is the answer even if the key went to another event of the batch.
        let is_closed = dated.is_of_closed_time() && !earlier.contains(&claim);
        let holder = holders[claim].as_ref().filter(|_| !is_closed);
        outcome(dated, holder, conflicts.get(&index))
    };
    Ok(dated.iter().zip(&claims.claim_of).enumerate().map(decide).collect())
}

/// Returns the events of the batch, by index, whose key belongs to another payload.
async fn conflicts(
    conn: &mut PgConnection,
    dated: &[Dated<'_>],
    claims: &Claims,
    holders: &[Option<KeyHolder>],
) -> meterd_store::Result<HashMap<usize, Conflict>> {
    let holder_of = |index: usize| holders[claims.claim_of[index]].as_ref();
    let differing: Vec<(usize, &KeyHolder)> = (0..dated.len())
        .filter_map(|index| Some((index, holder_of(index)?)))
        .filter(|(index, holder)| !is_repeat(&dated[*index], holder))
        .collect();
    // The event that has the key need not be read if it is in this batch.
    let at_hand = |index: usize| {
        let claim = dated[claims.event_of[claims.claim_of[index]]].submission;
        holder_of(index).is_some_and(|holder| holder.id == claim.id).then_some(&claim.event)
    };
    let (numbers, wanted): (Vec<usize>, Vec<_>) = differing
        .iter()
        .filter(|(index, _)| at_hand(*index).is_none())
        .map(|(index, holder)| (*index, (&*dated[*index].submission.event.client_id, holder.id)))
        .unzip();
    let found = if wanted.is_empty() { vec![] } else { holders::events(conn, &wanted).await? };
    let found = found.into_iter().map(|recorded| recorded.map(|recorded| recorded.event));
    let found: HashMap<usize, Option<UsageEvent>> = numbers.into_iter().zip(found).collect();
    let conflict = |(index, holder): (usize, &KeyHolder)| {
        let sent = dated[index].submission;
        let recorded = at_hand(index).or_else(|| found.get(&index)?.as_ref());
        let fields = recorded
            .map(|recorded| differing_fields((&sent.event, &sent.payload_hash), (recorded, &holder.payload_hash)));
        (index, Conflict { holder: holder.id, fields: fields.unwrap_or_default() })
    };
    Ok(differing.into_iter().map(conflict).collect())
}

/// Returns the outcome of one event.
fn outcome(
    dated: &Dated<'_>,
    holder: Option<&KeyHolder>,
    conflict: Option<&Conflict>,
) -> meterd_store::Result<Outcome> {
    let Dated { submission, refusal, .. } = dated;
    match (holder, conflict, refusal) {
        (Some(_), Some(conflict), _) => Ok(Outcome::Conflict(conflict.clone())),
        (Some(holder), None, _) => {
            let recorded = Recorded { id: holder.id, charge: holder.charge };
            // The event itself has the key: it was recorded now, or by an earlier attempt whose outcome was unknown.
            let own = holder.id == submission.id;
            Ok(if own { Outcome::Accepted(recorded) } else { Outcome::Duplicate(recorded) })
        }
        (None, _, Some(refusal)) => Ok(Outcome::Rejected(refusal.clone())),
        (None, _, None) => Err(StoreError::Stale("an idempotency key was neither free nor taken")),
    }
}
