//! The ledger: the only code that changes the sums of a client's month.
//!
//! # Stages and lock order
//!
//! A transaction goes through stages. Each stage is a type that holds the connection, and the next stage consumes it. Each stage takes
//! its locks after those of the stages before it. This is the one lock order of meterd:
//!
//! | stage | locks |
//! |---|---|
//! | [`Begun`] | none |
//! | [`Versioned`] | 1. versions of prices, time zones, plans, policies and closed months, shared |
//! | [`KeysClaimed`] | 2. idempotency keys |
//! | [`MonthsLocked`] | 3. rows of (client, month) |
//! | [`Posted`] | 4. pending usage, 5. rows of the months' services and days, 6. grants of credits |
//! | [`EffectsDone`] | 7. counters of limits, 8. alerts, 9. outbox, 10. feed counter |
//!
//! A stage can be left out, but not taken later. Within each step, rows are locked in sorted order.
//!
//! A post of new events changes the rows of their months, and leaves the sums of services and days pending ([`PendingUsage`]). Other
//! posts first apply the pending rows of their clients, and then change these sums directly. Only a transaction that has locked the row
//! of a month adds to the sums of the month, applied or pending, or takes from them. So a transaction with that lock can read and write
//! all sums of the month.
//!
//! # Ways to post
//!
//! - [`try_record`] posts new events whose charges are known, if no key is taken and no effect has anything to do. It
//!   is one call of an SQL function and a transaction of its own, with the locks 1 to 3. Otherwise it writes nothing,
//!   and the caller goes through the stages.
//! - [`Versioned::post`] posts new events whose charges are known. It takes the locks 2 and 3.
//! - [`Versioned::claim_keys`], [`KeysClaimed::lock_months`] and [`KeysClaimed::post`] post new events whose charges depend on what their
//!   months already have, such as a tier: the caller reads the months and prices the events after step 3.
//! - [`MonthsLocked::post`] posts other changes, such as a price that came later or a correction. The caller locks the months, reads what
//!   it needs while nobody else can change them, and computes the changes.
//!
//! Each post pays for what it adds to the cost with the credits of its clients, before the effects. [`try_record`] is not for clients with
//! credits.
//!
//! # Effects
//!
//! Every way leads to [`Posted`], and only [`Posted::run_effects`] leads on. It runs the effects of the new sums: it counts them for
//! limits ([`crate::limits::counters`]), and raises and resolves alerts. An effect observes the new sums; it cannot refuse them.
//!
//! New events add to counters that are stored. A counter that is not stored, or whose usage was corrected, is computed from the sums and
//! events of its period. This is exact because the transaction holds the lock of the month.

mod alert_bounds;
mod clients;
mod credits;
mod effects;
mod pending;
mod tiers;

pub use alert_bounds::AlertBounds;
pub use clients::{ClientSettings, KNOWN_CLIENTS_MAX};
pub use credits::DEFAULT_PRIORITY;
pub use effects::{AlertEffect, EffectsDone, Posted};
pub use pending::{PendingRows, PendingUsage, apply_pending_usage};
pub use tiers::{Tiers, months_of, tier_month};

use crate::alerts::unpriced::{self, UnpricedChanges};
use crate::catalog::CatalogCache;
use crate::limits::counters as limits;
use chrono::NaiveDate;
use meterd_domain::catalog::Catalog;
use meterd_domain::period::Month;
use meterd_domain::rollup::{Deltas, NewSums, Sums};
use meterd_store::StoreError;
use meterd_store::locks::{self, Versions};
use meterd_store::usage::changes::{AlertBound, Changes, MonthChange};
use meterd_store::usage::record::{self, NewEvent, Tried};
use meterd_store::usage::rollups;
use sqlx::PgConnection;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// A transaction that has locked nothing.
pub struct Begun<'c>(&'c mut PgConnection);

/// A transaction in which prices, time zones, plans, policies and closed months cannot change.
pub struct Versioned<'c> {
    conn: &'c mut PgConnection,
    pub versions: Versions,
}

/// A transaction that has claimed the keys of new events.
pub struct KeysClaimed<'c> {
    conn: &'c mut PgConnection,
    /// Sequence numbers of the events whose keys were free.
    claimed: HashSet<i64>,
}

/// A transaction that has locked the rows of months, so that no other transaction can change their sums or the days of their events.
pub struct MonthsLocked<'c>(&'c mut PgConnection);

/// How new events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One statement claims the keys, another one writes the rest. An event whose key is taken is skipped.
    Statement,
    /// COPY, which is faster for many events. A taken key is a unique violation and ends the transaction.
    Copy,
}

