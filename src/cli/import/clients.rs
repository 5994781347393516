//! The clients of an import: which ones exist, and the time zones of their days.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, ensure};
use chrono_tz::Tz;
use tokio::sync::Mutex;

use super::batches::{BadRow, Batch, Origin};
use super::progress::Printer;
use super::send::Sender;
use crate::cli::time::timestamp;
use crate::proto::UsageEvent;

/// Clients in one question to the server.
const ASKED_MAX: usize = 1_000;

/// What the server says of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownClient {
    pub zone: Tz,
    /// There is no such client yet.
    pub is_new: bool,
}

/// Clients that were asked for. Each is asked for once in a run.
#[derive(Debug)]
pub struct Clients {
    known: Mutex<HashMap<String, Option<KnownClient>>>,
    refuse_new: bool,
}

impl Clients {
    /// Nothing is known yet.
    pub fn new(refuse_new: bool) -> Clients {
        Clients { known: Mutex::default(), refuse_new }
    }
}

impl Sender {
    /// Gets a batch ready to be sent: times without a zone get their client's, and rows that then cannot be sent become bad
    /// ones. Remembers which clients are new. `columns` are those of the client and the time.
    pub async fn prepare(&mut self, batch: &mut Batch, printer: &Printer, columns: &[String; 2]) -> anyhow::Result<()> {
        let known = self.know(batch, printer).await?;
        let mut events = Vec::with_capacity(batch.events.len());
        let mut origins = Vec::with_capacity(batch.origins.len());
        for (mut event, origin) in std::mem::take(&mut batch.events).into_iter().zip(std::mem::take(&mut batch.origins))
        {
            let client = known.get(&event.client_id).copied();
            match ready(&mut event, &origin, client, self.clients.refuse_new, columns) {
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
                Err(wrong) => batch.bad_rows.push(wrong),
            }
        }
        (batch.events, batch.origins) = (events, origins);
        Ok(())
    }

    /// The clients of a batch, as far as the caller may know them. Asks with events that say nothing but the client: no server
    /// records them.
    async fn know(&mut self, batch: &Batch, printer: &Printer) -> anyhow::Result<HashMap<String, KnownClient>> {
        let clients = std::sync::Arc::clone(&self.clients);
        let mut known = clients.known.lock().await;
        let wanted: BTreeSet<&String> = batch.events.iter().map(|event| &event.client_id).collect();
        let unknown: Vec<&String> = wanted.iter().copied().filter(|id| !known.contains_key(*id)).collect();
        for ids in unknown.chunks(ASKED_MAX) {
            let event = |id: &&String| UsageEvent { client_id: (*id).clone(), ..UsageEvent::default() };
            let events: Vec<UsageEvent> = ids.iter().map(event).collect();
            let answer = self.ask(&events, batch, printer).await?;
            let understood =
                !answer.clients.is_empty() || answer.results.iter().all(|result| !is_without_service(result));
            ensure!(
                understood,
                "the server is older than this meterd and cannot check rows without recording them: update the server, or \
                 import with the meterd of its version"
            );
            known.extend(ids.iter().map(|id| ((*id).clone(), None)));
            for client in answer.clients {
                let zone = client.time_zone.parse().ok().context("the server answered with an unknown time zone")?;
                known.insert(client.client_id, Some(KnownClient { zone, is_new: !client.exists }));
            }
        }
        Ok(wanted.into_iter().filter_map(|id| Some((id.clone(), (*known.get(id)?)?))).collect())
    }
}

/// A server that knows of questions answers so only beside what it says of the client.
fn is_without_service(result: &crate::proto::UsageResult) -> bool {
    result.error.as_ref().is_some_and(|error| error.reason == "INVALID_FIELD")
}

/// Gives an event its time, or says why it cannot be sent.
fn ready(
    event: &mut UsageEvent,
    origin: &Origin,
    client: Option<KnownClient>,
    refuse_new: bool,
    columns: &[String; 2],
) -> Result<(), BadRow> {
    let bad = |column: &str, reason: &str, message: String| BadRow {
        line: origin.line,
        column: column.to_owned(),
        reason: reason.to_owned(),
        message,
        text: origin.text.clone(),
    };
    if refuse_new && client.is_some_and(|client| client.is_new) {
        let message = format!("there is no client {:?}, and --no-new-clients makes none", event.client_id);
        return Err(bad(&columns[0], "CLIENT_NOT_FOUND", message));
    }
    // Of a client that the key does not cover the server says so itself.
    let (Some(written), Some(client)) = (origin.local_time, client) else { return Ok(()) };
    let time = written.in_zone(client.zone).and_then(timestamp);
    event.event_time = Some(time.map_err(|message| bad(&columns[1], "UNREADABLE", message))?);
    Ok(())
}
