//! Callers that cancel calls after 0 to 100 ms, by closing the stream or the connection.

use crate::calls::{Answer, Client, client, track};
use crate::check::check;
use crate::database::Database;
use crate::deployment::lower_thresholds;
use crate::events::numbered_event;
use crate::in_process::InProcess;
use crate::journal::{Acknowledged, Journal};
use crate::load::Tally;
use crate::run::{Run, grouped};
use crate::scenario;
use crate::scenario_dir::ScenarioDir;
use crate::subscribers::Subscribers;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::{AlertPolicy, UpdateAlertPolicyRequest};
use meterd_engine::clock::Clock;
use prost_types::FieldMask;
use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const CALLERS: usize = 12;
/// Maximum time until a caller cancels. Most callers cancel earlier, because most calls take less time.
const PATIENCE_MAX: Duration = Duration::from_millis(100);
/// Number of events in a batch or stream.
const EVENTS: usize = 5;
/// One in this many calls is cancelled by closing the connection.
const CONNECTIONS_ONE_IN: u32 = 20;
/// One in this many calls changes a client's policy. The change must be applied and evaluated, or have no effect.
const POLICIES_ONE_IN: u32 = 15;

scenario! {
    cancelled_calls_are_complete_or_have_no_effect => cancelled;
}

async fn cancelled(run: Run) {
    let calls = run.count(2_000, 10_000);
    let scenario_dir = ScenarioDir::new();
    let database = Database::start(&scenario_dir).await;
    let replicas = InProcess::start(&database.url().await, &[Clock::system(), Clock::system()]).await;
    lower_thresholds(&replicas.addresses()[0]).await;
    let tasks = replicas.tasks();
    let journal = Arc::new(Journal::create(&scenario_dir.path("journal")));
    let subscribers = Subscribers::start(&run, replicas.addresses(), 4);

    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let clients = replicas.addresses().iter().map(|address| client(address)).collect();
        let caller = Caller {
            addresses: replicas.addresses(),
            clients,
            journal: journal.clone(),
            rng: run.rng("caller", number),
            tally: Tally::default(),
            cancelled_calls: 0,
        };
        callers.spawn(caller.work(next.clone(), calls));
    }
    let (mut tally, mut cancelled_calls) = (Tally::default(), 0);
    for (caller_tally, caller_cancelled_calls) in callers.join_all().await {
        tally.add(caller_tally);
        cancelled_calls += caller_cancelled_calls;
    }
    let pool = database.pool().await;
    let feed = subscribers.finish(&pool).await;
    replicas.wait_until_released(tasks).await;
    let first = check(&pool, &journal).await;
    assert_eq!((tally.hung, &tally.wrong), (0, &vec![]));
    assert_eq!(
        database.count_in_log("there is already a transaction in progress"),
        0,
        "cancelled calls left transactions open"
    );
    assert_eq!(database.count_in_log("deadlock detected"), 0);

    // Resending settles the events whose outcome the callers do not know.
    let numbers: Vec<u64> = (0..calls).flat_map(events_of).collect();
    let mut client = client(&replicas.addresses()[1]);
    for numbers in numbers.chunks(5_000) {
        let mut answer = Answer::default();
        answer.send_batch(&mut client, numbers).await;
        assert_eq!(answer.acknowledged.len(), numbers.len());
        journal.write(&answer.acknowledged);
    }
    drop(client);
    replicas.wait_until_released(tasks).await;
    let all = check(&pool, &journal).await;
    assert_eq!(all.recorded, all.acknowledged);
    pool.close().await;
    replicas.stop().await;
    run.report(
        format!("calls cancelled at 0 to 100 ms × {}", grouped(calls)),
        format!(
            "{} calls cancelled, {first}, {} events settled after a resend, 0 hung, 0 tasks leaked, {feed}",
            grouped(cancelled_calls),
            grouped(all.recorded)
        ),
    );
    assert!(cancelled_calls > calls / 10, "too few calls were cancelled");
}

/// Returns the numbers of the events of a call. They are so far apart that each policy belongs to another client.
fn events_of(call: usize) -> std::ops::Range<u64> {
    let first = call as u64 * 40 + 1;
    first..first + EVENTS as u64
}

struct Caller {
    addresses: Vec<String>,
    clients: Vec<Client>,
    journal: Arc<Journal>,
    rng: StdRng,
    tally: Tally,
    cancelled_calls: usize,
}

impl Caller {
    async fn work(mut self, next: Arc<AtomicUsize>, calls: usize) -> (Tally, usize) {
        loop {
            let call = next.fetch_add(1, Ordering::Relaxed);
            if call >= calls {
                return (self.tally, self.cancelled_calls);
            }
            let numbers: Vec<u64> = events_of(call).collect();
            let patience = PATIENCE_MAX.mul_f64(self.rng.random::<f64>().powf(1.5));
            let at = self.rng.random_range(0..self.clients.len());
            if self.rng.random_ratio(1, POLICIES_ONE_IN) {
                self.change_policy(at, numbers[0], patience / 4).await;
                continue;
            }
            let mut answer = Answer::default();
            let kind = self.rng.random_range(0..3);
            let calls = &mut self.clients[at];
            let call = async {
                match kind {
                    0 => answer.send_unary(calls, numbers[0]).await,
                    1 => answer.send_batch(calls, &numbers).await,
                    _ => answer.send_stream(calls, &numbers).await,
                }
            };
            self.cancelled_calls += usize::from(tokio::time::timeout(patience, call).await.is_err());
            self.journal.write(&answer.acknowledged);
            self.tally.take(answer);
            if self.rng.random_ratio(1, CONNECTIONS_ONE_IN) {
                self.clients[at] = client(&self.addresses[at]);
            }
        }
    }

    /// Lowers the thresholds of a client below its cost.
    async fn change_policy(&mut self, at: usize, number: u64, patience: Duration) {
        let event = numbered_event(number);
        let client_id = event.client_id.clone();
        let result = track(&mut self.clients[at], event).await.unwrap();
        self.journal.write(&[Acknowledged::new(number, &result)]);
        let policy = AlertPolicy {
            client_id,
            monthly_warning: Some("0.0005".into()),
            monthly_critical: Some("0.001".into()),
            ..Default::default()
        };
        let paths = ["monthly_warning", "monthly_critical"].map(String::from).into();
        let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask: Some(FieldMask { paths }) };
        let channel = Channel::from_shared(self.addresses[at].clone()).unwrap().connect_lazy();
        let mut client = AlertServiceClient::new(channel);
        let done = tokio::time::timeout(patience, client.update_alert_policy(request)).await;
        self.cancelled_calls += usize::from(done.is_err());
    }
}
