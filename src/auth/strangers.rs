//! Calls whose credentials are not known yet, while these are looked for: so many per connection and in all.

use crate::error::Error;
use crate::net::{Counted, Counts, Peer, Taken};
use crate::proto::ErrorReason;
use std::sync::Arc;
use std::time::Duration;

/// Calls of all connections. Each connection may have one beyond them, so that nobody can use them up for others.
const WAITING_MAX: usize = 1_000;
/// Calls of one connection: those of a good caller whose key was made a moment ago find room.
const WAITING_OF_CONNECTION_MAX: usize = 100;
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Counts the calls that wait.
#[derive(Debug, Default)]
pub struct Strangers(Arc<Counts>);

/// Who presents credentials that may not be known.
#[derive(Clone, Copy)]
pub(super) struct Stranger<'a> {
    pub strangers: &'a Strangers,
    pub peer: Option<&'a Peer>,
}

impl Stranger<'_> {
    /// A place among those who wait, until it is dropped.
    pub fn wait(&self) -> Result<Vec<Taken>, Error> {
        let counted = Counted::Strangers;
        let all = &self.strangers.0;
        let Some(Peer { counts, .. }) = self.peer else {
            return Ok(vec![all.take(counted, 1, WAITING_MAX).ok_or_else(|| busy("unknown keys"))?]);
        };
        let max = if counts.get(counted) == 0 { usize::MAX } else { WAITING_MAX };
        let of_connection = counts.take(counted, 1, WAITING_OF_CONNECTION_MAX);
        let of_connection = of_connection.ok_or_else(|| busy("unknown keys of the connection"))?;
        Ok(vec![of_connection, all.take(counted, 1, max).ok_or_else(|| busy("unknown keys"))?])
    }
}

fn busy(limit: &'static str) -> Error {
    metrics::counter!("meterd_calls_shed_total", "limit" => limit).increment(1);
    let message = "too many calls wait to have their keys looked for; send again";
    Error::exhausted(ErrorReason::ServerBusy, message, RETRY_DELAY).with("limit", limit)
}