/// Records new events in one call, which commits by itself. `versions` are those of an earlier transaction, and
/// `alerts` and the charges are of these versions. `new` is as for [`Versioned::post`]. Returns `None`, without a call, if
/// the events change the month before a client's current month, because then the bound of the current month must be set
/// to 0, or if a limit counts one of them.
///
/// After [`Tried::Recorded`], the caller must pass the rows to [`PendingUsage::note`].
pub async fn try_record(
    conn: &mut PgConnection,
    versions: &Versions,
    new: &[NewEvent<'_>],
    alerts: &AlertBounds<'_>,
) -> meterd_store::Result<Option<(Tried, PendingRows)>> {
    if alerts.limits().count_any(new) {
        return Ok(None);
    }
    let usage = alerts.usage(sums(new));
    if !alerts.months_after(&usage.months).is_empty() {
        return Ok(None);
    }
    let unpriced = alerts.watched(&unpriced::of_new(new));
    let tried = record::try_record(conn, versions, new, &usage, &unpriced).await?;
    Ok(Some((tried, usage.row_counts())))
}

fn sums(new: &[NewEvent<'_>]) -> NewSums {
    NewSums::of_events(new.iter().map(|new| &new.priced))
}

impl<'c> Begun<'c> {
    /// Uses a transaction that has locked nothing yet.
    pub fn new(tx: &'c mut PgConnection) -> Self {
        Self(tx)
    }

    /// Returns the connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.0
    }

    /// Shares the versions lock until the end of the transaction.
    pub async fn share_versions(self) -> meterd_store::Result<Versioned<'c>> {
        let versions = locks::share_and_read_versions(self.0).await?;
        Ok(Versioned { conn: self.0, versions })
    }

    /// Locks months of a client, and creates the rows of those that have none.
    pub async fn create_months(self, client: &Arc<str>, months: &[Month]) -> meterd_store::Result<MonthsLocked<'c>> {
        create_months(self.0, client, months).await
    }
}

impl<'c> Versioned<'c> {
    /// Begins a transaction and shares the versions lock, in one round trip.
    pub async fn begin(conn: &'c mut PgConnection) -> meterd_store::Result<Self> {
        // This lock blocks all clients. So the error is not a lock timeout, after which the caller would retry each client separately.
        let of_all_clients = |error: StoreError| if error.is_lock_timeout() { StoreError::Timeout } else { error };
        let versions = locks::begin_sharing_versions(conn).await.map_err(of_all_clients)?;
        Ok(Self { conn, versions })
    }

    /// Returns the connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Returns the catalogue of the transaction's version, which cannot change until the commit.
    pub async fn catalog(&mut self, cache: &CatalogCache) -> meterd_store::Result<Arc<Catalog>> {
        let catalog = cache.current();
        match self.versions.catalog == catalog.version {
            true => Ok(catalog),
            false => cache.read(self.conn).await,
        }
    }

