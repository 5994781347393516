//! The one error type at the edge. `grpc::status` turns it into a status with details.

use crate::proto::ErrorReason;
use chrono::{DateTime, SecondsFormat, Utc};
use meterd_domain::period::Month;
use meterd_store::StoreError;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// What is wrong with a field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path, such as "event.units".
    pub field: String,
    /// What is wrong and what to send instead.
    pub description: String,
}

/// Why a call, or one event of it, failed. Not larger than a pointer: there is room for one in every event's outcome.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Error(Box<Fault>);

/// What an [`Error`] says.
#[derive(Clone, Debug)]
pub struct Fault {
    pub code: Code,
    pub reason: ErrorReason,
    /// For the caller: never SQL, never a secret.
    pub message: String,
    pub violations: Vec<Violation>,
    /// Whether and when sending again may help.
    pub retry_delay: Option<Duration>,
    /// More for `ErrorInfo.metadata`.
    pub metadata: Vec<(&'static str, String)>,
    /// For the log.
    pub cause: Option<Arc<anyhow::Error>>,
}

/// Most wrong fields that a message spells out: the details have them all, and a batch has ten thousand messages.
const MESSAGE_VIOLATIONS_MAX: usize = 3;
/// What callers are told to wait before they ask again a database that is away.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The embedded database is restarted within seconds; another one waits for its operator.
const BROKEN_RETRY_DELAY: Duration = Duration::from_secs(10);
/// A caller whose connection was old may come back at once: only not all at the same time.
const AGED_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Most characters of a wrong value that are sent back.
const SHOWN_CHARS_MAX: usize = 40;

/// A wrong value in quotes, as much of it as helps.
pub fn shown(value: &str) -> String {
    let start: String = value.chars().take(SHOWN_CHARS_MAX).collect();
    let rest = if start.len() < value.len() { "…" } else { "" };
    format!("{start:?}{rest}")
}

impl Violation {
    /// A violation of this field.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

impl Error {
    /// An error with a code, a reason and a sentence.
    pub fn new(code: Code, reason: ErrorReason, message: impl Into<String>) -> Self {
        let message = message.into();
        let (violations, metadata) = (vec![], vec![]);
        Self(Box::new(Fault { code, reason, message, violations, retry_delay: None, metadata, cause: None }))
    }

    /// One wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid(ErrorReason::InvalidField, vec![Violation::new(field, description)])
    }

    /// Wrong fields, all at once.
    pub fn invalid(reason: ErrorReason, violations: Vec<Violation>) -> Self {
        let shown = violations.iter().take(MESSAGE_VIOLATIONS_MAX);
        let mut message = shown.map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join("; ");
        if let Some(more @ 1..) = violations.len().checked_sub(MESSAGE_VIOLATIONS_MAX) {
            message += &format!("; and {more} more");
        }
        let mut error = Self::new(Code::InvalidArgument, reason, message);
        error.violations = violations;
        error
    }

    /// No such client.
    pub fn client_not_found(client_id: &str) -> Self {
        Self::new(Code::NotFound, ErrorReason::ClientNotFound, format!("no client \"{client_id}\""))
    }

    /// The month is past its retention.
    pub fn month_closed(closed_through: Month) -> Self {
        let message = format!("months through {closed_through} are past their retention and stay as they are");
        Self::new(Code::FailedPrecondition, ErrorReason::MonthClosed, message)
            .with("closed_through", closed_through.to_string())
    }

    /// The event is so old that a key like its may have been there and gone.
    pub fn key_pruned(pruned_through: DateTime<Utc>) -> Self {
        let description = format!(
            "is too far back to tell a new event from a repeat: keys through {} are deleted. If it was never recorded, send \
             it with BatchTrackUsage and backfill = true",
            pruned_through.to_rfc3339_opts(SecondsFormat::Secs, true)
        );
        Self::invalid(ErrorReason::EventTooOld, vec![Violation::new("event.event_time", description)])
    }

    /// Something of that name is there already.
    pub fn already_exists(reason: ErrorReason, message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, reason, message)
    }

    /// A full bound; sending again after `retry_delay` may find room.
    pub fn exhausted(reason: ErrorReason, message: impl Into<String>, retry_delay: Duration) -> Self {
        Self::new(Code::ResourceExhausted, reason, message).retry_after(retry_delay)
    }

    /// The database does not answer.
    pub fn database_unavailable(cause: impl Into<anyhow::Error>) -> Self {
        let message = "the database is away, out of room or too slow; send again, events with the same idempotency key";
        Self::new(Code::Unavailable, ErrorReason::DatabaseUnavailable, message)
            .retry_after(DATABASE_RETRY_DELAY)
            .caused_by(cause)
    }

    /// The database answers, and cannot do its work until an operator acts.
    pub fn database_broken(cause: impl Into<anyhow::Error>) -> Self {
        let message = "the database server runs but misses files of its own or cannot load them, as after an upgrade of \
                       PostgreSQL without a restart; the operator has to read its log and restart it. Send again later, \
                       events with the same idempotency key";
        Self::new(Code::Unavailable, ErrorReason::DatabaseBroken, message)
            .retry_after(BROKEN_RETRY_DELAY)
            .caused_by(cause)
    }

    /// The server is going down.
    pub fn shutting_down() -> Self {
        Self::new(Code::Unavailable, ErrorReason::ShuttingDown, "the server is stopping; send again")
            .retry_after(DATABASE_RETRY_DELAY)
    }

    /// The connection has had its time.
    pub fn connection_aged() -> Self {
        let message = "the connection has been open for as long as it may; go on with a new one";
        Self::new(Code::Unavailable, ErrorReason::ConnectionAged, message).retry_after(AGED_RETRY_DELAY)
    }

    /// A fault of ours. The caller gets a fixed phrase, the log the cause.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(Code::Internal, ErrorReason::Internal, "internal error; the log has it under the request id")
            .caused_by(cause)
    }

    /// Says that sending again may help, and when.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_delay = Some(delay);
        self
    }

    fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(Arc::new(cause.into()));
        self
    }

    /// All that it says.
    pub fn into_fault(self) -> Fault {
        *self.0
    }

    /// Adds to `ErrorInfo.metadata`.
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }
}

impl Deref for Error {
    type Target = Fault;

    fn deref(&self) -> &Fault {
        &self.0
    }
}

impl DerefMut for Error {
    fn deref_mut(&mut self) -> &mut Fault {
        &mut self.0
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            Self::database_unavailable(error)
        } else if error.is_broken_database() {
            Self::database_broken(error)
        } else {
            Self::internal(error)
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}
