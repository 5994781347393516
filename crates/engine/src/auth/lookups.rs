//! Limits the calls that wait while the server looks up their unknown credentials, per connection and in total.

use crate::counters::{Counters, Exceeded, Limits, Permit, Resource, take_one};
use crate::refusal::{Reason, Refusal};
use std::sync::Arc;
use std::time::Duration;

/// Maximum numbers of waiting calls. The limit of a connection is enough for a caller whose key was created a moment ago.
const LIMITS: Limits = Limits { connection: 100, total: 1_000 };
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Counts the waiting calls.
#[derive(Debug, Default)]
pub struct Lookups(Arc<Counters>);

/// The lookup of a call's credentials.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    pub lookups: &'a Lookups,
    /// Counters of the connection that the call came on.
    pub connection: Option<&'a Arc<Counters>>,
}

impl Lookup<'_> {
    /// Counts the call as waiting until the permits are dropped.
    ///
    /// # Errors
    /// `SERVER_BUSY` if too many calls wait.
    pub fn wait(&self) -> Result<Vec<Permit>, Refusal> {
        let (resource, total) = (Resource::CredentialLookups, &self.lookups.0);
        let Some(connection) = self.connection else {
            let permit = total.take(resource, 1, LIMITS.total).ok_or_else(|| busy(Exceeded::Total))?;
            return Ok(vec![permit]);
        };
        take_one(resource, connection, total, LIMITS).map(Vec::from).map_err(busy)
    }
}

fn busy(exceeded: Exceeded) -> Refusal {
    let limit = match exceeded {
        Exceeded::Connection => "unknown keys of the connection",
        Exceeded::Total => "unknown keys",
    };
    metrics::counter!("meterd_calls_shed_total", "limit" => limit).increment(1);
    let message = "too many calls wait to have their keys looked for; send again";
    Refusal::exhausted(Reason::ServerBusy, message, RETRY_DELAY).with("limit", limit)
}
