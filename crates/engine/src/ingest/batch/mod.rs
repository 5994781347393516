//! Records a batch in five steps:
//!
//! 1. [`date`]: the day of each event in its client's zone, and whether its month is closed.
//! 2. [`claim`]: which events claim their keys, one for each key of a client. Keys in closed generations are taken. The post claims
//!    the others in the current generation.
//! 3. [`price`]: the charge of each of them.
//! 4. post: [`crate::ledger`] writes keys, events and sums, and runs the effects, such as alerts. A small batch of new
//!    events is written in one call of an SQL function if possible, and otherwise in a transaction of several
//!    statements.
//! 5. [`outcome`]: what each caller is told, by comparison with the event that has the key.

mod claim;
mod date;
mod outcome;
mod pause;
mod preview;
mod price;

pub use preview::preview;

use super::{Outcome, SharedState, Submission};
use crate::ledger::{self, AlertBounds, AlertEffect, ClientSettings, Method, Posted, Tiers, Versioned};
use claim::Claims;
use date::{Clients, Dated, date};
use meterd_domain::event::PricedEvent;
use meterd_domain::period::Month;
use meterd_domain::pricing::Pricing;
use meterd_store::locks::Versions;
use meterd_store::usage::holders::KeyHolder;
use meterd_store::usage::record::{NewEvent, Tried};
use meterd_store::usage::rollups::MonthRow;
use outcome::Holders;
use pause::Pause;
use price::{Priced, price};
use sqlx::{Executor, PgConnection};
use std::collections::HashSet;
use std::sync::Arc;

/// Minimum number of new events for which COPY is faster than the statements, if COPY does not wait for the network.
const COPY_EVENTS_MIN: usize = 50;

/// Records batches of one writer. It belongs to the writer's connection, and must be dropped with it.
pub(super) struct Recorder {
    /// Minimum number of new events that are written with COPY.
    copy_events_min: usize,
    settings: ClientSettings,
    /// The versions that the last transaction of several statements has read. `None` before the first one.
    versions: Option<Versions>,
    one_call_pause: Pause,
    copy_pause: Pause,
}

/// A batch whose events are dated, claimed and priced.
struct Prepared<'a> {
    dated: Vec<Dated<'a>>,
    claims: Claims,
    /// The events that have the keys, if known: at first, those in closed generations; after the post, also the new
    /// ones.
    holders: Holders,
    priced: Priced<'a>,
}

impl Recorder {
    /// `copies` says whether COPY may be used: see [`meterd_store::database::connect::copies_at_once`].
    pub(super) fn new(copies: bool) -> Self {
        Self {
            copy_events_min: if copies { COPY_EVENTS_MIN } else { usize::MAX },
            settings: ClientSettings::default(),
            versions: None,
            one_call_pause: Pause::default(),
            copy_pause: Pause::default(),
        }
    }

    /// Records a batch and returns an outcome for each event, in order. An event of a closed month, or one whose key may have been
    /// deleted, is refused, unless its key is found. After an error the connection may still be in a transaction, so the caller must
    /// drop it.
    pub(super) async fn record(
        &mut self,
        conn: &mut PgConnection,
        shared: &SharedState,
        batch: &[&Submission],
    ) -> meterd_store::Result<Vec<Outcome>> {
        let clients = Clients::of(batch);
        if batch.len() < self.copy_events_min
            && self.one_call_pause.is_over()
            && let Some(outcomes) = self.record_in_one_call(conn, shared, &clients, batch).await?
        {
            return Ok(outcomes);
        }
        self.record_in_transaction(conn, shared, &clients, batch).await
    }

