//! The error of a use case: why a request, or one event of it, was refused.
//!
//! The engine names a reason. Which status code a protocol sends for it is decided by one table per protocol at the edge.

use chrono::{DateTime, SecondsFormat, Utc};
use meterd_domain::period::Month;
use meterd_store::StoreError;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

macro_rules! reasons {
    ($($reason:ident $name:literal,)*) => {
        /// Why something was refused. The contract documents each reason (`errors.proto`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($reason,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// Returns the name that callers see, such as `INVALID_FIELD`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

reasons! {
    InvalidField "INVALID_FIELD",
    UnknownService "UNKNOWN_SERVICE",
    EventTooOld "EVENT_TOO_OLD",
    EventInFuture "EVENT_IN_FUTURE",
    PageTokenInvalid "PAGE_TOKEN_INVALID",
    RangeTooLong "RANGE_TOO_LONG",
    ClientNotFound "CLIENT_NOT_FOUND",
    EventNotFound "EVENT_NOT_FOUND",
    IdempotencyConflict "IDEMPOTENCY_CONFLICT",
    ClientExists "CLIENT_EXISTS",
    ServiceExists "SERVICE_EXISTS",
    PriceExists "PRICE_EXISTS",
    ModelAliasExists "MODEL_ALIAS_EXISTS",
    RequestIdReused "REQUEST_ID_REUSED",
    QueueFull "QUEUE_FULL",
    TooManyExports "TOO_MANY_EXPORTS",
    DatabaseUnavailable "DATABASE_UNAVAILABLE",
    ShuttingDown "SHUTTING_DOWN",
    DeadlineExceeded "DEADLINE_EXCEEDED",
    Internal "INTERNAL",
    AlertNotFound "ALERT_NOT_FOUND",
    ResumeTokenInvalid "RESUME_TOKEN_INVALID",
    ResumeTokenExpired "RESUME_TOKEN_EXPIRED",
    ResumeTokenAhead "RESUME_TOKEN_AHEAD",
    TooManySubscriptions "TOO_MANY_SUBSCRIPTIONS",
    NotificationNotFound "NOTIFICATION_NOT_FOUND",
    NotificationNotFailed "NOTIFICATION_NOT_FAILED",
    MonthClosed "MONTH_CLOSED",
    JobNotFound "JOB_NOT_FOUND",
    CredentialsMissing "CREDENTIALS_MISSING",
    CredentialsInvalid "CREDENTIALS_INVALID",
    CredentialsExpired "CREDENTIALS_EXPIRED",
    ApiKeyRevoked "API_KEY_REVOKED",
    ScopeMissing "SCOPE_MISSING",
    ClientNotCovered "CLIENT_NOT_COVERED",
    RateLimited "RATE_LIMITED",
    ApiKeyNotFound "API_KEY_NOT_FOUND",
    ApiKeyNotLive "API_KEY_NOT_LIVE",
    TooManyApiKeys "TOO_MANY_API_KEYS",
    ServerBusy "SERVER_BUSY",
    ConnectionAged "CONNECTION_AGED",
    IdentityProviderUnavailable "IDENTITY_PROVIDER_UNAVAILABLE",
    OriginNotAllowed "ORIGIN_NOT_ALLOWED",
    DatabaseBroken "DATABASE_BROKEN",
    MessageInvalid "MESSAGE_INVALID",
    RateNotConfirmed "RATE_NOT_CONFIRMED",
    PriceNotFound "PRICE_NOT_FOUND",
    PriceWithdrawn "PRICE_WITHDRAWN",
    PricesOverlap "PRICES_OVERLAP",
    EventVoided "EVENT_VOIDED",
    RepriceRunNotFound "REPRICE_RUN_NOT_FOUND",
    PreviousReleaseMayRun "PREVIOUS_RELEASE_MAY_RUN",
    PlanNotFound "PLAN_NOT_FOUND",
    PlanExists "PLAN_EXISTS",
    CreditGrantNotFound "CREDIT_GRANT_NOT_FOUND",
    LimitNotFound "LIMIT_NOT_FOUND",
    LimitExists "LIMIT_EXISTS",
    LimitBelowUsed "LIMIT_BELOW_USED",
    TooManyLimits "TOO_MANY_LIMITS",
}

/// What is wrong with a field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as "event.units".
    pub field: String,
    /// What is wrong and what to send instead.
    pub description: String,
}

/// Why a request, or one event of it, was refused. It is as small as a pointer, because every outcome of an event has room for one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Refusal(Box<Details>);

/// The contents of a [`Refusal`].
#[derive(Clone, Debug)]
pub struct Details {
    pub reason: Reason,
    /// The message for the caller. Never contains SQL or a secret.
    pub message: String,
    pub fields: Vec<Violation>,
    /// If set, the same request may succeed after this time.
    pub retry: Option<Duration>,
    /// Further facts by name, for programs.
    pub metadata: Vec<(&'static str, String)>,
    /// The cause, for the log.
    pub cause: Option<Arc<anyhow::Error>>,
}

/// Maximum number of violations in a message. A batch can have ten thousand messages. `fields` always has all violations.
const MESSAGE_VIOLATIONS_MAX: usize = 3;
/// The retry delay if the database does not answer.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The retry delay if the database is broken. An embedded database is restarted within seconds; any other waits for its operator.
const BROKEN_RETRY_DELAY: Duration = Duration::from_secs(10);
/// The retry delay after a connection was closed because of its age. It is short, because a new connection can be used at once.
const AGED_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Maximum number of characters of a wrong value that are sent back.
const SHOWN_CHARS_MAX: usize = 40;

/// Returns the beginning of a wrong value, in quotes.
pub fn shown(value: &str) -> String {
    let start: String = value.chars().take(SHOWN_CHARS_MAX).collect();
    let rest = if start.len() < value.len() { "…" } else { "" };
    format!("{start:?}{rest}")
}

impl Violation {
    /// Creates a violation of this field.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

impl Refusal {
    /// Creates a refusal with a reason and a sentence for the caller.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let (message, fields, metadata) = (message.into(), vec![], vec![]);
        Self(Box::new(Details { reason, message, fields, retry: None, metadata, cause: None }))
    }

    /// Creates the refusal of one wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid(Reason::InvalidField, vec![Violation::new(field, description)])
    }

    /// Creates one refusal of all wrong fields.
    pub fn invalid(reason: Reason, fields: Vec<Violation>) -> Self {
        let first = fields.iter().take(MESSAGE_VIOLATIONS_MAX);
        let mut message = first.map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join("; ");
        if let Some(more @ 1..) = fields.len().checked_sub(MESSAGE_VIOLATIONS_MAX) {
            message += &format!("; and {more} more");
        }
        let mut refusal = Self::new(reason, message);
        refusal.fields = fields;
        refusal
    }

    /// Creates the refusal for a client that does not exist.
    pub fn client_not_found(client_id: &str) -> Self {
        Self::new(Reason::ClientNotFound, format!("no client \"{client_id}\""))
    }

    /// Creates the refusal for a month that is past its retention.
    pub fn month_closed(closed_through: Month) -> Self {
        let message = format!("months through {closed_through} are past their retention and stay as they are");
        Self::new(Reason::MonthClosed, message).with("closed_through", closed_through.to_string())
    }

    /// Creates the refusal for an event that is so old that its key may have been recorded and deleted since.
    pub fn key_pruned(pruned_through: DateTime<Utc>) -> Self {
        let description = format!(
            "is too far back to tell a new event from a repeat: keys through {} are deleted. If it was never recorded, send \
             it with BatchTrackUsage and backfill = true",
            pruned_through.to_rfc3339_opts(SecondsFormat::Secs, true)
        );
        Self::invalid(Reason::EventTooOld, vec![Violation::new("event.event_time", description)])
    }

    /// Creates the refusal for a limit that is reached. The same request may succeed after `retry_delay`.
    pub fn exhausted(reason: Reason, message: impl Into<String>, retry_delay: Duration) -> Self {
        Self::new(reason, message).retry_after(retry_delay)
    }

    /// Creates the refusal for a database that does not answer.
    pub fn database_unavailable(cause: impl Into<anyhow::Error>) -> Self {
        let message = "the database is away, out of room or too slow; send again, events with the same idempotency key";
        Self::new(Reason::DatabaseUnavailable, message).retry_after(DATABASE_RETRY_DELAY).caused_by(cause)
    }

    /// Creates the refusal for a database that answers, but cannot work until an operator acts.
    pub fn database_broken(cause: impl Into<anyhow::Error>) -> Self {
        let message = "the database server runs but misses files of its own or cannot load them, as after an upgrade of \
                       PostgreSQL without a restart; the operator has to read its log and restart it. Send again later, \
                       events with the same idempotency key";
        Self::new(Reason::DatabaseBroken, message).retry_after(BROKEN_RETRY_DELAY).caused_by(cause)
    }

    /// Creates the refusal for a server that is stopping.
    pub fn shutting_down() -> Self {
        Self::new(Reason::ShuttingDown, "the server is stopping; send again").retry_after(DATABASE_RETRY_DELAY)
    }

    /// Creates the refusal for a connection that has reached its maximum age.
    pub fn connection_aged() -> Self {
        let message = "the connection has been open for as long as it may; go on with a new one";
        Self::new(Reason::ConnectionAged, message).retry_after(AGED_RETRY_DELAY)
    }

    /// Creates the refusal for an internal error. The message is a fixed sentence; only the log has the cause.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(Reason::Internal, "internal error; the log has it under the request id").caused_by(cause)
    }

    /// Sets the time after which the same request may succeed.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry = Some(delay);
        self
    }

    fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(Arc::new(cause.into()));
        self
    }

    /// Returns the contents.
    pub fn into_details(self) -> Details {
        *self.0
    }

    /// Adds a fact for programs.
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }
}

impl Deref for Refusal {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for Refusal {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

impl From<StoreError> for Refusal {
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

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}