    /// Locks the rows of these months, and of the months after them, whose alert bounds a post resets, if they exist.
    pub async fn lock_months(self, months: &BTreeSet<(String, Month)>) -> meterd_store::Result<MonthsLocked<'c>> {
        let (clients, firsts): (Vec<_>, Vec<_>) =
            with_next(months).into_iter().map(|(client_id, month)| (client_id, month.first_day())).unzip();
        rollups::lock_months(self.conn, &clients, &firsts).await?;
        Ok(MonthsLocked(self.conn))
    }

    /// Locks months of a client, and creates the rows of those that have none.
    pub async fn create_months(self, client: &Arc<str>, months: &[Month]) -> meterd_store::Result<MonthsLocked<'c>> {
        create_months(self.conn, client, months).await
    }

    /// Posts new events: claims their keys, inserts the events whose keys were free, and adds these to the sums. `new` is sorted
    /// by client and key. None of its keys is in a closed generation.
    pub async fn post(
        self,
        new: &[NewEvent<'_>],
        method: Method,
        alerts: &AlertBounds<'_>,
    ) -> meterd_store::Result<Posted<'c>> {
        if new.is_empty() {
            let unpriced = UnpricedChanges::new();
            let (months, pending, limits) = (vec![], vec![], limits::Changes::None);
            return Ok(Posted { conn: self.conn, months, unpriced, limits, pending, claimed: None, bounds_time: None });
        }
        if method == Method::Statement {
            return self.claim_keys(new).await?.post(new, alerts).await;
        }
        let Self { conn, versions } = self;
        let usage = alerts.usage(sums(new));
        record::copy(conn, versions.key_generation, new).await?;
        alert_bounds::reset_bounds_after(conn, &usage.months, &alerts.months_after(&usage.months)).await?;
        let months = record::add(conn, &[], &usage).await?;
        credits::pay_for_new_usage(conn, alerts.clients(), &usage, &months).await?;
        let (unpriced, pending) = (unpriced::of_new(new), usage.row_counts());
        let limits = limits::Changes::of_new(alerts.limits(), new);
        Ok(Posted { conn, months, unpriced, limits, pending, claimed: None, bounds_time: Some(alerts.now()) })
    }

    /// Claims the keys of new events, and writes nothing else. `new` is as for [`Versioned::post`]; its charges are not read.
    pub async fn claim_keys(self, new: &[NewEvent<'_>]) -> meterd_store::Result<KeysClaimed<'c>> {
        let claimed = record::claim(self.conn, self.versions.key_generation, new).await?;
        Ok(KeysClaimed { conn: self.conn, claimed })
    }
}

impl<'c> KeysClaimed<'c> {
    /// The connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Whether the key of a new event was free.
    pub fn is_claimed(&self, new: &NewEvent<'_>) -> bool {
        self.claimed.contains(&new.priced.id.seq)
    }

    /// Locks months, and creates their rows if they do not exist. Also locks the months after them, because a post resets their alert
    /// bounds. The caller can then read the months and price the events.
    pub async fn lock_months(&mut self, months: &BTreeSet<(String, Month)>) -> meterd_store::Result<()> {
        let columns = |months: &BTreeSet<(String, Month)>| -> (Vec<String>, Vec<NaiveDate>) {
            months.iter().map(|(client_id, month)| (client_id.clone(), month.first_day())).unzip()
        };
        let (clients, firsts) = columns(&with_next(months));
        rollups::lock_months(self.conn, &clients, &firsts).await?;
        let (clients, firsts) = columns(months);
        rollups::lock_or_create_months(self.conn, &clients, &firsts).await
    }

    /// Posts those of the events whose keys were claimed.
    pub async fn post(self, new: &[NewEvent<'_>], alerts: &AlertBounds<'_>) -> meterd_store::Result<Posted<'c>> {
        let Self { conn, claimed } = self;
        let free: Vec<NewEvent<'_>> = new.iter().filter(|new| claimed.contains(&new.priced.id.seq)).cloned().collect();
        let (mut months, mut pending) = (vec![], vec![]);
        if !free.is_empty() {
            let usage = alerts.usage(sums(&free));
            alert_bounds::reset_bounds_after(conn, &usage.months, &alerts.months_after(&usage.months)).await?;
            months = record::add(conn, &free, &usage).await?;
            credits::pay_for_new_usage(conn, alerts.clients(), &usage, &months).await?;
            pending = usage.row_counts();
        }
        let unpriced = unpriced::of_new(&free);
        let limits = limits::Changes::of_new(alerts.limits(), &free);
        Ok(Posted { conn, months, unpriced, limits, pending, claimed: Some(claimed), bounds_time: Some(alerts.now()) })
    }
}

/// Returns months together with the months after them.
fn with_next(months: &BTreeSet<(String, Month)>) -> BTreeSet<(String, Month)> {
    let after = months.iter().map(|(client_id, month)| (client_id.clone(), month.next()));
    months.iter().cloned().chain(after).collect()
}

/// Locks rows of months, and creates those that do not exist: adding nothing does both.
async fn lock_or_create(
    conn: &mut PgConnection,
    months: impl Iterator<Item = (Arc<str>, Month)>,
) -> meterd_store::Result<()> {
    let change = |key| MonthChange { key, sums: Sums::default(), bound: AlertBound::UNKNOWN };
    record::correct(conn, &Changes { months: months.map(change).collect(), ..Changes::default() }).await.map(drop)
}

async fn create_months<'c>(
    conn: &'c mut PgConnection,
    client: &Arc<str>,
    months: &[Month],
) -> meterd_store::Result<MonthsLocked<'c>> {
    let with_next: BTreeSet<Month> = months.iter().flat_map(|month| [*month, month.next()]).collect();
    rollups::lock_client_months(conn, client, &with_next.into_iter().collect::<Vec<_>>()).await?;
    lock_or_create(conn, months.iter().map(|month| (client.clone(), *month))).await?;
    Ok(MonthsLocked(conn))
}

impl<'c> MonthsLocked<'c> {
    /// Returns the connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.0
    }

    /// Posts changes of the sums of months that are locked.
    pub async fn post(self, changes: Deltas) -> meterd_store::Result<Posted<'c>> {
        let (unpriced, limits) = (unpriced::of_deltas(&changes), limits::Changes::of_deltas(&changes));
        let changes = Changes::of(changes);
        let months_after =
            changes.months.iter().map(|MonthChange { key: (client_id, month), .. }| (client_id.clone(), month.next()));
        alert_bounds::reset_bounds_after(self.0, &changes.months, &months_after.collect()).await?;
        let months = match changes.is_empty() {
            true => vec![],
            false => {
                meterd_store::usage::pending::apply(self.0, &changes.clients()).await?;
                let months = record::correct(self.0, &changes).await?;
                credits::pay_for_changed_usage(self.0, &changes, &months).await?;
                months
            }
        };
        Ok(Posted { conn: self.0, months, unpriced, limits, pending: vec![], claimed: None, bounds_time: None })
    }
}
