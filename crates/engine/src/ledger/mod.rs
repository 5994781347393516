//! The ledger: the only code that changes the sums of a client's month.
//!
//! # Stages and lock order
//!
//! A transaction goes through stages. Each stage is a type that holds the connection, and the next stage consumes it. So a
//! transaction takes its locks in this order, and cannot go back:
//!
//! | stage | locks that are taken to reach it |
//! |---|---|
//! | [`Begun`] | none |
//! | [`Versioned`] | 1. the versions of prices, time zones, policies and closed months, shared |
//! | [`MonthsLocked`] | 3. rows of (client, month) |
//! | [`Posted`] | 2. idempotency keys and 3., unless the months were locked before; 4. rows of the months' services and days |
//! | [`Settled`] | 5. alerts, 6. outbox, 7. feed counter |
//!
//! Within each step, rows are locked in sorted order. Nobody changes the rows of step 4 without the row of their month, so whoever
//! holds that row can read all sums of the month and write them.
//!
//! # Two ways to post
//!
//! New events are posted from [`Versioned`]: one statement claims their keys, adds to the sums and inserts the events. Other
//! changes (a price that came later, a correction) are posted from [`MonthsLocked`]: the caller locks the months, reads what it
//! needs while nobody else can change them, computes the changes, and posts these. A charge that depends on what the month
//! already has, such as a tier, is computed there.
//!
//! # Effects
//!
//! [`Posted`] is not the end: its owner runs the effects of the new sums. Today these are alerts.

mod clients;

pub use clients::{ClientSettings, KNOWN_CLIENTS_MAX};

use crate::alerts::raise::{self, AlertSettings, ChangedMonth, raise_reached};
use meterd_domain::alert::Alert;
use meterd_domain::period::Month;
use meterd_domain::rollup::{Deltas, Sums};
use meterd_store::StoreError;
use meterd_store::locks::{self, Versions};
use meterd_store::record::{self, NewEvent, Written};
use meterd_store::rollups::{self, MonthRow};
use sqlx::{Executor, PgConnection};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// A transaction that has locked nothing.
pub struct Begun<'c>(&'c mut PgConnection);

/// A transaction in which prices, time zones, policies and closed months cannot change.
pub struct Versioned<'c> {
    conn: &'c mut PgConnection,
    pub versions: Versions,
}

/// A transaction that holds the rows of months: nobody else can change their sums or the days of their events.
pub struct MonthsLocked<'c>(&'c mut PgConnection);

/// A transaction that has changed sums.
#[must_use = "the effects of the new sums have not run"]
pub struct Posted<'c> {
    conn: &'c mut PgConnection,
    /// The months that were changed, as they are now.
    months: Vec<MonthRow>,
    /// See [`Posted::is_recorded`].
    claimed: Option<HashSet<i64>>,
}

/// A transaction whose effects have run.
#[must_use = "the transaction is not committed"]
pub struct Settled<'c> {
    conn: &'c mut PgConnection,
    raised: Vec<Alert>,
}

/// How new events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One statement. An event whose key is taken is skipped.
    Statement,
    /// COPY, which is faster for many events. A taken key is a unique violation and ends the transaction.
    Copy,
}

impl<'c> Begun<'c> {
    /// Uses a transaction that has locked nothing yet.
    pub fn new(tx: &'c mut PgConnection) -> Self {
        Self(tx)
    }

