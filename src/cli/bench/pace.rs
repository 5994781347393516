//! Open loop: events become due at an even rate, whether those before have been answered or not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Shortest pause between two looks at the clock: what is due meanwhile is let go together.
const STEP_MIN: Duration = Duration::from_micros(100);
/// Longest pause, so that the end is noticed.
const STEP_MAX: Duration = Duration::from_millis(50);

/// Lets events go as they become due.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    per_second: u32,
    /// Events that are due and not taken yet.
    due: Semaphore,
    taken: AtomicU64,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        Self { began: Instant::now(), per_second, due: Semaphore::new(0), taken: AtomicU64::new(0) }
    }

    /// Waits until so many more events are due and gives when the last of them was. Nothing once it has ended.
    pub async fn take(&self, events: u32) -> Option<Instant> {
        self.due.acquire_many(events).await.ok()?.forget();
        let before = self.taken.fetch_add(events.into(), Ordering::Relaxed);
        Some(self.began + self.after(before + u64::from(events)))
    }

    /// When so many events are due, from the beginning.
    fn after(&self, events: u64) -> Duration {
        Duration::from_secs_f64(events as f64 / f64::from(self.per_second))
    }

    /// Lets events go until it is ended. Runs in a thread of its own: timers of the runtime are no finer than a millisecond.
    pub fn run(&self) {
        let mut released = 0;
        while !self.due.is_closed() {
            let due = (self.began.elapsed().as_secs_f64() * f64::from(self.per_second)) as u64;
            self.due.add_permits((due - released) as usize);
            released = due;
            let next = self.after(released + 1).saturating_sub(self.began.elapsed());
            std::thread::sleep(next.clamp(STEP_MIN, STEP_MAX));
        }
    }

    /// Nothing becomes due any more.
    pub fn end(&self) {
        self.due.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn what_comes_late_was_due_in_time() {
        let pace = Arc::new(Pace::new(1_000));
        let thread = std::thread::spawn({
            let pace = pace.clone();
            move || pace.run()
        });
        let mut last = pace.began;
        for number in 1..=5u32 {
            let due = pace.take(2).await.unwrap();
            assert_eq!(due, pace.began + Duration::from_millis(2) * number);
            assert!(due > last && Instant::now() >= due, "let go before it was due");
            last = due;
        }
        pace.end();
        assert_eq!(pace.take(1).await, None);
        thread.join().unwrap();
    }
}
