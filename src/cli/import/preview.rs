//! Events that a dry run would have recorded so far. The server does not know them.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::batches::Batch;
use super::keys::{ContentHash, content_hash};
use crate::proto::{EventError, EventOutcome, UsageEvent, UsageResult};

/// Hashes of the accepted events: client and key, and the contents. About 40 bytes for each event.
#[derive(Debug, Default)]
pub struct Preview {
    accepted: HashMap<ContentHash, ContentHash>,
}

impl Preview {
    /// Corrects the results of a batch for the events of earlier batches.
    pub fn settle(&mut self, batch: &Batch, results: &mut [UsageResult]) {
        for (event, result) in batch.events.iter().zip(results) {
            let outcome = result.outcome();
            if !matches!(outcome, EventOutcome::Accepted | EventOutcome::Duplicate | EventOutcome::Conflict) {
                continue;
            }
            let (key, content) = (key_hash(event), payload_hash(event));
            match self.accepted.get(&key) {
                Some(earlier) if *earlier == content => {
                    (result.error, result.charge) = (None, None);
                    result.set_outcome(EventOutcome::Duplicate);
                }
                Some(_) => {
                    result.set_outcome(EventOutcome::Conflict);
                    result.error = Some(conflict(&event.idempotency_key));
                }
                // Only new keys. For a recorded key, the server has compared the contents.
                None if outcome == EventOutcome::Accepted => drop(self.accepted.insert(key, content)),
                None => {}
            }
        }
    }
}

fn conflict(key: &str) -> EventError {
    EventError {
        reason: "IDEMPOTENCY_CONFLICT".to_owned(),
        message: format!("idempotency key {key:?} was used before with other contents"),
        ..EventError::default()
    }
}

fn key_hash(event: &UsageEvent) -> ContentHash {
    let mut hash = Sha256::new_with_prefix((event.client_id.len() as u64).to_be_bytes());
    hash.update(event.client_id.as_bytes());
    hash.update(event.idempotency_key.as_bytes());
    let mut short = ContentHash::default();
    short.copy_from_slice(&hash.finalize()[..16]);
    short
}

/// Hashes the contents like the server: missing units are 1, and times are truncated to microseconds.
fn payload_hash(event: &UsageEvent) -> ContentHash {
    let mut event = event.clone();
    if event.units.is_empty() {
        event.units = "1".to_owned();
    }
    if let Some(time) = &mut event.event_time {
        time.nanos -= time.nanos % 1_000;
    }
    content_hash(&event)
}