    /// Records a batch in one call of `record_events`, with the versions of the last transaction of several statements.
    /// Returns `None`, and writes nothing, if that is not possible.
    async fn record_in_one_call(
        &mut self,
        conn: &mut PgConnection,
        shared: &SharedState,
        clients: &Clients<'_>,
        batch: &[&Submission],
    ) -> meterd_store::Result<Option<Vec<Outcome>>> {
        let Some(versions) = self.versions else { return Ok(None) };
        let catalog = shared.catalog.current();
        if catalog.version != versions.catalog {
            return Ok(None);
        }
        // If a setting changes before it is read here, its version changes, too, and the call writes nothing.
        self.settings.know(conn, versions.client_settings, &clients.ids).await?;
        // Grants of credits are locked after the months.
        if clients.ids.iter().any(|client_id| self.settings.has_credits(client_id)) {
            return Ok(None);
        }
        let dated = date(&self.settings, &versions, clients, batch)?;
        let claims = Claims::of(&dated, clients);
        let closed = shared.key_filters.closed_before(versions.key_generation);
        let Some(holders) = outcome::none_in_closed(&closed, &dated, &claims) else { return Ok(None) };
        let pricing = Pricing { catalog: &catalog, plans: &self.settings.plans };
        let priced = price(pricing, &dated, &claims, &holders.of);
        let bounds = AlertBounds::new(&shared.alert_settings, &self.settings);
        // A refused event may be a repeat. To find out, its key must be looked up, which needs a transaction. So do tiers, because a
        // charge depends on what its month has after its row is locked.
        if priced.new.len() < claims.event_of.len() || priced.is_tiered {
            return Ok(None);
        }
        let tried = ledger::try_record(conn, &versions, &priced.new, &bounds).await?;
        let Some((tried, pending)) = tried else { return Ok(None) };
        let result = match tried {
            Tried::Recorded => {
                self.one_call_pause.shorten();
                "recorded"
            }
            Tried::KeyTaken => {
                self.one_call_pause.begin();
                "key_taken"
            }
            Tried::Stale => "stale",
            Tried::BoundReached => "bound_reached",
        };
        metrics::counter!("meterd_one_call_batches_total", "result" => result).increment(1);
        if tried != Tried::Recorded {
            return Ok(None);
        }
        shared.pending_usage.note(pending);
        let mut prepared = Prepared { dated, claims, holders, priced };
        let earlier = prepared.add_recorded(|_| true);
        let Prepared { dated, claims, holders, .. } = &prepared;
        let outcomes = outcome::decide(conn, dated, claims, &holders.of, &earlier).await?;
        outcomes.into_iter().collect::<meterd_store::Result<_>>().map(Some)
    }

    /// Records a batch in a transaction of several statements.
    async fn record_in_transaction(
        &mut self,
        conn: &mut PgConnection,
        shared: &SharedState,
        clients: &Clients<'_>,
        batch: &[&Submission],
    ) -> meterd_store::Result<Vec<Outcome>> {
        let mut may_copy = true;
        // At most twice: with COPY, and again without it if COPY met a taken key.
        loop {
            let mut tx = Versioned::begin(conn).await?;
            self.versions = Some(tx.versions);
            let catalog = tx.catalog(&shared.catalog).await?;
            let version = tx.versions.client_settings;
            self.settings.know(tx.conn(), version, &clients.ids).await?;
            let dated = date(&self.settings, &tx.versions, clients, batch)?;
            let claims = Claims::of(&dated, clients);
            let closed = shared.key_filters.closed_before(tx.versions.key_generation);
            let holders = outcome::find_in_closed(tx.conn(), &closed, &dated, &claims).await?;
            let pricing = Pricing { catalog: &catalog, plans: &self.settings.plans };
            let mut priced = price(pricing, &dated, &claims, &holders.of);
            let copies =
                may_copy && !priced.is_tiered && priced.new.len() >= self.copy_events_min && self.copy_pause.is_over();
            let method = if copies { Method::Copy } else { Method::Statement };
            let bounds = AlertBounds::new(&shared.alert_settings, &self.settings);
            let posted = match priced.is_tiered {
                true => post_tiered(tx, pricing, &mut priced, &bounds).await,
                false => tx.post(&priced.new, method, &bounds).await,
            };
            match posted {
                Err(error) if method == Method::Copy && error.is_unique_violation() => {
                    may_copy = false;
                    self.copy_pause.begin();
                    conn.execute("ROLLBACK").await?;
                }
                Err(error) => return Err(error),
                Ok(posted) => {
                    // The statements say which keys were taken, so the next batch can be copied once all keys were free.
                    if priced.new.iter().all(|new| posted.is_recorded(new)) {
                        self.copy_pause.shorten();
                    }
                    let prepared = Prepared { dated, claims, holders, priced };
                    return finish(posted, shared, &self.settings, prepared).await;
                }
            }
        }
    }
}