    /// The connection.
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
        // This lock is held against all clients, so the caller must not try them apart as it does for a month that is locked.
        let of_all_clients = |error: StoreError| if error.is_lock_timeout() { StoreError::Timeout } else { error };
        let versions = locks::begin_sharing_versions(conn).await.map_err(of_all_clients)?;
        Ok(Self { conn, versions })
    }

    /// The connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Locks those of the months that have a row.
    pub async fn lock_months(self, months: &BTreeSet<(String, Month)>) -> meterd_store::Result<MonthsLocked<'c>> {
        let (clients, firsts): (Vec<_>, Vec<_>) =
            months.iter().map(|(client_id, month)| (client_id.clone(), month.first_day())).unzip();
        rollups::lock_months(self.conn, &clients, &firsts).await?;
        Ok(MonthsLocked(self.conn))
    }

    /// Locks months of a client, and creates the rows of those that have none.
    pub async fn create_months(self, client: &Arc<str>, months: &[Month]) -> meterd_store::Result<MonthsLocked<'c>> {
        create_months(self.conn, client, months).await
    }

    /// Posts new events: claims their keys, inserts the events whose keys were free, and adds these to the sums. `new` is sorted
    /// by client and key.
    pub async fn post(self, new: &[NewEvent<'_>], method: Method) -> meterd_store::Result<Posted<'c>> {
        let conn = self.conn;
        if new.is_empty() {
            return Ok(Posted { conn, months: vec![], claimed: None });
        }
        let deltas = Deltas::of_events(new.iter().map(|new| &new.priced));
        if method == Method::Copy {
            let months = record::copy(conn, new, &deltas).await?;
            return Ok(Posted { conn, months, claimed: None });
        }
        let claimed = match record::record(conn, new, &deltas).await? {
            Written::All(months) => return Ok(Posted { conn, months, claimed: None }),
            Written::Claimed(claimed) => claimed,
        };
        let free: Vec<NewEvent<'_>> = new.iter().filter(|new| claimed.contains(&new.priced.id.seq)).cloned().collect();
        let deltas = Deltas::of_events(free.iter().map(|new| &new.priced));
        let months = if free.is_empty() { vec![] } else { record::record_claimed(conn, &free, &deltas).await? };
        Ok(Posted { conn, months, claimed: Some(claimed) })
    }
}

async fn create_months<'c>(
    conn: &'c mut PgConnection,
    client: &Arc<str>,
    months: &[Month],
) -> meterd_store::Result<MonthsLocked<'c>> {
    let nothing = months.iter().map(|month| ((client.clone(), *month), Sums::default())).collect();
    record::add(conn, &Deltas { months: nothing, ..Deltas::default() }).await?;
    Ok(MonthsLocked(conn))
}

impl<'c> MonthsLocked<'c> {
    /// The connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.0
    }

    /// Posts changes of the sums of months that are locked.
    pub async fn post(self, changes: &Deltas) -> meterd_store::Result<Posted<'c>> {
        let months = if changes.months.is_empty() && changes.month_services.is_empty() && changes.days.is_empty() {
            vec![]
        } else {
            record::add(self.0, changes).await?
        };
        Ok(Posted { conn: self.0, months, claimed: None })
    }
}

impl<'c> Posted<'c> {
    /// The connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// The months that were changed, as they are now.
    pub fn months(&self) -> &[MonthRow] {
        &self.months
    }

    /// Whether a new event was recorded. If not, its key was taken.
    pub fn is_recorded(&self, new: &NewEvent<'_>) -> bool {
        self.claimed.as_ref().is_none_or(|claimed| claimed.contains(&new.priced.id.seq))
    }

    /// Deletes rows of a client's months that are zero, because all their events were moved away.
    pub async fn delete_zeros(&mut self, client_id: &str, months: &[Month]) -> meterd_store::Result<()> {
        for month in months {
            rollups::delete_zeros(self.conn, client_id, *month).await?;
        }
        Ok(())
    }

    /// Runs the effects: raises the alerts that the changed months have reached. Alerts of months for which `is_backfill` holds
    /// notify nobody. A client that `clients` does not know has no alerts.
    pub async fn settle(
        self,
        settings: &AlertSettings,
        clients: &ClientSettings,
        is_backfill: impl Fn(&MonthRow) -> bool,
    ) -> meterd_store::Result<Settled<'c>> {
        let changed = self.months.into_iter().filter_map(|row| {
            Some(ChangedMonth { zone: clients.zone(&row.client_id)?, backfill: is_backfill(&row), row })
        });
        let raised = raise_reached(self.conn, settings, &clients.policies, changed.collect()).await?;
        Ok(Settled { conn: self.conn, raised })
    }

    /// Ends the stage for a caller that evaluates the alerts of the months itself, with what has to be resolved.
    pub fn into_conn(self) -> &'c mut PgConnection {
        self.conn
    }
}

impl Settled<'_> {
    /// The connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Commits a transaction of [`Versioned::begin`].
    pub async fn commit(self) -> meterd_store::Result<()> {
        self.conn.execute("COMMIT").await?;
        raise::count(&self.raised);
        Ok(())
    }

    /// The alerts that were raised. To be counted after the commit, with [`raise::count`].
    pub fn into_raised(self) -> Vec<Alert> {
        self.raised
    }
}
