//! Delivers notifications of alerts by e-mail, SMS and webhook.
//!
//! The transaction that raises an alert queues them (`store::notifications`). On every replica a worker claims due notifications
//! in a short transaction, sends them outside of it, and stores the outcome. If a worker dies, its claim expires and another
//! worker sends again, with the same id. So each notification is delivered at least once.

mod address;
mod backoff;
mod config;
mod email;
mod http;
mod paused;
mod reason;
mod sender;
mod sms;
mod target;
mod text;
mod webhook;

pub use config::{NotifyConfig, Secret, SmtpConfig, TwilioConfig};
use meterd_store::StoreError;
use reason::reason;
use sender::Failure;
pub use sender::{Sender, check};
pub use target::{check_secret, check_target, new_secret};

use futures_util::future::join_all;
use meterd_domain::notification::ChannelKind;
use meterd_store::alerts::outbox::{self, ClaimedNotification, DueChannel};
use paused::PausedChannels;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often a replica looks for due notifications.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How often a replica gives up notifications of removed channels and counts pending ones.
const UPKEEP_EVERY: Duration = Duration::from_secs(10);
/// Maximum number of channels that a replica sends to at the same time. Each has one claim, so a receiver that does not answer
/// delays few others.
const CHANNELS_MAX: usize = 8;
/// Maximum number of notifications of one claim. They are sent at the same time.
const CLAIM_MAX: i64 = 4;
/// Time between the timeout of the attempts of a claim and the end of the claim.
const CLAIM_MARGIN: Duration = Duration::from_secs(50);
/// Maximum time until a notification is due: until a claim expires, until the next attempt, or until the hour of a channel ends.
const WAIT_MAX: Duration = Duration::from_secs(3600 + 60);
const WAIT_MARGIN: Duration = Duration::from_secs(60);
/// Maximum number of alerts that a digest contains.
const DIGEST_ALERTS_MAX: i64 = 100;
/// Maximum number of notifications that one statement gives up.
const GIVE_UP_ROWS: i64 = 10_000;
/// Timeout of database work. It takes longer only on a broken connection.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

/// The error of a claim.
struct ClaimError {
    /// The channel. `None` if the database failed before one was chosen.
    channel_id: Option<i64>,
    error: StoreError,
}

/// The worker of a replica.
pub struct Notifier {
    pool: PgPool,
    sender: Sender,
    attempts_max: u32,
    hourly_max: u32,
    backoff: Duration,
    claim: Duration,
}

impl Notifier {
    /// Creates the worker.
    pub fn new(pool: &PgPool, sender: Sender, config: &NotifyConfig) -> Self {
        Self {
            pool: pool.clone(),
            sender,
            attempts_max: config.attempts_max,
            hourly_max: config.hourly_max,
            backoff: config.backoff,
            claim: config.timeout + CLAIM_MARGIN,
        }
    }

    /// Sends due notifications until `stopping` is true, then waits for those that are being sent.
    pub async fn run(self, wanted: Arc<Notify>, mut stopping: watch::Receiver<bool>) {
        let notifier = Arc::new(self);
        let mut deliveries = JoinSet::new();
        let mut busy: HashMap<tokio::task::Id, i64> = HashMap::new();
        let mut upkeep_due = Instant::now();
        let mut paused = PausedChannels::default();
        let mut is_failing = false;
        while !*stopping.borrow() {
            let mut found = Ok(());
            if upkeep_due <= Instant::now() {
                found = notifier.upkeep().await;
                upkeep_due = Instant::now() + UPKEEP_EVERY;
            }
            while found.is_ok() && busy.len() < CHANNELS_MAX && !*stopping.borrow() {
                let channels: Vec<i64> = busy.values().copied().chain(paused.paused(Instant::now())).collect();
                match notifier.claim(&channels).await {
                    Ok(None) => break,
                    Ok(Some((channel, taken))) => {
                        let channel_id = channel.channel_id;
                        paused.resume(channel_id);
                        let delivery = deliveries.spawn(notifier.clone().deliver_all(channel, taken));
                        busy.insert(delivery.id(), channel_id);
                    }
                    Err(ClaimError { channel_id: Some(channel_id), error }) => {
                        if paused.pause(channel_id, Instant::now()) {
                            tracing::warn!(channel_id, %error, "notifications of a channel wait: they cannot be claimed");
                        }
                    }
                    Err(ClaimError { channel_id: None, error }) => found = Err(error),
                }
            }
            match found {
                Err(error) if !is_failing => {
                    tracing::warn!(%error, "notifications wait: the database fails");
                    is_failing = true;
                }
                Err(_) => {}
                Ok(()) => is_failing = false,
            }
            tokio::select! {
                () = wanted.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
                Some(ended) = deliveries.join_next_with_id() => {
                    let id = ended.map_or_else(|panic| panic.id(), |(id, ())| id);
                    busy.remove(&id);
                }
                _ = stopping.changed() => {}
            }
        }
        while deliveries.join_next().await.is_some() {}
    }

