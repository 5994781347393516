//! The clients of an import: which clients exist, and their time zones.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, ensure};
use chrono_tz::Tz;
use tokio::sync::Mutex;

use super::batches::{BadRow, Batch, Origin};
use super::progress::Printer;
use super::send::Sender;
use crate::cli::time::timestamp;
use crate::proto::UsageEvent;

/// Maximum number of clients in one lookup.
const LOOKUP_CLIENTS_MAX: usize = 1_000;

/// Information about a client from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownClient {
    pub zone: Tz,
    /// Whether the client does not exist yet.
    pub is_new: bool,
}

/// Cache of clients. Each client is looked up once in a run.
#[derive(Debug)]
pub struct Clients {
    known: Mutex<HashMap<String, Option<KnownClient>>>,
    reject_new: bool,
}

impl Clients {
    /// Creates an empty cache.
    pub fn new(reject_new: bool) -> Clients {
        Clients { known: Mutex::default(), reject_new }
    }
}

impl Sender {
    /// Prepares a batch for sending: times without a zone get the zone of their client, and rows that cannot be sent become
    /// bad rows. Remembers new clients. `columns` are the columns of the client and the time.
    pub async fn prepare(&mut self, batch: &mut Batch, printer: &Printer, columns: &[String; 2]) -> anyhow::Result<()> {
        let known = self.look_up(batch, printer).await?;
        let mut events = Vec::with_capacity(batch.events.len());
        let mut origins = Vec::with_capacity(batch.origins.len());
        for (mut event, origin) in std::mem::take(&mut batch.events).into_iter().zip(std::mem::take(&mut batch.origins))
        {
            let client = known.get(&event.client_id).copied();
            match resolve_time(&mut event, &origin, client, self.clients.reject_new, columns) {
                Ok(()) => {
                    if client.is_some_and(|client| client.is_new) {
                        batch.new_clients.insert(event.client_id.clone());
                    }
                    if let Some(client) = client.filter(|_| origin.local_time.is_some()) {
                        batch.zones.insert(client.zone.name());
                    }
                    events.push(event);
                    origins.push(origin);
                }
                Err(bad_row) => batch.bad_rows.push(bad_row),
            }
        }
        (batch.events, batch.origins) = (events, origins);
        Ok(())
    }

    /// Returns the clients of a batch that the key covers. Sends events that contain only the client id; no server records
    /// such events.
    async fn look_up(&mut self, batch: &Batch, printer: &Printer) -> anyhow::Result<HashMap<String, KnownClient>> {
        let clients = std::sync::Arc::clone(&self.clients);
        let mut known = clients.known.lock().await;
        let wanted: BTreeSet<&String> = batch.events.iter().map(|event| &event.client_id).collect();
        let unknown: Vec<&String> = wanted.iter().copied().filter(|id| !known.contains_key(*id)).collect();
        for ids in unknown.chunks(LOOKUP_CLIENTS_MAX) {
            let event = |id: &&String| UsageEvent { client_id: (*id).clone(), ..UsageEvent::default() };
            let events: Vec<UsageEvent> = ids.iter().map(event).collect();
            let answer = self.validate(&events, batch, printer).await?;
            let is_supported =
                !answer.clients.is_empty() || answer.results.iter().all(|result| !is_without_service(result));
            ensure!(
                is_supported,
                "the server is older than this meterd and cannot check rows without recording them: update the server, or \
                 import with the same version of meterd as the server"
            );
            known.extend(ids.iter().map(|id| ((*id).clone(), None)));
            for client in answer.clients {
                let zone = client.time_zone.parse().ok().context("the server returned an unknown time zone")?;
                known.insert(client.client_id, Some(KnownClient { zone, is_new: !client.exists }));
            }
        }
        Ok(wanted.into_iter().filter_map(|id| Some((id.clone(), (*known.get(id)?)?))).collect())
    }
}

/// Whether the server rejected an event without a service. A server that supports `validate_only` also returns the client.
fn is_without_service(result: &crate::proto::UsageResult) -> bool {
    result.error.as_ref().is_some_and(|error| error.reason == "INVALID_FIELD")
}

/// Sets the time of an event. Returns a bad row if the event cannot be sent.
fn resolve_time(
    event: &mut UsageEvent,
    origin: &Origin,
    client: Option<KnownClient>,
    reject_new: bool,
    columns: &[String; 2],
) -> Result<(), BadRow> {
    let bad = |column: &str, reason: &str, message: String| BadRow {
        line: origin.line,
        column: column.to_owned(),
        reason: reason.to_owned(),
        message,
        text: origin.text.clone(),
    };
    if reject_new && client.is_some_and(|client| client.is_new) {
        let message = format!("client {:?} does not exist, and --no-new-clients is set", event.client_id);
        return Err(bad(&columns[0], "CLIENT_NOT_FOUND", message));
    }
    // If the key does not cover the client, the server rejects the event.
    let (Some(local_time), Some(client)) = (origin.local_time, client) else { return Ok(()) };
    let time = local_time.in_zone(client.zone).and_then(timestamp);
    event.event_time = Some(time.map_err(|message| bad(&columns[1], "UNREADABLE", message))?);
    Ok(())
}
