//! The log. A separate thread writes the lines to standard error, so that logging never blocks the server.
//!
//! If standard error is read too slowly, at most [`WAITING_BYTES_MAX`] bytes of lines wait. Further lines are dropped and
//! counted, and the count is logged when there is room again. If standard error is closed, all lines are dropped.

mod filter;

pub use filter::parse_filter;

use std::collections::VecDeque;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of bytes of the lines that wait to be written.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the process waits at its end until the last lines are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a write is retried. Another program may have made the terminal or pipe non-blocking.
const WRITE_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Starts the log. It ends when the guard is dropped.
pub fn start(filter: &str, format: Option<LogFormat>) -> LogGuard {
    let format = match format {
        Some(format) => format,
        None if std::io::stderr().is_terminal() => LogFormat::Text,
        None => LogFormat::Json,
    };
    let queue = LogQueue::start(std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(env_filter(filter)).with_writer(queue.clone());
    match format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    LogGuard(queue)
}

/// Parses the filter. Hides h2's warnings unless the filter mentions h2: h2 logs a line for each connection that it closes,
/// and the server counts these connections.
fn env_filter(filter: &str) -> EnvFilter {
    let parsed = EnvFilter::new(filter);
    if filter.contains("h2") { parsed } else { parsed.add_directive("h2=error".parse().expect("a directive")) }
}

/// Writes panics through the log. The default hook writes to standard error directly and can block.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        tracing::error!(thread, %backtrace, "{panic}");
    }));
}

/// Writes the waiting lines when it is dropped. This takes at most [`FLUSH_TIMEOUT`].
pub struct LogGuard(LogQueue);

impl LogGuard {
    /// Writes a line as it is, without time and level, before all waiting lines.
    pub fn write_unformatted(&self, line: &str) {
        let line = format!("{line}\n").into_bytes();
        let mut waiting = self.0.waiting();
        waiting.bytes += line.len();
        waiting.lines.push_front(line);
        self.0.0.changed.notify_all();
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Lines that wait to be written.
#[derive(Clone)]
struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Signalled when a line is added or written.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Number of dropped lines since the count was last logged.
    lost: u64,
    /// Whether the thread is writing a line.
    writing: bool,
}

impl Waiting {
    /// Returns and resets the number of lost lines. Returns 0 while the queue is more than half full.
    fn take_lost(&mut self) -> u64 {
        if self.bytes > WAITING_BYTES_MAX / 2 { 0 } else { std::mem::take(&mut self.lost) }
    }
}

impl LogQueue {
    fn start(to: impl Write + Send + 'static) -> Self {
        let queue = Self(Arc::default());
        let thread_queue = queue.clone();
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || thread_queue.write_all(to));
        // If the thread cannot be started, all lines are dropped. The server still works.
        drop(thread);
        queue
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Vec<u8>) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > WAITING_BYTES_MAX {
            waiting.lost += 1;
            drop(waiting);
            metrics::counter!("meterd_log_lines_lost_total").increment(1);
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line);
        self.0.changed.notify_all();
    }

    /// Writes lines forever. Runs in the log thread.
    fn write_all(&self, mut to: impl Write) {
        loop {
            let mut waiting = self.waiting();
            waiting.writing = false;
            self.0.changed.notify_all();
            let lost = waiting.take_lost();
            if lost > 0 {
                drop(waiting);
                tracing::warn!(lost, "log lines were dropped because standard error was not read fast enough");
                waiting = self.waiting();
            }
            let mut waiting = self
                .0
                .changed
                .wait_while(waiting, |waiting| waiting.lines.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let line = waiting.lines.pop_front().unwrap_or_default();
            waiting.bytes -= line.len();
            waiting.writing = true;
            drop(waiting);
            write_line(&mut to, &line);
        }
    }

    /// Waits until all lines are written, at most [`FLUSH_TIMEOUT`].
    fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let mut waiting = self.waiting();
        while waiting.writing || !waiting.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (waiting, _) = self.0.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes a line, or drops it if it cannot be written.
fn write_line(to: &mut impl Write, mut line: &[u8]) {
    while !line.is_empty() {
        match to.write(line) {
            Ok(0) => return,
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(WRITE_RETRY_PAUSE),
            Err(_) => return,
        }
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that blocks until the test releases it.
    struct Blocked(Arc<(Mutex<bool>, Condvar)>, Arc<Mutex<Vec<u8>>>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let (blocked, changed) = &*self.0;
            drop(changed.wait_while(blocked.lock().unwrap(), |blocked| *blocked).unwrap());
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_dropped_without_a_wait_if_standard_error_blocks() {
        let (gate, written) = (Arc::new((Mutex::new(true), Condvar::new())), Arc::default());
        let queue = LogQueue::start(Blocked(gate.clone(), Arc::clone(&written)));
        let begun = Instant::now();
        for _ in 0..WAITING_BYTES_MAX / 1_000 * 2 {
            queue.push(vec![b'x'; 1_000]);
        }
        let lost = queue.waiting().lost;
        assert!(queue.waiting().bytes <= WAITING_BYTES_MAX && lost > 4_000, "{lost}");
        queue.flush();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        *gate.0.lock().unwrap() = false;
        gate.1.notify_all();
        queue.flush();
        assert!(written.lock().unwrap().len() > WAITING_BYTES_MAX - 2_000);
    }

    #[test]
    fn dropped_lines_are_counted_until_there_is_room_to_log_the_count() {
        let mut waiting = Waiting { bytes: WAITING_BYTES_MAX, lost: 7, ..Waiting::default() };
        assert_eq!(waiting.take_lost(), 0);
        waiting.bytes = WAITING_BYTES_MAX / 2;
        assert_eq!((waiting.take_lost(), waiting.take_lost()), (7, 0));
    }

    #[test]
    fn a_closed_standard_error_causes_no_wait() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let queue = LogQueue::start(Closed);
        (0..10).for_each(|_| queue.push(b"line\n".to_vec()));
        let begun = Instant::now();
        queue.flush();
        assert!(begun.elapsed() < FLUSH_TIMEOUT);
    }
}
