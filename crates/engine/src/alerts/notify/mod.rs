//! Notifications: people are told of alerts by e-mail, SMS and webhook.
//!
//! They are queued in the transaction that raises an alert (`store::notifications`). On every replica a worker claims what is
//! due in a short transaction, delivers it outside of any, and notes what became of it. Who dies in between leaves a claim
//! that runs out: the next one delivers again, with the same id. So each arrives at least once.

mod address;
mod aside;
mod backoff;
mod config;
mod courier;
mod email;
mod http;
mod reason;
mod sms;
mod target;
mod text;
mod webhook;

pub use config::{NotifyConfig, Secret, SmtpConfig, TwilioConfig};
use courier::Failure;
pub use courier::{Courier, check};
use meterd_store::StoreError;
use reason::reason;
pub use target::{check_secret, check_target, new_secret};

use aside::Aside;
use futures_util::future::join_all;
use meterd_domain::notification::ChannelKind;
use meterd_store::outbox::{self, DueChannel, Taken};
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often a replica looks for what is due.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How often it looks for what waits in vain, and counts what waits.
const UPKEEP_EVERY: Duration = Duration::from_secs(10);
/// Channels that a replica delivers to at the same time. Each has one claim, so a receiver that hangs holds up few others.
const CHANNELS_MAX: usize = 8;
/// Notifications of one claim, delivered at the same time.
const CLAIM_MAX: i64 = 4;
/// A claim runs out so long after its deliveries have to be over.
const CLAIM_MARGIN: Duration = Duration::from_secs(50);
/// Nothing waits longer, for a claim to run out, the next attempt, or the end of a channel's hour.
const WAIT_MAX: Duration = Duration::from_secs(3600 + 60);
const WAIT_MARGIN: Duration = Duration::from_secs(60);
/// Alerts that a digest spells out.
const DIGEST_ALERTS_MAX: i64 = 100;
/// Notifications that one statement gives up.
const GIVE_UP_ROWS: i64 = 10_000;
/// Database work that takes longer hangs on a connection that is dead.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why nothing was claimed.
struct ClaimError {
    /// The channel that was to be claimed; without one, the database failed before.
    channel_id: Option<i64>,
    error: StoreError,
}

/// The worker of a replica.
pub struct Notifier {
    pool: PgPool,
    courier: Courier,
    attempts_max: u32,
    hourly_max: u32,
    backoff: Duration,
    claim: Duration,
}

impl Notifier {
    /// With a way to deliver.
    pub fn new(pool: &PgPool, courier: Courier, config: &NotifyConfig) -> Self {
        Self {
            pool: pool.clone(),
            courier,
            attempts_max: config.attempts_max,
            hourly_max: config.hourly_max,
            backoff: config.backoff,
            claim: config.timeout + CLAIM_MARGIN,
        }
    }

