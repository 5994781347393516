//! Limits the calls that wait while the server looks up their unknown credentials, per connection and in total.

use crate::counts::{Counted, Counts, Taken};
use crate::refusal::{Reason, Refusal};
use std::sync::Arc;
use std::time::Duration;

/// Maximum for all connections together. Each connection may always have one waiting call, so that others cannot use up its share.
const WAITING_MAX: usize = 1_000;
/// Maximum for one connection. Enough for a caller whose key was created a moment ago.
const WAITING_OF_CONNECTION_MAX: usize = 100;
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Counts the waiting calls.
#[derive(Debug, Default)]
pub struct Lookups(Arc<Counts>);

/// The lookup of a call's credentials.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    pub lookups: &'a Lookups,
    /// Counts of the connection that the call came on.
    pub connection: Option<&'a Arc<Counts>>,
}

impl Lookup<'_> {
    /// Counts the call as waiting until the result is dropped.
    ///
    /// # Errors
    /// SERVER_BUSY if too many calls wait.
    pub fn wait(&self) -> Result<Vec<Taken>, Refusal> {
        let counted = Counted::Strangers;
        let all = &self.lookups.0;
        let Some(counts) = self.connection else {
            return Ok(vec![all.take(counted, 1, WAITING_MAX).ok_or_else(|| busy("unknown keys"))?]);
        };
        let max = if counts.get(counted) == 0 { usize::MAX } else { WAITING_MAX };
        let of_connection = counts.take(counted, 1, WAITING_OF_CONNECTION_MAX);
        let of_connection = of_connection.ok_or_else(|| busy("unknown keys of the connection"))?;
        Ok(vec![of_connection, all.take(counted, 1, max).ok_or_else(|| busy("unknown keys"))?])
    }
}

fn busy(limit: &'static str) -> Refusal {
    metrics::counter!("meterd_calls_shed_total", "limit" => limit).increment(1);
    let message = "too many calls wait to have their keys looked for; send again";
    Refusal::exhausted(Reason::ServerBusy, message, RETRY_DELAY).with("limit", limit)
}