    /// Claims due notifications of one channel in one transaction. Returns `None` if no other channel has any.
    async fn claim(&self, busy: &[i64]) -> Result<Option<(DueChannel, Vec<ClaimedNotification>)>, ClaimError> {
        let mut channel_id = None;
        let claiming = async {
            let mut tx = self.pool.begin().await?;
            let Some(channel) = outbox::lock_channel(&mut tx, busy).await? else { return Ok(None) };
            channel_id = Some(channel.channel_id);
            let given_up = outbox::give_up_tried(&mut tx, &channel, self.attempts_max as i32).await?;
            let digest_id = format!("{:032x}-digest", rand::random::<u128>());
            let digested = outbox::digest(&mut tx, &channel, &digest_id, DIGEST_ALERTS_MAX).await?;
            let counted = if channel.hour_over { 0 } else { i64::from(channel.hour_count) };
            let room = (i64::from(self.hourly_max) - counted).max(0);
            let taken = outbox::take(&mut tx, &channel, room, CLAIM_MAX, self.claim.as_secs_f64()).await?;
            let begun = taken.iter().filter(|taken| taken.first).count();
            if begun > 0 {
                outbox::count(&mut tx, &channel, begun as i32).await?;
            }
            if begun as i64 >= room {
                outbox::hold(&mut tx, &channel).await?;
            }
            tx.commit().await?;
            if digested > 0 {
                count(&channel, "digested", digested);
            }
            if given_up > 0 {
                tracing::warn!(
                    count = given_up,
                    "notifications were given up; the outcome of their last attempt is not known"
                );
                count(&channel, "failed", given_up);
            }
            Ok(Some((channel, taken)))
        };
        let claimed = tokio::time::timeout(DATABASE_TIMEOUT, claiming).await.unwrap_or(Err(StoreError::Timeout));
        claimed.map_err(|error| ClaimError { channel_id, error })
    }

    /// Sends the notifications of a claim and stores the outcomes.
    async fn deliver_all(self: Arc<Self>, channel: DueChannel, taken: Vec<ClaimedNotification>) {
        join_all(taken.iter().map(|taken| self.deliver(&channel, taken))).await;
    }

    async fn deliver(&self, channel: &DueChannel, taken: &ClaimedNotification) {
        let delivered = match ChannelKind::try_from(channel.kind) {
            Ok(kind) => self.sender.send(kind, channel, taken).await,
            Err(error) => Err(Failure::Permanent(error.to_string())),
        };
        let id = taken.notification_id.as_str();
        let attempts = taken.attempt_count.unsigned_abs();
        let marked = match delivered.map_err(Failure::cleaned) {
            Ok(()) => {
                count(channel, "sent", 1);
                outbox::mark_sent(&self.pool, &channel.client_id, id).await
            }
            // A test has one attempt, because its caller waits for the outcome.
            Err(Failure::Transient(error)) if attempts < self.attempts_max && taken.alert_count > 0 => {
                tracing::info!(
                    notification_id = id,
                    attempts,
                    error,
                    "a notification was not delivered and will be retried"
                );
                count(channel, "retried", 1);
                let delay = backoff::pause(self.backoff, attempts).as_secs_f64();
                outbox::mark_failed(&self.pool, &channel.client_id, taken, &error, Some(delay)).await
            }
            Err(Failure::Transient(error) | Failure::Permanent(error)) => {
                tracing::warn!(notification_id = id, attempts, error, "a notification was given up");
                count(channel, "failed", 1);
                outbox::mark_failed(&self.pool, &channel.client_id, taken, &error, None).await
            }
        };
        if let Err(error) = marked {
            tracing::warn!(notification_id = id, %error, "the outcome of a notification could not be stored; it may be sent again");
        }
    }

    async fn upkeep(&self) -> meterd_store::Result<()> {
        let keeping = async {
            give_up_without_channel(&self.pool).await?;
            let count = outbox::bring_forward(&self.pool, WAIT_MAX.max(self.claim + WAIT_MARGIN)).await?;
            if count > 0 {
                tracing::warn!(count, "the clock of the database was set back; notifications are brought forward");
            }
            metrics::gauge!("meterd_notifications_pending").set(outbox::pending_count(&self.pool).await? as f64);
            Ok(())
        };
        tokio::time::timeout(DATABASE_TIMEOUT, keeping).await.unwrap_or(Err(StoreError::Timeout))
    }
}

/// Gives up the pending notifications of removed channels.
pub async fn give_up_without_channel(pool: &PgPool) -> meterd_store::Result<()> {
    loop {
        let count = outbox::give_up_without_channel(pool, GIVE_UP_ROWS).await?;
        if count > 0 {
            tracing::warn!(count, "notifications were given up, because their channels were removed");
        }
        if count < GIVE_UP_ROWS as u64 {
            return Ok(());
        }
    }
}

fn count(channel: &DueChannel, outcome: &'static str, count: u64) {
    let kind = ChannelKind::try_from(channel.kind).map_or("unknown", ChannelKind::name);
    metrics::counter!("meterd_notifications_total", "kind" => kind, "outcome" => outcome).increment(count);
}
