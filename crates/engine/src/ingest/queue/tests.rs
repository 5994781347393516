use super::state::{PARALLEL_EVENTS_MIN, SURPLUS_EVENTS_MIN};
use super::*;
use crate::refusal::Reason;
use meterd_domain::event::{EventId, UsageEvent};
use meterd_domain::measures::Measures;
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// Returns an event of this client.
pub fn item(client_id: &str) -> Item {
    let time = chrono::DateTime::UNIX_EPOCH;
    let event = UsageEvent {
        client_id: client_id.into(),
        service: "s".into(),
        operation: "".into(),
        model: "".into(),
        service_tier: String::new(),
        measures: Measures::default(),
        event_time: time,
        idempotency_key: "k".into(),
        subject: String::new(),
        external_id: String::new(),
        metadata: None,
        labels: Default::default(),
    };
    let submission = Box::new(Submission {
        event,
        id: EventId::new(time),
        payload_hash: [0; 17],
        backfill: false,
        refuse_if_new: None,
    });
    Item { submission, reply: Reply::One(oneshot::channel().0), queued_at: Instant::now() }
}

fn items(count: usize) -> Vec<Item> {
    (0..count).map(|_| item("busy")).collect()
}

/// Adds events to the queue of a writer, even if their client belongs to another one.
fn put(queue: &WriteQueue, writer: usize, items: Vec<Item>) {
    for item in items {
        let mut state = queue.state();
        state.push(writer, item).unwrap();
        let woken = state.wake_after_push(writer);
        drop(state);
        queue.wake(woken.into_iter());
    }
}

fn len_of(queue: &WriteQueue, writer: usize) -> usize {
    let mut state = queue.state();
    let taken = state.take_queued_by(writer, Instant::now());
    let len = taken.len();
    taken.into_iter().for_each(|item| state.push(writer, item).unwrap());
    len
}

/// Returns one event of a client that belongs to this writer.
fn event_of(queue: &WriteQueue, writer: usize) -> Vec<Item> {
    vec![(0..).map(|id| item(&format!("c{id}"))).find(|item| queue.writer_of(item) == writer).unwrap()]
}

fn is_blocked(queue: &WriteQueue, writer: usize) -> bool {
    !queue.state().blocked(writer).is_empty()
}

/// Takes the present events without waiting.
async fn now(queue: &WriteQueue, writer: usize) -> Option<(usize, Work<'_>)> {
    let batch = tokio::time::timeout(Duration::ZERO, queue.take(writer, 1_000)).await.ok()??;
    Some((batch.items.len(), batch.work))
}

/// Starts a task that takes events once.
fn taker(queue: &Arc<WriteQueue>, writer: usize) -> tokio::task::JoinHandle<usize> {
    let queue = queue.clone();
    tokio::spawn(async move { queue.take(writer, 100).await.unwrap().items.len() })
}

#[tokio::test]
async fn a_caller_that_waits_for_room_continues_when_the_writer_takes() {
    let queue = Arc::new(WriteQueue::new(1, 2));
    queue.push(item("a")).unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.push_when_room(vec![item("a")].into_iter()).await }
    });
    yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(queue.push(item("a")).unwrap_err().reason, Reason::QueueFull);
    assert_eq!(now(&queue, 0).await.unwrap().0, 1);
    waiting.await.unwrap().unwrap();
    assert_eq!(queue.len(), 1);
}

#[tokio::test]
async fn many_events_are_pushed_in_the_order_of_each_client() {
    let queue = Arc::new(WriteQueue::new(3, 100));
    let pushing = tokio::spawn({
        let queue = queue.clone();
        let time = Instant::now();
        let event = move |number: u64| Item {
            queued_at: time + Duration::from_nanos(number),
            ..item(&format!("c{}", number % 7))
        };
        let items: Vec<Item> = (0..3_000).map(event).collect();
        async move { queue.push_when_room(items.into_iter()).await }
    });
    let mut last = std::collections::HashMap::new();
    let mut taken = 0;
    while taken < 3_000 {
        for writer in 0..3 {
            let Ok(Some(batch)) = tokio::time::timeout(Duration::ZERO, queue.take(writer, 40)).await else { continue };
            taken += batch.items.len();
            for item in batch.items {
                let before = last.insert(item.submission.event.client_id.clone(), item.queued_at);
                assert!(before.is_none_or(|before| before < item.queued_at));
            }
        }
        yield_now().await;
    }
    pushing.await.unwrap().unwrap();
    assert_eq!((taken, queue.len()), (3_000, 0));
}