impl Prepared<'_> {
    /// Adds the recorded ones of the new events to the holders. Returns the claims whose holders were known before.
    fn add_recorded(&mut self, is_recorded: impl Fn(&NewEvent<'_>) -> bool) -> HashSet<usize> {
        let earlier = self.holders.known();
        for (&claim, new) in self.priced.claims.iter().zip(&self.priced.new).filter(|(_, new)| is_recorded(new)) {
            let NewEvent { priced, payload_hash, .. } = new;
            let holder = KeyHolder { payload_hash: **payload_hash, id: priced.id, charge: Some(priced.charge) };
            self.holders.of[claim] = Some(holder);
        }
        earlier
    }
}

/// Posts events of which some are charged by tiers: claims their keys, locks their months, and then charges them.
async fn post_tiered<'c>(
    tx: Versioned<'c>,
    pricing: Pricing<'_>,
    priced: &mut Priced<'_>,
    bounds: &AlertBounds<'_>,
) -> meterd_store::Result<Posted<'c>> {
    let mut claimed = tx.claim_keys(&priced.new).await?;
    let months = priced.months(|new| claimed.is_claimed(new));
    if !months.is_empty() {
        claimed.lock_months(&months).await?;
        let mut tiers = Tiers::read(claimed.conn(), pricing, &months).await?;
        priced.charge(&mut tiers, |new| claimed.is_claimed(new));
        tiers.write(claimed.conn()).await?;
    }
    claimed.post(&priced.new, bounds).await
}

/// Runs the effects, decides the outcomes, and commits.
async fn finish(
    posted: Posted<'_>,
    shared: &SharedState,
    settings: &ClientSettings,
    mut prepared: Prepared<'_>,
) -> meterd_store::Result<Vec<Outcome>> {
    let backfills = Backfills::of(prepared.priced.new.iter().filter(|new| posted.is_recorded(new)));
    let mut earlier = prepared.add_recorded(|new| posted.is_recorded(new));
    let effect = AlertEffect::Raise { clients: settings, is_backfill: &|row| backfills.are_all_of(row) };
    let mut done = posted.run_effects(&shared.alert_settings, effect).await?;
    let Prepared { dated, claims, holders, .. } = &mut prepared;
    earlier.extend(outcome::find_in_current(done.conn(), dated, claims, holders).await?);
    let outcomes = outcome::decide(done.conn(), dated, claims, &holders.of, &earlier).await?;
    done.commit(&shared.pending_usage).await?;
    outcomes.into_iter().collect()
}

/// Which months of a batch were changed by backfills alone.
struct Backfills<'a> {
    any: bool,
    /// Months with a live event, if the batch has a backfill.
    live: HashSet<(&'a str, Month)>,
}

impl<'a> Backfills<'a> {
    fn of<'n>(recorded: impl Iterator<Item = &'n NewEvent<'a>> + Clone) -> Self
    where
        'a: 'n,
    {
        let any = recorded.clone().any(|new| new.backfill);
        let live = recorded
            .filter(|new| any && !new.backfill)
            .map(|new| {
                let PricedEvent { event, day, .. } = new.priced;
                (&*event.client_id, Month::of(day))
            })
            .collect();
        Self { any, live }
    }

    fn are_all_of(&self, row: &MonthRow) -> bool {
        self.any && !self.live.contains(&(row.client_id.as_str(), row.month))
    }
}
