//! One attempt to record a batch.

use super::Writer;
use crate::ingest::Outcome;
use crate::ingest::batch::Recorder;
use crate::ingest::queue::Item;
use crate::ledger::KNOWN_CLIENTS_MAX;
use crate::refusal::Refusal;
use meterd_domain::period::Month;
use meterd_store::database::connect;
use meterd_store::usage::partitions;
use meterd_store::{StoreError, clients};
use sqlx::{ConnectOptions, PgConnection};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long the database may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Writer {
    /// Drops the connection and everything that was read from the database, because it may be out of date.
    pub(super) fn forget(&mut self) {
        self.conn = None;
        self.known_partitions.clear();
        self.known_clients.clear();
        self.recorder = Recorder::new(connect::copies_at_once(&self.database));
    }

    /// Records a batch in one transaction.
    pub(super) async fn attempt(&mut self, items: &[Item]) -> meterd_store::Result<Vec<Outcome>> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.database.connect()).await;
                // A failed connection is not an error of the events, so it is transient, whatever its cause is.
                let refused = |error| sqlx::Error::Io(std::io::Error::other(error));
                let conn = connected.map_err(|_| StoreError::Timeout)?.map_err(refused)?;
                self.shared.key_filters.forget();
                conn
            }
        };
        let unknown_clients = self.prepare(&mut conn, items).await?;
        let known: Vec<_> = items
            .iter()
            .map(|item| &*item.submission)
            .filter(|submission| !unknown_clients.contains(&submission.event.client_id))
            .collect();
        let mut recorded = match known.is_empty() {
            true => vec![],
            false => self.recorder.record(&mut conn, &self.shared, &known).await?,
        }
        .into_iter();
        self.conn = Some(conn);
        let outcome = |item: &Item| {
            let client_id = &item.submission.event.client_id;
            if unknown_clients.contains(client_id) {
                Outcome::Rejected(Refusal::client_not_found(client_id))
            } else {
                recorded.next().expect("an outcome for each event of a known client")
            }
        };
        Ok(items.iter().map(outcome).collect())
    }

    /// Creates the clients and partitions that a batch needs, each in a transaction of its own. Returns the clients that do not exist
    /// and may not be created.
    async fn prepare(&mut self, conn: &mut PgConnection, items: &[Item]) -> meterd_store::Result<HashSet<Arc<str>>> {
        let mut missing = BTreeSet::new();
        for item in items {
            let event = &item.submission.event;
            // An event that can only be a repeat does not create its client.
            let may_create = !self.settings.create_clients || item.submission.refuse_if_new.is_none();
            if may_create && !self.known_clients.contains(&event.client_id) {
                missing.insert(event.client_id.clone());
            }
            let month = Month::of(event.event_time.date_naive());
            if item.submission.refuse_if_new.is_none() && !self.known_partitions.contains(&month) {
                partitions::ensure(conn, month).await?;
                self.known_partitions.insert(month);
            }
        }
        if missing.is_empty() {
            return Ok(HashSet::new());
        }
        if self.known_clients.len() > KNOWN_CLIENTS_MAX {
            self.known_clients.clear();
        }
        let ids: Vec<String> = missing.iter().map(|id| id.to_string()).collect();
        if self.settings.create_clients {
            clients::insert_missing(conn, &ids, self.settings.default_zone).await?;
            self.known_clients.extend(missing);
            return Ok(HashSet::new());
        }
        let existing: HashSet<String> = clients::existing(conn, &ids).await?.into_iter().collect();
        let (known, unknown): (Vec<_>, Vec<_>) = missing.into_iter().partition(|id| existing.contains(&**id));
        self.known_clients.extend(known);
        Ok(unknown.into_iter().collect())
    }
}
