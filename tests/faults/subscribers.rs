//! Alert subscribers that reconnect with their token. Each must receive every change once, in order.

use crate::calls::reason;
use crate::run::Run;
use meterd::proto::SubscribeAlertsRequest;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::subscribe_alerts_response::Message;
use rand::RngExt;
use rand::rngs::StdRng;
use sqlx::PgPool;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

/// A stream that is silent for longer than some heartbeats is considered dead.
const SILENCE_MAX: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum time until all subscribers have received the last change after the faults have ended.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Reasons with which a stream may end.
const REASONS: [&str; 2] = ["SHUTTING_DOWN", "DATABASE_UNAVAILABLE"];

/// The running subscribers.
pub struct Subscribers {
    tasks: JoinSet<()>,
    seen: Vec<watch::Receiver<Seen>>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    last: i64,
    reconnects: usize,
    /// Changes in the wrong order, and statuses that are not allowed.
    wrong: Vec<String>,
}

/// What the subscribers received.
pub struct FeedReport {
    subscribers: usize,
    pub length: i64,
    pub reconnects: usize,
}

impl Subscribers {
    pub fn start(run: &Run, addresses: Vec<String>, count: usize) -> Self {
        let (mut tasks, mut seen) = (JoinSet::new(), vec![]);
        for number in 0..count {
            let (sender, receiver) = watch::channel(Seen::default());
            tasks.spawn(follow(addresses.clone(), run.rng("subscriber", number), sender));
            seen.push(receiver);
        }
        Self { tasks, seen }
    }

    /// Waits until all subscribers have reached the end of the feed, and stops them.
    pub async fn finish(mut self, pool: &PgPool) -> FeedReport {
        let end = "SELECT sequence FROM alert_feed_counter";
        let end: i64 = sqlx::query_scalar(end).fetch_one(pool).await.unwrap();
        let deadline = Instant::now() + CATCH_UP_TIMEOUT;
        let mut reconnects = 0;
        for seen in &self.seen {
            loop {
                let now = seen.borrow().clone();
                assert_eq!(now.wrong, Vec::<String>::new(), "a subscriber received something wrong");
                if now.last == end {
                    reconnects += now.reconnects;
                    break;
                }
                assert!(Instant::now() < deadline, "a subscriber is at {} of {end}", now.last);
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.tasks.shutdown().await;
        FeedReport { subscribers: self.seen.len(), length: end, reconnects }
    }
}

/// Follows the feed forever over any number of connections.
async fn follow(addresses: Vec<String>, mut rng: StdRng, seen: watch::Sender<Seen>) {
    let mut token = String::new();
    loop {
        let address = &addresses[rng.random_range(0..addresses.len())];
        let status = connection(address, &mut token, &seen).await;
        seen.send_modify(|seen| {
            seen.reconnects += 1;
            if let Some(reason) = status.as_ref().and_then(reason)
                && !REASONS.contains(&&*reason)
            {
                seen.wrong.push(format!("{status:?}"));
            }
        });
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads from one connection until it breaks with a status or becomes silent.
async fn connection(address: &str, token: &mut String, seen: &watch::Sender<Seen>) -> Option<Status> {
    let channel = Channel::from_shared(address.to_string()).unwrap().connect_timeout(SILENCE_MAX).connect_lazy();
    let request =
        SubscribeAlertsRequest { resume_token: token.clone(), from_start: token.is_empty(), ..Default::default() };
    let mut client = AlertServiceClient::new(channel);
    let mut messages = match tokio::time::timeout(SILENCE_MAX, client.subscribe_alerts(request)).await {
        Err(_) => return None,
        Ok(Err(status)) => return Some(status),
        Ok(Ok(response)) => response.into_inner(),
    };
    loop {
        let message = match tokio::time::timeout(SILENCE_MAX, messages.message()).await {
            Err(_) => return None,
            Ok(Err(status)) => return Some(status),
            Ok(Ok(None)) => {
                seen.send_modify(|seen| seen.wrong.push("a stream ended without a status".into()));
                return None;
            }
            Ok(Ok(Some(message))) => message,
        };
        *token = message.resume_token;
        if let Some(Message::Alert(event)) = message.message {
            seen.send_modify(|seen| {
                if event.sequence != seen.last + 1 {
                    seen.wrong.push(format!("{} after {}", event.sequence, seen.last));
                }
                seen.last = event.sequence;
            });
        }
    }
}

impl std::fmt::Display for FeedReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subscribers, length, reconnects } = self;
        write!(f, "{subscribers} subscribers received {length} changes without gaps over {reconnects} reconnects")
    }
}
