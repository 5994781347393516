//! The settings of clients that transactions need: time zones, plans, whether they have credits, alert policies and limits.

use crate::limits::counters::Limits;
use chrono_tz::Tz;
use foldhash::fast::RandomState;
use meterd_domain::plan::ClientPlans;
use meterd_store::alerts::policies::{self, Policies};
use meterd_store::clients::{self, Settings};
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Maximum number of clients that are remembered. If there are more, all are forgotten and read again.
pub const KNOWN_CLIENTS_MAX: usize = 1_000_000;

/// Settings of clients, as they are at one version.
#[derive(Default)]
pub struct ClientSettings {
    version: i64,
    zones: HashMap<Arc<str>, Tz, RandomState>,
    pub plans: ClientPlans,
    /// The clients that have grants of credits, or a plan that includes some.
    with_credits: HashSet<Arc<str>, RandomState>,
    pub policies: Policies,
    pub limits: Limits,
}

impl ClientSettings {
    /// Reads the settings of those clients that are not known at this version. `version` is that of a transaction that
    /// shares the versions lock, so the settings cannot change until its commit, or one that `record_events` compares
    /// with the current one.
    pub async fn know(
        &mut self,
        conn: &mut PgConnection,
        version: i64,
        client_ids: &[&Arc<str>],
    ) -> meterd_store::Result<()> {
        if self.version != version || self.zones.len() > KNOWN_CLIENTS_MAX {
            *self = Self { version, ..Self::default() };
        }
        let missing = client_ids.iter().filter(|client_id| !self.zones.contains_key(**client_id));
        let missing: Vec<String> = missing.map(|client_id| client_id.to_string()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let settings = clients::settings(conn, &missing).await?;
        let with_credits = client_ids.iter().filter(|client_id| settings.has_credits(client_id));
        self.with_credits.extend(with_credits.map(|client_id| (*client_id).clone()));
        let Settings { zones, plans, .. } = settings;
        self.plans.join(plans);
        self.policies.join(policies::load(conn, &missing).await?);
        self.limits.join(Limits::load(conn, &missing).await?);
        self.zones.extend(zones.into_iter().map(|(client_id, zone)| (client_id.into(), zone)));
        Ok(())
    }

    /// Returns the version of these settings.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Pretends that a client with this zone exists.
    pub fn assume(&mut self, client_id: Arc<str>, zone: Tz) {
        self.zones.insert(client_id, zone);
    }

    /// Returns whether a client may have credits.
    pub fn has_credits(&self, client_id: &str) -> bool {
        !self.with_credits.is_empty() && self.with_credits.contains(client_id)
    }

    /// Returns the time zone of a client, or `None` if the client is not known.
    pub fn zone(&self, client_id: &str) -> Option<Tz> {
        self.zones.get(client_id).copied()
    }
}
