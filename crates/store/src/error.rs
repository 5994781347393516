//! Why the database did not do what was asked.

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// From the driver, or from PostgreSQL.
    #[error(transparent)]
    Driver(#[from] sqlx::Error),
    /// There was no answer in time. The work may have been done.
    #[error("the database did not answer in time")]
    Timeout,
    /// What was remembered of the database no longer holds. The same work succeeds after it is read again.
    #[error("{0}")]
    Stale(&'static str),
    /// The database has data that meterd cannot have written. Never retried.
    #[error("inconsistent data: {0}")]
    Inconsistent(String),
}

/// A result of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// The database has data that meterd cannot have written.
    pub fn inconsistent(what: impl ToString) -> Self {
        Self::Inconsistent(what.to_string())
    }

    fn code(&self) -> Option<String> {
        match self {
            Self::Driver(sqlx::Error::Database(error)) => error.code().map(|code| code.into_owned()),
            _ => None,
        }
    }

    /// Whether the same work may succeed if it is done again: the connection broke, the server is going down or coming up, or
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
                sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                    // 08: connection; 40: rolled back, a deadlock among them; 53: resources, disk full among them; 57P0x:
                    // shutdown, crash, starting up; 58000, 58030: the system below, I/O; 25006: read-only, as after a failover;
                    // 25P03, 25P04: idle in transaction; 55P03: lock timeout; 57014: statement timeout.
                    let class = &code[..2];
                    matches!(class, "08" | "40" | "53")
                        || code.starts_with("57P")
                        || matches!(&*code, "58000" | "58030" | "55P03" | "57014" | "25006" | "25P03" | "25P04")
                }),
                _ => false,
            },
        }
    }

    /// Whether the server answers and cannot do its work: it misses files of its own, or cannot load a library, as after an
    /// upgrade of the installed PostgreSQL under the running one; or its data is damaged. It stays so until an operator acts.
    pub fn is_broken_database(&self) -> bool {
        let Self::Driver(sqlx::Error::Database(error)) = self else { return false };
        // 58P01, 58P02: a file is missing, or there though it must not be; XX001, XX002: damaged data or index.
        let by_code = matches!(error.code().as_deref(), Some("58P01" | "58P02" | "XX001" | "XX002"));
        // Its code depends on what the system has said of the file.
        by_code
            || ["could not load library", "incompatible library"].iter().any(|start| error.message().starts_with(start))
    }

    /// Whether a statement ran for longer than the statement timeout.
    pub fn is_statement_timeout(&self) -> bool {
        self.code().as_deref() == Some("57014")
    }

    /// Whether a row exists that may exist only once.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Driver(sqlx::Error::Database(error)) if error.is_unique_violation())
    }

    /// Whether another transaction held a row for longer than the lock timeout.
    pub fn is_lock_timeout(&self) -> bool {
        self.code().as_deref() == Some("55P03")
    }
}