    /// Delivers what is due until `stopping` turns true, then finishes what is under way.
    pub async fn run(self, wanted: Arc<Notify>, mut stopping: watch::Receiver<bool>) {
        let notifier = Arc::new(self);
        let mut deliveries = JoinSet::new();
        let mut busy: HashMap<tokio::task::Id, i64> = HashMap::new();
        let mut upkeep_due = Instant::now();
        let mut aside = Aside::default();
        let mut failing = false;
        while !*stopping.borrow() {
            let mut found = Ok(());
            if upkeep_due <= Instant::now() {
                found = notifier.upkeep().await;
                upkeep_due = Instant::now() + UPKEEP_EVERY;
            }
            while found.is_ok() && busy.len() < CHANNELS_MAX && !*stopping.borrow() {
                let channels: Vec<i64> = busy.values().copied().chain(aside.channels(Instant::now())).collect();
                match notifier.claim(&channels).await {
                    Ok(None) => break,
                    Ok(Some((channel, taken))) => {
                        let channel_id = channel.channel_id;
                        aside.take_back(channel_id);
                        let delivery = deliveries.spawn(notifier.clone().deliver_all(channel, taken));
                        busy.insert(delivery.id(), channel_id);
                    }
                    Err(ClaimError { channel_id: Some(channel_id), error }) => {
                        if aside.put(channel_id, Instant::now()) {
                            tracing::warn!(channel_id, %error, "notifications of a channel wait: they cannot be claimed");
                        }
                    }
                    Err(ClaimError { channel_id: None, error }) => found = Err(error),
                }
            }
            match found {
                Err(error) if !failing => {
                    tracing::warn!(%error, "notifications wait: the database fails");
                    failing = true;
                }
                Err(_) => {}
                Ok(()) => failing = false,
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

    /// Takes what is due of a channel, in one transaction; nothing where no channel that is free has anything.
    async fn claim(&self, busy: &[i64]) -> Result<Option<(DueChannel, Vec<Taken>)>, ClaimError> {
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
                    "notifications were given up: what became of their last attempt is not known"
                );
                count(&channel, "failed", given_up);
            }
            Ok(Some((channel, taken)))
        };
        let claimed = tokio::time::timeout(DATABASE_TIMEOUT, claiming).await.unwrap_or(Err(StoreError::Timeout));
        claimed.map_err(|error| ClaimError { channel_id, error })
    }

    /// Delivers a claim and notes what became of it.
    async fn deliver_all(self: Arc<Self>, channel: DueChannel, taken: Vec<Taken>) {
        join_all(taken.iter().map(|taken| self.deliver(&channel, taken))).await;
    }

    async fn deliver(&self, channel: &DueChannel, taken: &Taken) {
        let delivered = match ChannelKind::try_from(channel.kind) {
            Ok(kind) => self.courier.deliver(kind, channel, taken).await,
            Err(error) => Err(Failure::Final(error.to_string())),
        };
        let id = taken.notification_id.as_str();
        let attempts = taken.attempt_count.unsigned_abs();
        let marked = match delivered.map_err(Failure::cleaned) {
            Ok(()) => {
                count(channel, "sent", 1);
                outbox::mark_sent(&self.pool, &channel.client_id, id).await
            }
            // The caller of a test waits for its outcome: there is one attempt.
            Err(Failure::Passing(error)) if attempts < self.attempts_max && taken.alert_count > 0 => {
                tracing::info!(
                    notification_id = id,
                    attempts,
                    error,
                    "a notification was not delivered and is tried again"
                );
                count(channel, "retried", 1);
                let delay = backoff::pause(self.backoff, attempts).as_secs_f64();
                outbox::mark_failed(&self.pool, &channel.client_id, taken, &error, Some(delay)).await
            }
            Err(Failure::Passing(error) | Failure::Final(error)) => {
                tracing::warn!(notification_id = id, attempts, error, "a notification was given up");
                count(channel, "failed", 1);
                outbox::mark_failed(&self.pool, &channel.client_id, taken, &error, None).await
            }
        };
        if let Err(error) = marked {
            tracing::warn!(notification_id = id, %error, "what became of a notification is not noted; it may be sent again");
        }
    }

    async fn upkeep(&self) -> meterd_store::Result<()> {
        let keeping = async {
            give_up_without_channel(&self.pool).await?;
            let count = outbox::bring_forward(&self.pool, WAIT_MAX.max(self.claim + WAIT_MARGIN)).await?;
            if count > 0 {
                tracing::warn!(count, "the database's clock was set back: notifications are brought forward");
            }
            metrics::gauge!("meterd_notifications_pending").set(outbox::pending_count(&self.pool).await? as f64);
            Ok(())
        };
        tokio::time::timeout(DATABASE_TIMEOUT, keeping).await.unwrap_or(Err(StoreError::Timeout))
    }
}

/// Gives up what waits for channels that were removed.
pub async fn give_up_without_channel(pool: &PgPool) -> meterd_store::Result<()> {
    loop {
        let count = outbox::give_up_without_channel(pool, GIVE_UP_ROWS).await?;
        if count > 0 {
            tracing::warn!(count, "notifications were given up: their channels were removed");
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
