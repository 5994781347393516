//! Sends a million events of which nine tenths are repeats, to two replicas that are restarted meanwhile.

use crate::calls::{Answer, Client, client};
use crate::deployment::Deployment;
use crate::load::Tally;
use crate::run::{Run, grouped};
use crate::scenario;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often each event is sent.
const SENDS: usize = 10;
/// Half of the repeats are sent so soon after each other that both replicas process them at the same time.
const WINDOW: u32 = 2_000;
const CALLERS: usize = 16;
/// The sizes of the calls. Each call has a random one.
const SIZES: [usize; 6] = [1, 1, 7, 60, 500, 2_000];
/// One in this many calls is followed by a different event with the same key.
const CONFLICTS_ONE_IN: u32 = 20;
/// How often both replicas get the same new events at once, and how many. A transaction takes as many events.
const CONCURRENT_ROUNDS: usize = 10;
const CONCURRENT_EVENTS: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(20);

scenario! {
    events_sent_ten_times_across_a_restart_count_once => repeats;
}

/// Returns the numbers to send. Half of the repeats are close to each other, the others anywhere.
fn sends(events: usize, rng: &mut StdRng) -> Vec<u64> {
    let mut sends: Vec<(u32, u64)> = Vec::with_capacity(events * SENDS);
    for number in 0..events {
        for repeat in 0..SENDS {
            let end = (events as u32).max(WINDOW);
            let at =
                if repeat % 2 == 0 { number as u32 + rng.random_range(0..WINDOW) } else { rng.random_range(0..end) };
            sends.push((at, number as u64));
        }
    }
    sends.sort_by_key(|(at, _)| *at);
    sends.into_iter().map(|(_, number)| number).collect()
}

/// Sends the same new events to both replicas at the same time, to one of them in reverse order. So each replica waits
/// for keys that the other has claimed.
async fn send_concurrently(deployment: &Deployment, after: u64) {
    let mut clients = deployment.addresses().into_iter().map(|address| client(&address));
    let [mut one, mut other] = std::array::from_fn(|_| clients.next().expect("two replicas"));
    for time in 0..CONCURRENT_ROUNDS as u64 {
        let first = after + time * CONCURRENT_EVENTS as u64;
        let numbers: Vec<u64> = (first..first + CONCURRENT_EVENTS as u64).collect();
        let reverse: Vec<u64> = numbers.iter().rev().copied().collect();
        let (mut answer, mut other_answer) = (Answer::default(), Answer::default());
        tokio::join!(answer.send_batch(&mut one, &numbers), other_answer.send_batch(&mut other, &reverse));
        assert_eq!(
            answer.accepted + other_answer.accepted,
            CONCURRENT_EVENTS,
            "not every event was new to exactly one replica"
        );
        assert_eq!(answer.acknowledged.len() + other_answer.acknowledged.len(), 2 * CONCURRENT_EVENTS);
        deployment.journal.write(&answer.acknowledged);
        deployment.journal.write(&other_answer.acknowledged);
    }
}

async fn repeats(run: Run) {
    let count = run.count(20_000, 1_000_000);
    let events = count / SENDS;
    let deployment = Deployment::start_with_embedded(run, &[]).await;
    let subscribers = deployment.subscribers();
    let baseline = deployment.resources().await;
    send_concurrently(&deployment, events as u64).await;
    let sends = Arc::new(sends(events, &mut deployment.run.rng("sends", 0)));
    let [next, accepted] = std::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let mut rng = deployment.run.rng("caller", number);
        let mut clients: Vec<Client> = deployment.addresses().iter().map(|address| client(address)).collect();
        let [next, accepted] = [&next, &accepted].map(Arc::clone);
        let (sends, journal) = (sends.clone(), deployment.journal.clone());
        callers.spawn(async move {
            let mut tally = Tally::default();
            loop {
                let size = SIZES[rng.random_range(0..SIZES.len())];
                let first = next.fetch_add(size, Ordering::Relaxed);
                let numbers = sends.get(first..sends.len().min(first + size)).unwrap_or_default();
                if numbers.is_empty() {
                    return tally;
                }
                let mut numbers = numbers.to_vec();
                let number = numbers[0];
                while !numbers.is_empty() && tally.wrong.is_empty() {
                    let mut answer = Answer::default();
                    let client = &mut clients[rng.random_range(0..2)];
                    if numbers.len() == 1 {
                        answer.send_unary(client, numbers[0]).await;
                    } else if rng.random_ratio(1, 4) {
                        answer.send_stream(client, &numbers).await;
                    } else {
                        answer.send_batch(client, &numbers).await;
                    }
                    journal.write(&answer.acknowledged);
                    accepted.fetch_add(answer.accepted, Ordering::Relaxed);
                    let settled: HashSet<u64> = answer.acknowledged.iter().map(|answer| answer.number).collect();
                    numbers.retain(|number| !settled.contains(number));
                    tally.take(answer);
                    if !numbers.is_empty() {
                        tally.repeats += 1;
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                if rng.random_ratio(1, CONFLICTS_ONE_IN) {
                    let mut answer = Answer::default();
                    answer.send_conflicting(&mut clients[0], number).await;
                    tally.take(answer);
                }
            }
        });
    }
    // One replica is killed, and the other is stopped normally.
    while next.load(Ordering::Relaxed) < sends.len() / 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    deployment.replicas[1].kill();
    deployment.replicas[1].launch(&deployment.scenario_dir).await;
    assert_eq!(deployment.replicas[0].stop(&deployment.scenario_dir).await, Some(0));
    deployment.replicas[0].launch(&deployment.scenario_dir).await;
    let mut tally = Tally::default();
    callers.join_all().await.into_iter().for_each(|caller_tally| tally.add(caller_tally));
    let seconds = begin.elapsed().as_secs_f64();
    let found = deployment.find(tally, subscribers, baseline).await;
    let accepted = accepted.load(Ordering::Relaxed);
    deployment.run.report(
        format!(
            "{} sends of {} events across a restart, and {} events sent to both replicas at once",
            grouped(sends.len()),
            grouped(events),
            grouped(CONCURRENT_ROUNDS * CONCURRENT_EVENTS)
        ),
        format!("{found}, {} results ACCEPTED, {seconds:.1} s", grouped(accepted)),
    );
    let events = events + CONCURRENT_ROUNDS * CONCURRENT_EVENTS;
    assert_eq!((found.checked.recorded, found.checked.acknowledged), (events, events));
    assert!(accepted <= events, "an event was accepted twice");
    assert!(found.checked.closed_generations >= 1, "too few generations of keys were closed to prove anything");
    deployment.stop().await;
}
