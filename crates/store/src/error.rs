//! The error type of the store.

use std::borrow::Cow;

/// Errors that Citus may report with the code of an internal error, by the start of their message. COPY and INSERT ... SELECT lose
/// the codes of the servers that have the rows.
const LOST_CODES: &[(&str, &str)] = &[
    ("duplicate key value violates unique constraint", "23505"),
    ("deadlock detected", "40P01"),
    ("canceling statement due to lock timeout", "55P03"),
];

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An error of the driver or of PostgreSQL.
    #[error(transparent)]
    Driver(#[from] sqlx::Error),
    /// The database did not answer in time. It may have done the work.
    #[error("the database did not answer in time")]
    Timeout,
    /// Cached data of the database were out of date. The same work succeeds after they are read again.
    #[error("{0}")]
    Stale(&'static str),
    /// The database has data that meterd cannot have written. Never retried.
    #[error("inconsistent data: {0}")]
    Inconsistent(String),
}

/// A result of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// Returns an [`StoreError::Inconsistent`] with this message.
    pub fn inconsistent(what: impl ToString) -> Self {
        Self::Inconsistent(what.to_string())
    }

    /// Returns the SQLSTATE of an error of PostgreSQL, also if Citus has lost it.
    fn code(&self) -> Option<Cow<'_, str>> {
        let Self::Driver(sqlx::Error::Database(error)) = self else { return None };
        let code = error.code()?;
        if code != "XX000" {
            return Some(code);
        }
        let lost = LOST_CODES.iter().find(|(start, _)| error.message().starts_with(start));
        Some(lost.map_or(code, |(_, lost)| Cow::Borrowed(*lost)))
    }

    /// Returns whether a retry may succeed: the connection broke, the server is shutting down or starting up, or
    /// another transaction was in the way.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout | Self::Stale(_) => true,
            Self::Inconsistent(_) => false,
            Self::Driver(error) => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_) => true,
                sqlx::Error::Database(_) => self.code().is_some_and(|code| {
                    // 08: connection; 40: rollback, for example after a deadlock; 53: resources, for example a full
                    // disk; 57P0x: shutdown, crash or startup; 58000, 58030: operating system, I/O; 25006: read-only,
                    // as after a failover; 25P03, 25P04: idle in transaction; 55P03: lock timeout; 57014: statement
                    // timeout.
                    let class = &code[..2];
                    matches!(class, "08" | "40" | "53")
                        || code.starts_with("57P")
                        || matches!(&*code, "58000" | "58030" | "55P03" | "57014" | "25006" | "25P03" | "25P04")
                }),
                _ => false,
            },
        }
    }

    /// Returns whether the server answers but cannot work until an operator acts. Its own files are missing, it cannot
    /// load a library (as after an upgrade of the installed PostgreSQL while the server runs), or its data are damaged.
    pub fn is_broken_database(&self) -> bool {
        let Self::Driver(sqlx::Error::Database(error)) = self else { return false };
        // 58P01, 58P02: a file is missing or exists unexpectedly; XX001, XX002: damaged data or index.
        let by_code = matches!(error.code().as_deref(), Some("58P01" | "58P02" | "XX001" | "XX002"));
        // The code of these errors depends on the error of the operating system.
        by_code
            || ["could not load library", "incompatible library"].iter().any(|start| error.message().starts_with(start))
    }

    /// Returns whether a statement exceeded the statement timeout.
    pub fn is_statement_timeout(&self) -> bool {
        self.code().as_deref() == Some("57014")
    }

    /// Returns whether a row with the same unique key exists.
    pub fn is_unique_violation(&self) -> bool {
        self.code().as_deref() == Some("23505")
    }

    /// Returns whether the wait for a lock exceeded the lock timeout.
    pub fn is_lock_timeout(&self) -> bool {
        self.code().as_deref() == Some("55P03")
    }
}
