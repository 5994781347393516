//! A million sends of which nine tenths are repeats, over two replicas that are restarted in the middle.

use crate::calls::{Answer, Client, client};
use crate::load::Tally;
use crate::run::{Run, grouped};
use crate::scenario;
use crate::world::World;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often each event is sent.
const SENDS: usize = 10;
/// Half of the repeats come so soon after each other that replicas have them at the same time.
const WINDOW: u32 = 2_000;
const CALLERS: usize = 16;
/// Sizes of the calls, one of which is drawn.
const SIZES: [usize; 6] = [1, 1, 7, 60, 500, 2_000];
/// One call in so many is followed by another event with a key that is taken.
const CONTRADICTIONS_ONE_IN: u32 = 20;
/// How often replicas meet head-on, and over how many new events: as many as one transaction takes.
const HEAD_ON_TIMES: usize = 10;
const HEAD_ON_EVENTS: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(20);

scenario! {
    events_that_are_sent_ten_times_across_a_restart_are_counted_once => repeats;
}

/// All sends, in an order in which repeats come soon after each other or anywhere.
fn sends(events: usize, dice: &mut StdRng) -> Vec<u64> {
    let mut sends: Vec<(u32, u64)> = Vec::with_capacity(events * SENDS);
    for number in 0..events {
        for repeat in 0..SENDS {
            let end = (events as u32).max(WINDOW);
            let at =
                if repeat % 2 == 0 { number as u32 + dice.random_range(0..WINDOW) } else { dice.random_range(0..end) };
            sends.push((at, number as u64));
        }
    }
    sends.sort_by_key(|(at, _)| *at);
    sends.into_iter().map(|(_, number)| number).collect()
}

/// Both replicas get the same new events at the same moment, one of them in the reverse order: each wants keys that the other
/// one has.
async fn meet_head_on(world: &World, after: u64) {
    let mut clients = world.addresses().into_iter().map(|address| client(&address));
    let [mut one, mut other] = std::array::from_fn(|_| clients.next().expect("two replicas"));
    for time in 0..HEAD_ON_TIMES as u64 {
        let first = after + time * HEAD_ON_EVENTS as u64;
        let numbers: Vec<u64> = (first..first + HEAD_ON_EVENTS as u64).collect();
        let reverse: Vec<u64> = numbers.iter().rev().copied().collect();
        let (mut answer, mut echo) = (Answer::default(), Answer::default());
        tokio::join!(answer.of_batch(&mut one, &numbers), echo.of_batch(&mut other, &reverse));
        assert_eq!(answer.accepted + echo.accepted, HEAD_ON_EVENTS, "each is new to one of the two");
        assert_eq!(answer.acknowledged.len() + echo.acknowledged.len(), 2 * HEAD_ON_EVENTS);
        world.journal.write(&answer.acknowledged);
        world.journal.write(&echo.acknowledged);
    }
}

async fn repeats(run: Run) {
    let count = run.count(20_000, 1_000_000);
    let events = count / SENDS;
    let world = World::start_with_keeper(run).await;
    let subscribers = world.subscribers();
    let held = world.held().await;
    meet_head_on(&world, events as u64).await;
    let sends = Arc::new(sends(events, &mut world.run.dice("sends", 0)));
    let [next, accepted] = std::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let mut dice = world.run.dice("caller", number);
        let mut clients: Vec<Client> = world.addresses().iter().map(|address| client(address)).collect();
        let [next, accepted] = [&next, &accepted].map(Arc::clone);
        let (sends, journal) = (sends.clone(), world.journal.clone());
        callers.spawn(async move {
            let mut tally = Tally::default();
            loop {
                let size = SIZES[dice.random_range(0..SIZES.len())];
                let first = next.fetch_add(size, Ordering::Relaxed);
                let numbers = sends.get(first..sends.len().min(first + size)).unwrap_or_default();
                if numbers.is_empty() {
                    return tally;
                }
                let mut numbers = numbers.to_vec();
                let number = numbers[0];
                while !numbers.is_empty() && tally.wrong.is_empty() {
                    let mut answer = Answer::default();
                    let client = &mut clients[dice.random_range(0..2)];
                    if numbers.len() == 1 {
                        answer.of_unary(client, numbers[0]).await;
                    } else if dice.random_ratio(1, 4) {
                        answer.of_stream(client, &numbers).await;
                    } else {
                        answer.of_batch(client, &numbers).await;
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
                if dice.random_ratio(1, CONTRADICTIONS_ONE_IN) {
                    let mut answer = Answer::default();
                    answer.of_contradiction(&mut clients[0], number).await;
                    tally.take(answer);
                }
            }
        });
    }
    // One is told to stop in the middle, the other one dies.
    while next.load(Ordering::Relaxed) < sends.len() / 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.replicas[1].kill();
    world.replicas[1].launch(&world.place).await;
    assert_eq!(world.replicas[0].stop(&world.place).await, Some(0));
    world.replicas[0].launch(&world.place).await;
    let mut tally = Tally::default();
    callers.join_all().await.into_iter().for_each(|of_caller| tally.add(of_caller));
    let seconds = begin.elapsed().as_secs_f64();
    let found = world.find(tally, subscribers, held).await;
    let accepted = accepted.load(Ordering::Relaxed);
    world.run.report(
        format!(
            "{} sends of {} events across a restart, and {} events head-on",
            grouped(sends.len()),
            grouped(events),
            grouped(HEAD_ON_TIMES * HEAD_ON_EVENTS)
        ),
        format!("{found}, {} told that theirs was the first, {seconds:.1} s", grouped(accepted)),
    );
    let events = events + HEAD_ON_TIMES * HEAD_ON_EVENTS;
    assert_eq!((found.checked.recorded, found.checked.acknowledged), (events, events));
    assert!(accepted <= events, "an event is accepted once");
    world.stop().await;
}
