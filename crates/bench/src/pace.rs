//! Open loop: events become due at an even rate, independent of the answers to earlier ones.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Shortest pause between two releases: events that become due in a pause are released together.
const STEP_MIN: Duration = Duration::from_micros(100);
/// Longest pause, so that the thread ends soon after the measurement.
const STEP_MAX: Duration = Duration::from_millis(50);

/// Releases events when they become due.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    per_second: u32,
    /// Events that are due and not yet taken.
    due: Semaphore,
    taken: AtomicU64,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        Self { began: Instant::now(), per_second, due: Semaphore::new(0), taken: AtomicU64::new(0) }
    }

    /// Waits until this many more events are due. Returns the time when the last of them was due, or `None` after the end.
    pub async fn take(&self, events: u32) -> Option<Instant> {
        self.due.acquire_many(events).await.ok()?.forget();
        let before = self.taken.fetch_add(events.into(), Ordering::Relaxed);
        Some(self.began + self.after(before + u64::from(events)))
    }

    /// Time from the start until this many events are due.
    fn after(&self, events: u64) -> Duration {
        Duration::from_secs_f64(events as f64 / f64::from(self.per_second))
    }

    /// Releases events until the end. Needs its own thread: timers of the runtime have a resolution of one millisecond.
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

    /// Ends the release of events.
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
