//! All SQL. One file a table or read model, free functions on a connection; the caller owns the transaction.

pub mod alert_feed;
pub mod alerts;
pub mod api_keys;
pub mod audit;
pub mod catalog;
pub mod cause;
pub mod channels;
pub mod clients;
pub mod connect;
pub mod deployment;
pub mod events;
pub mod export;
pub mod floor;
pub mod floor_reads;
pub mod holders;
pub mod jobs;
pub mod keys;
pub mod locks;
pub mod notifications;
pub mod numeric;
pub mod outbox;
pub mod partitions;
pub mod policies;
pub mod preload;
pub mod pricing;
pub mod query;
pub mod rebuild;
pub mod record;
pub mod requests;
pub mod rollups;
mod rows;
pub mod summaries;
pub mod sums;
pub mod url;
pub mod usage;
pub mod verify;
pub mod verify_keys;

/// Whether the same work may succeed if it is done again: the connection broke, the server is going down or coming up, or
/// another transaction was in the way.
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // 08: connection; 40: rolled back, a deadlock among them; 53: resources, disk full among them; 57P0x: shutdown,
            // crash, starting up; 58000, 58030: the system below, I/O; 25006: read-only, as after a failover; 25P03, 25P04:
            // idle in transaction; 55P03: lock timeout; 57014: statement timeout.
            let class = &code[..2];
            matches!(class, "08" | "40" | "53")
                || code.starts_with("57P")
                || matches!(&*code, "58000" | "58030" | "55P03" | "57014" | "25006" | "25P03" | "25P04")
        }),
        _ => false,
    }
}

/// Whether the server answers and cannot do its work: it misses files of its own, or cannot load a library, as after an
/// upgrade of the installed PostgreSQL under the running one; or its data is damaged. It stays so until an operator acts.
pub fn is_broken_database(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    // 58P01, 58P02: a file is missing, or there though it must not be; XX001, XX002: damaged data or index.
    let by_code = matches!(error.code().as_deref(), Some("58P01" | "58P02" | "XX001" | "XX002"));
    // Its code depends on what the system has said of the file.
    by_code || ["could not load library", "incompatible library"].iter().any(|start| error.message().starts_with(start))
}

/// Whether a statement ran for longer than the statement timeout.
pub fn is_statement_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("57014"))
}

/// Whether a row was there that may be there once only.
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.is_unique_violation())
}

/// Whether another transaction held a row for longer than the lock timeout.
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("55P03"))
}