#[tokio::test]
async fn a_writer_without_events_takes_only_from_a_queue_with_a_surplus() {
    let queue = Arc::new(WriteQueue::new(2, 10_000));
    let idle = taker(&queue, 1);
    put(&queue, 0, items(SURPLUS_EVENTS_MIN - 1));
    yield_now().await;
    assert!(!idle.is_finished());
    put(&queue, 0, vec![item("busy")]);
    assert_eq!(idle.await.unwrap(), 100);
    assert_eq!(len_of(&queue, 0), SURPLUS_EVENTS_MIN - 100);
    put(&queue, 0, items(SURPLUS_EVENTS_MIN));
    assert!(!queue.give_back(1, event_of(&queue, 0)), "the events go to the queue of their client");
    assert!(now(&queue, 1).await.is_none(), "a queue with a blocked client is left to its writer");
}

#[tokio::test]
async fn the_first_writer_takes_the_few_events_of_writers_that_do_not_work() {
    let queue = WriteQueue::new(2, 10_000);
    put(&queue, 0, vec![item("a")]);
    put(&queue, 1, items(PARALLEL_EVENTS_MIN - 1));
    assert!(now(&queue, 1).await.is_none(), "too few for a transaction of their own");
    assert_eq!(now(&queue, 0).await.unwrap().0, PARALLEL_EVENTS_MIN);

    put(&queue, 1, items(PARALLEL_EVENTS_MIN));
    let (taken, second) = now(&queue, 1).await.unwrap();
    assert_eq!(taken, PARALLEL_EVENTS_MIN);
    put(&queue, 0, vec![item("a")]);
    put(&queue, 1, vec![item("b")]);
    assert_eq!(now(&queue, 0).await.unwrap().0, 1, "only its own, while the other writer works");
    assert!(now(&queue, 0).await.is_none());
    drop(second);
    assert_eq!(now(&queue, 0).await.unwrap().0, 1, "the others, when that writer has finished");
}

#[tokio::test]
async fn the_first_writer_is_woken_when_another_leaves_few_events() {
    let queue = Arc::new(WriteQueue::new(2, 10_000));
    put(&queue, 1, items(PARALLEL_EVENTS_MIN));
    let (_, second) = now(&queue, 1).await.unwrap();
    let first = taker(&queue, 0);
    put(&queue, 1, vec![item("b")]);
    yield_now().await;
    assert!(!first.is_finished());
    drop(second);
    assert_eq!(first.await.unwrap(), 1);
}

#[tokio::test]
async fn no_writer_leaves_few_events_behind() {
    let queue = WriteQueue::new(3, 10_000);
    put(&queue, 1, items(PARALLEL_EVENTS_MIN));
    let _second = now(&queue, 1).await.unwrap();
    put(&queue, 2, vec![item("c")]);
    let (taken, first) = now(&queue, 0).await.unwrap();
    assert_eq!(taken, 1, "a writer that works with its own queue does not hinder the first one");
    drop(first);

    put(&queue, 2, vec![item("c")]);
    put(&queue, 0, items(SURPLUS_EVENTS_MIN));
    assert_eq!(queue.take(2, 10_000).await.unwrap().items.len(), SURPLUS_EVENTS_MIN + 1, "its own before a surplus");

    put(&queue, 0, items(100));
    put(&queue, 2, vec![item("c")]);
    let full = queue.take(0, 100).await.unwrap();
    assert_eq!(full.items.len(), 100);
    assert_eq!(now(&queue, 2).await.unwrap().0, 1, "the first writer has no room for it");
    drop(full);
    put(&queue, 1, vec![item("b")]);
    assert!(now(&queue, 1).await.is_none(), "and then it has room again");
}

#[tokio::test]
async fn a_writer_is_woken_when_the_first_writer_has_no_room_for_its_few_events() {
    let queue = Arc::new(WriteQueue::new(2, 10_000));
    let second = taker(&queue, 1);
    yield_now().await;
    put(&queue, 0, items(100));
    put(&queue, 1, vec![item("b")]);
    yield_now().await;
    assert!(!second.is_finished());
    let _full = queue.take(0, 100).await.unwrap();
    assert_eq!(second.await.unwrap(), 1);
}

