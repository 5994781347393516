//! Callers that give up: after 0 to 100 ms, with the stream or with the connection.

use crate::calls::{Answer, Client, client, track};
use crate::check::check;
use crate::database::Database;
use crate::events::numbered;
use crate::inside::Inside;
use crate::journal::{Acknowledged, Journal};
use crate::load::Tally;
use crate::place::Place;
use crate::run::{Run, grouped};
use crate::scenario;
use crate::subscribers::Subscribers;
use crate::world::lower_the_lines;
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
/// Longest patience. Most callers have less, as most calls take less.
const PATIENCE_MAX: Duration = Duration::from_millis(100);
/// Events of a batch or stream.
const EVENTS: usize = 5;
/// One call in so many hangs up with its connection.
const CONNECTIONS_ONE_IN: u32 = 20;
/// One call in so many changes a client's policy, which is in force and evaluated or neither.
const POLICIES_ONE_IN: u32 = 15;

scenario! {
    callers_that_give_up_leave_nothing_half_done_and_nothing_behind => cancelled;
}

async fn cancelled(run: Run) {
    let calls = run.count(2_000, 10_000);
    let place = Place::new();
    let database = Database::ours(&place).await;
    let inside = Inside::start(&database.url().await, &[Clock::system(), Clock::system()]).await;
    lower_the_lines(&inside.addresses()[0]).await;
    let tasks = inside.tasks();
    let journal = Arc::new(Journal::create(&place.path("journal")));
    let subscribers = Subscribers::start(&run, inside.addresses(), 4);

    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let clients = inside.addresses().iter().map(|address| client(address)).collect();
        let caller = Caller {
            addresses: inside.addresses(),
            clients,
            journal: journal.clone(),
            dice: run.dice("caller", number),
            tally: Tally::default(),
            gave_up: 0,
        };
        callers.spawn(caller.work(next.clone(), calls));
    }
    let (mut tally, mut gave_up) = (Tally::default(), 0);
    for (of_caller, caller_gave_up) in callers.join_all().await {
        tally.add(of_caller);
        gave_up += caller_gave_up;
    }
    let pool = database.pool().await;
    let chains = subscribers.finish(&pool).await;
    inside.gives_back(tasks).await;
    let first = check(&pool, &journal).await;
    assert_eq!((tally.hung, &tally.wrong), (0, &vec![]));
    assert_eq!(database.said("there is already a transaction in progress"), 0, "transactions that a caller left open");
    assert_eq!(database.said("deadlock detected"), 0);

    // A resend settles what nobody knew the outcome of.
    let numbers: Vec<u64> = (0..calls).flat_map(events_of).collect();
    let mut client = client(&inside.addresses()[1]);
    for numbers in numbers.chunks(5_000) {
        let mut answer = Answer::default();
        answer.of_batch(&mut client, numbers).await;
        assert_eq!(answer.acknowledged.len(), numbers.len());
        journal.write(&answer.acknowledged);
    }
    drop(client);
    inside.gives_back(tasks).await;
    let all = check(&pool, &journal).await;
    assert_eq!(all.recorded, all.acknowledged);
    pool.close().await;
    inside.stop().await;
    run.report(
        format!("calls cancelled at 0 to 100 ms × {}", grouped(calls)),
        format!(
            "{} gave up, {first}, {} of them settled by a resend, 0 hung, 0 tasks leaked, {chains}",
            grouped(gave_up),
            grouped(all.recorded)
        ),
    );
    assert!(gave_up > calls / 10, "some must have given up in the middle");
}

/// The numbers of the events of a call, apart enough that each policy is of a client of its own.
fn events_of(call: usize) -> std::ops::Range<u64> {
    let first = call as u64 * 40 + 1;
    first..first + EVENTS as u64
}

struct Caller {
    addresses: Vec<String>,
    clients: Vec<Client>,
    journal: Arc<Journal>,
    dice: StdRng,
    tally: Tally,
    gave_up: usize,
}

impl Caller {
    async fn work(mut self, next: Arc<AtomicUsize>, calls: usize) -> (Tally, usize) {
        loop {
            let call = next.fetch_add(1, Ordering::Relaxed);
            if call >= calls {
                return (self.tally, self.gave_up);
            }
            let numbers: Vec<u64> = events_of(call).collect();
            let patience = PATIENCE_MAX.mul_f64(self.dice.random::<f64>().powf(1.5));
            let at = self.dice.random_range(0..self.clients.len());
            if self.dice.random_ratio(1, POLICIES_ONE_IN) {
                self.change_policy(at, numbers[0], patience / 4).await;
                continue;
            }
            let mut answer = Answer::default();
            let kind = self.dice.random_range(0..3);
            let calls = &mut self.clients[at];
            let call = async {
                match kind {
                    0 => answer.of_unary(calls, numbers[0]).await,
                    1 => answer.of_batch(calls, &numbers).await,
                    _ => answer.of_stream(calls, &numbers).await,
                }
            };
            self.gave_up += usize::from(tokio::time::timeout(patience, call).await.is_err());
            self.journal.write(&answer.acknowledged);
            self.tally.take(answer);
            if self.dice.random_ratio(1, CONNECTIONS_ONE_IN) {
                self.clients[at] = client(&self.addresses[at]);
            }
        }
    }

    /// Lowers the lines of a client under what it has cost.
    async fn change_policy(&mut self, at: usize, number: u64, patience: Duration) {
        let event = numbered(number);
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
        self.gave_up += usize::from(done.is_err());
    }
}
