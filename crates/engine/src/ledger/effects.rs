//! The last stages of a transaction: the effects of its new sums.

use crate::alerts::check;
use crate::alerts::raise::{self, AlertSettings, ChangedMonth, raise_alerts};
use crate::alerts::unpriced::UnpricedChanges;
use crate::ledger::clients::ClientSettings;
use crate::ledger::pending::{PendingRows, PendingUsage};
use crate::limits::counters::{self as limits, Limits};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::alert::Alert;
use meterd_domain::period::{Month, day_of};
use meterd_store::usage::record::NewEvent;
use meterd_store::usage::rollups::{self, MonthRow};
use sqlx::{Executor, PgConnection};
use std::collections::HashSet;

/// A transaction that has changed sums.
#[must_use = "the effects of the new sums have not run"]
pub struct Posted<'c> {
    pub(super) conn: &'c mut PgConnection,
    /// The months that were changed, with their new sums.
    pub(super) months: Vec<MonthRow>,
    /// The services of these months whose number of unpriced events was changed.
    pub(super) unpriced: UnpricedChanges,
    /// What limits must count.
    pub(super) limits: limits::Changes,
    pub(super) pending: PendingRows,
    /// See [`Posted::is_recorded`].
    pub(super) claimed: Option<HashSet<i64>>,
    /// The time for which the rows of `months` have alert bounds. `None` if no bound may be stored.
    pub(super) bounds_time: Option<DateTime<Utc>>,
}

/// How the alerts of the changed months are evaluated.
pub enum AlertEffect<'a> {
    /// Raises the alerts that the months have reached, and resolves those about unpriced events that were priced. Alerts of months for
    /// which `is_backfill` holds notify nobody. A client that `clients` does not know has no alerts.
    Raise { clients: &'a ClientSettings, is_backfill: &'a (dyn Fn(&MonthRow) -> bool + Sync) },
    /// Raises and resolves the alerts of these months of a client, whose sums were corrected.
    Check { client_id: &'a str, months: &'a [Month] },
}

/// A transaction whose effects have run.
#[must_use = "the transaction is not committed"]
pub struct EffectsDone<'c> {
    conn: &'c mut PgConnection,
    raised: Vec<Alert>,
    pending: PendingRows,
    corrected_counters: i64,
}

impl<'c> Posted<'c> {
    /// Returns the connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Returns the months that were changed, with their new sums.
    pub fn months(&self) -> &[MonthRow] {
        &self.months
    }

    /// Returns whether a new event was recorded. If not, its key was taken.
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

    /// Computes the stored counters of limits again, of all of these months of a client.
    pub fn recount_limits(&mut self, client_id: &str, months: &[Month]) {
        self.limits = limits::Changes::Months(client_id.to_owned(), months.to_vec());
    }

    /// Computes the counters of a limit whose settings have changed, in the periods that contain these days.
    pub fn recount_limit(&mut self, client_id: &str, limit_id: &str, days: Vec<NaiveDate>) {
        self.limits = limits::Changes::Settings(client_id.to_owned(), limit_id.to_owned(), days);
    }

    /// Runs the effects of the new sums.
    pub async fn run_effects(
        self,
        settings: &AlertSettings,
        alerts: AlertEffect<'_>,
    ) -> meterd_store::Result<EffectsDone<'c>> {
        let Self { conn, months, mut unpriced, limits: changes, pending, bounds_time, .. } = self;
        let read;
        let limits = match &alerts {
            AlertEffect::Raise { clients, .. } => &clients.limits,
            AlertEffect::Check { client_id, .. } => {
                read = Limits::load(conn, &[(*client_id).to_owned()]).await?;
                &read
            }
        };
        let limits = limits::count(conn, limits, &changes).await?;
        let corrected_counters = limits.corrected_count;
        let raised = match alerts {
            AlertEffect::Raise { clients, is_backfill } => {
                unpriced.retain(|(client_id, ..), _| clients.zone(client_id).is_some());
                let changed = months.into_iter().filter_map(|row| {
                    let zone = clients.zone(&row.client_id)?;
                    // The day may have changed while the transaction waited for a lock.
                    let bound_holds = bounds_time.is_some_and(|time| day_of(time, zone) == settings.today(zone));
                    Some(ChangedMonth { zone, backfill: is_backfill(&row), bound_holds, row })
                });
                raise_alerts(conn, settings, &clients.policies, changed.collect(), &unpriced, limits).await?
            }
            AlertEffect::Check { client_id, months } => {
                check::corrected_months(conn, settings, client_id, months, limits).await?.raised
            }
        };
        Ok(EffectsDone { conn, raised, pending, corrected_counters })
    }
}

impl EffectsDone<'_> {
    /// The connection.
    pub fn conn(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Commits a transaction of [`Versioned::begin`]. The owner of any other transaction commits it.
    pub async fn commit(self, pending_usage: &PendingUsage) -> meterd_store::Result<()> {
        self.conn.execute("COMMIT").await?;
        raise::count(&self.raised);
        pending_usage.note(self.pending);
        Ok(())
    }

    /// Returns how many stored counters of limits were not what their usage is.
    pub fn corrected_counters(&self) -> i64 {
        self.corrected_counters
    }

    /// Returns the alerts that were raised. The caller must pass them to [`raise::count`] after the commit.
    pub fn into_raised(self) -> Vec<Alert> {
        self.raised
    }
}