#[tokio::test]
async fn events_of_a_blocked_client_go_back_to_its_queue_and_are_tried_there() {
    let queue = Arc::new(WriteQueue::new(2, 10_000));
    let second = taker(&queue, 1);
    yield_now().await;
    assert!(!queue.give_back(0, event_of(&queue, 1)));
    assert!(now(&queue, 0).await.is_none(), "not by the first writer again");
    assert_eq!(second.await.unwrap(), 1);
    assert!(!queue.give_back(0, event_of(&queue, 1)));
    assert!(is_blocked(&queue, 1));
    assert!(now(&queue, 0).await.is_none(), "and the client stays blocked");
    let batch = queue.take(1, 10).await.unwrap();
    assert_eq!((batch.items.len(), batch.blocked.len()), (1, 1), "also if it is the only event");
    assert!(queue.give_back(1, event_of(&queue, 1)));
    drop(batch);
    assert_eq!(now(&queue, 1).await.unwrap().0, 1);
    assert!(!is_blocked(&queue, 1), "a client without events is not blocked");

    queue.close();
    assert!(queue.give_back(0, event_of(&queue, 1)), "the writer of a closed queue may have ended");
    assert_eq!(now(&queue, 0).await.unwrap().0, 1);
}

#[tokio::test]
async fn a_client_whose_events_were_written_is_not_blocked() {
    let queue = WriteQueue::new(1, 10_000);
    let events = event_of(&queue, 0);
    let client_id = events[0].submission.event.client_id.clone();
    assert!(queue.give_back(0, events));
    assert!(is_blocked(&queue, 0));
    queue.unblock(0, [client_id].iter());
    assert!(!is_blocked(&queue, 0));
}

#[tokio::test]
async fn no_writer_waits_for_a_first_writer_that_is_slow_or_blocked() {
    let queue = Arc::new(WriteQueue::new(2, 10_000));
    put(&queue, 0, vec![item("a")]);
    let (_, first) = now(&queue, 0).await.unwrap();
    let second = taker(&queue, 1);
    put(&queue, 1, vec![item("b")]);
    yield_now().await;
    assert!(!second.is_finished());
    first.set_slow();
    assert_eq!(second.await.unwrap(), 1);
    drop(first);
    put(&queue, 1, vec![item("b")]);
    assert!(now(&queue, 1).await.is_none());
    assert_eq!(now(&queue, 0).await.unwrap().0, 1);

    let second = taker(&queue, 1);
    yield_now().await;
    assert!(!queue.give_back(1, event_of(&queue, 0)));
    yield_now().await;
    put(&queue, 1, vec![item("b")]);
    let (taken, _first) = now(&queue, 0).await.unwrap();
    assert_eq!(taken, 1, "only its own");
    assert_eq!(second.await.unwrap(), 1);
}

#[tokio::test]
async fn no_writer_waits_for_a_first_writer_that_has_panicked() {
    let queue = Arc::new(WriteQueue::new(2, 10_000));
    put(&queue, 0, vec![item("a")]);
    let panicking = tokio::spawn({
        let queue = queue.clone();
        async move {
            let _batch = queue.take(0, 10).await.unwrap();
            panic!("as a fault of the writer");
        }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    put(&queue, 1, vec![item("b")]);
    assert_eq!(now(&queue, 1).await.unwrap().0, 1);
}

#[tokio::test]
async fn a_closed_queue_can_be_emptied_but_accepts_nothing() {
    let queue = WriteQueue::new(2, 10);
    put(&queue, 1, vec![item("a")]);
    queue.close();
    assert_eq!(queue.push(item("a")).unwrap_err().reason, Reason::ShuttingDown);
    let pushed = queue.push_when_room(vec![item("a")].into_iter()).await;
    assert_eq!(pushed.unwrap_err().reason, Reason::ShuttingDown);
    assert_eq!(now(&queue, 1).await.unwrap().0, 1, "also few events");
    assert!(queue.take(0, 10).await.is_none() && queue.take(1, 10).await.is_none());
}
