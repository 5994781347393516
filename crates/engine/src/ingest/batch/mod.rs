//! One transaction of the write path, in five steps:
//!
//! 1. [`date`]: the day of each event in its client's zone, and whether its month is closed.
//! 2. [`claim`]: which events claim their keys, one for each key of a client. Keys in closed generations are taken. The post claims
//!    the others in the current generation.
//! 3. [`price`]: the charge of each of them.
//! 4. post: [`crate::ledger`] writes keys, events and sums, and runs the effects, such as alerts.
//! 5. [`outcome`]: what each caller is told, by comparison with the event that has the key.

mod claim;
mod date;
mod outcome;
mod preview;
mod price;

pub use preview::preview;

use super::{KeyFilters, Outcome, Submission};
use crate::alerts::raise::AlertSettings;
use crate::catalog::CatalogCache;
use crate::ledger::{AlertEffect, ClientSettings, Method, Posted, Versioned};
use claim::Claims;
use date::{Clients, Dated, date};
use meterd_domain::period::Month;
use meterd_store::usage::holders::KeyHolder;
use meterd_store::usage::record::NewEvent;
use meterd_store::usage::rollups::MonthRow;
use outcome::Holders;
use price::{Priced, price};
use sqlx::{Executor, PgConnection};
use std::collections::HashSet;
use std::sync::Arc;

/// Minimum number of new events for which COPY is faster than the statement.
const COPY_EVENTS_MIN: usize = 50;

/// Records a batch and returns an outcome for each event, in order. An event of a closed month, or one whose key may have been
/// deleted, is refused, unless its key is found. After an error the connection is still in a transaction, so the caller must drop it.
pub(super) async fn record(
    conn: &mut PgConnection,
    cache: &CatalogCache,
    key_filters: &KeyFilters,
    settings: &mut ClientSettings,
    alert_settings: &AlertSettings,
    batch: &[&Submission],
) -> meterd_store::Result<Vec<Outcome>> {
    let clients = Clients::of(batch);
    let mut may_copy = true;
    // At most twice: with COPY, and without it after COPY has met a taken key.
    loop {
        let mut tx = Versioned::begin(conn).await?;
        let catalog = tx.catalog(cache).await?;
        let version = tx.versions.client_settings;
        settings.know(tx.conn(), version, &clients.ids).await?;
        let dated = date(settings, &tx.versions, &clients, batch)?;
        let claims = Claims::of(&dated, &clients);
        let closed = key_filters.closed_before(tx.versions.key_generation);
        let earlier = outcome::find_in_closed(tx.conn(), &closed, &dated, &claims).await?;
        let priced = price(&catalog, &dated, &claims, &earlier.of);
        let method = match may_copy && priced.new.len() >= COPY_EVENTS_MIN {
            true => Method::Copy,
            false => Method::Statement,
        };
        match tx.post(&priced.new, method).await {
            Err(error) if method == Method::Copy && error.is_unique_violation() => {
                may_copy = false;
                conn.execute("ROLLBACK").await?;
            }
            Err(error) => return Err(error),
            Ok(posted) => {
                return finish(posted, alert_settings, settings, &dated, &claims, &priced, earlier).await;
            }
        }
    }
}

/// Runs the effects, decides the outcomes, and commits. `holders` has the holders of keys in closed generations.
async fn finish(
    posted: Posted<'_>,
    alert_settings: &AlertSettings,
    settings: &ClientSettings,
    dated: &[Dated<'_>],
    claims: &Claims,
    priced: &Priced<'_>,
    mut holders: Holders,
) -> meterd_store::Result<Vec<Outcome>> {
    let recorded: Vec<(usize, &NewEvent<'_>)> =
        priced.claims.iter().copied().zip(&priced.new).filter(|(_, new)| posted.is_recorded(new)).collect();
    let backfills = Backfills::of(recorded.iter().map(|(_, new)| *new));
    let effect = AlertEffect::Raise { clients: settings, is_backfill: &|row| backfills.are_all_of(row) };
    let mut done = posted.run_effects(alert_settings, effect).await?;
    let mut earlier = holders.known();
    for (claim, new) in recorded {
        let holder = KeyHolder { payload_hash: *new.payload_hash, id: new.priced.id, charge: Some(new.priced.charge) };
        holders.of[claim] = Some(holder);
    }
    earlier.extend(outcome::find_in_current(done.conn(), dated, claims, &mut holders).await?);
    let outcomes = outcome::decide(done.conn(), dated, claims, &holders.of, &earlier).await?;
    done.commit().await?;
    outcomes.into_iter().collect()
}

/// Which months of a batch were changed by backfills alone.
struct Backfills<'a> {
    any: bool,
    /// Months with a live event, if the batch has a backfill.
    live: HashSet<(&'a str, Month)>,
}

impl<'a> Backfills<'a> {
    fn of(recorded: impl Iterator<Item = &'a NewEvent<'a>> + Clone) -> Self {
        let any = recorded.clone().any(|new| new.backfill);
        let live = recorded
            .filter(|new| any && !new.backfill)
            .map(|new| (&*new.priced.event.client_id, Month::of(new.priced.day)))
            .collect();
        Self { any, live }
    }

    fn are_all_of(&self, row: &MonthRow) -> bool {
        self.any && !self.live.contains(&(row.client_id.as_str(), row.month))
    }
}
