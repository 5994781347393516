//! The audit log: an entry is written before an admin call does its work, and the outcome is written after it.

use crate::auth::Caller;
use crate::auth::token::without_secrets;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::paging::{Page, PageRequest};
use crate::refusal::Refusal;
use meterd_store::admin::audit::{self as store, Entry, NewEntry};
use sqlx::PgPool;

/// Maximum size of a request in the log, as JSON.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
const NAME_BYTES_MAX: usize = 256;

/// A call that has not begun its work.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Such as "metering.v1.UsageService/TrackUsage".
    pub method: &'a str,
    /// JSON. Must not contain secrets other than tokens of API keys, which are removed here.
    pub request: &'a str,
    pub request_id: &'a str,
    /// The address that the call came from. Empty for commands that work on the database.
    pub address: &'a str,
}

/// An entry whose call has not ended.
#[derive(Debug)]
pub struct OpenEntry(i64);

/// Writes the entry of a call. If it fails, the call must not do its work.
pub async fn begin(pool: &PgPool, caller: &Caller, call: Call<'_>) -> Result<OpenEntry, Refusal> {
    let entry = NewEntry {
        actor_kind: caller.kind as i16,
        actor_id: &caller.id,
        actor_name: &caller.name,
        method: call.method,
        request: &loggable(call.request),
        request_id: call.request_id,
        address: call.address,
    };
    Ok(OpenEntry(store::begin(pool, &entry).await?))
}

/// Returns the part of a request that is logged: without secrets, and only its size if it is too large.
fn loggable(request: &str) -> String {
    let text = without_secrets(request);
    if text.len() > REQUEST_BYTES_MAX { serde_json::json!({ "omittedBytes": text.len() }).to_string() } else { text }
}

impl OpenEntry {
    /// Writes the outcome: the status code of the protocol, and the reason of an error or an empty string. If it fails, the entry
    /// stays without an outcome.
    pub async fn finish(self, pool: &PgPool, code: i32, reason: &str) {
        if let Err(error) = store::finish(pool, self.0, code, reason).await {
            tracing::warn!(%error, entry_id = self.0, "the outcome of a call could not be written to the audit log");
        }
    }
}

/// Which entries to list. Empty filters select all.
#[derive(Debug)]
pub struct AuditQuery {
    pub actor_id: String,
    pub method: String,
    pub start_time: Option<UnixTime>,
    pub end_time: Option<UnixTime>,
    /// The cursor is the id of the last entry.
    pub page: PageRequest<i64>,
}

/// Lists entries, the newest first.
pub async fn list(engine: &Engine, query: AuditQuery) -> Result<Page<Entry, i64>, Refusal> {
    let mut fields = Fields::default();
    fields.text("actor_id", &query.actor_id, NAME_BYTES_MAX);
    fields.text("method", &query.method, NAME_BYTES_MAX);
    let (start_time, end_time) = fields.times(query.start_time, query.end_time);
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let before = query.page.after?;
    let filter = store::Filter { actor_id: &query.actor_id, method: &query.method, start_time, end_time };
    let rows = store::list(&engine.pool, &filter, before, size + 1).await?;
    Ok(Page::of(rows, size, |last| last.entry_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_large_request_is_left_out() {
        assert_eq!(loggable(&format!("{:?}", "x".repeat(300_000))), r#"{"omittedBytes":300002}"#);
        assert_eq!(loggable(r#"{"clientId":"acme"}"#), r#"{"clientId":"acme"}"#);
    }
}
