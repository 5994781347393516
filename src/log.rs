//! The log: lines to standard error by a thread of its own, so that nobody who logs ever waits for its reader.
//!
//! A reader that is slow or stuck costs lines, never time: at most [`WAITING_BYTES_MAX`] wait for it, the next ones are
//! dropped and counted, and the count is logged once there is room again. A reader that has gone away costs all lines.

mod filter;

pub use filter::parse_filter;

use std::collections::VecDeque;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Most bytes of lines that wait for the reader.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the end of the process waits for the last lines to be read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a write is tried again on a terminal or pipe that somebody has made non-blocking.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Starts to log, until the guard is dropped.
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

/// h2 has a line for each connection that it cuts: the server counts them instead, unless somebody asks for h2's lines.
fn env_filter(filter: &str) -> EnvFilter {
    let lines = EnvFilter::new(filter);
    if filter.contains("h2") { lines } else { lines.add_directive("h2=error".parse().expect("a directive")) }
}

/// Has panics logged as other lines are: the default way writes to standard error itself, and waits for its reader.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        tracing::error!(thread, %backtrace, "{panic}");
    }));
}

/// Writes what still waits when it is dropped, and waits for it at most [`FLUSH_TIMEOUT`].
pub struct LogGuard(LogQueue);

impl LogGuard {
    /// Says something as a line of its own, in no format: the next one, whatever waits.
    pub fn say(&self, line: &str) {
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

/// Lines on their way to a reader.
#[derive(Clone)]
struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Lines have come, or all were written.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines for which there was no room, since the last count was logged.
    lost: u64,
    /// Whether the thread holds a line that is not written yet.
    writing: bool,
}

impl Waiting {
    /// How many lines were lost, once there is room to say so.
    fn take_lost(&mut self) -> u64 {
        if self.bytes > WAITING_BYTES_MAX / 2 { 0 } else { std::mem::take(&mut self.lost) }
    }
}

impl LogQueue {
    fn start(to: impl Write + Send + 'static) -> Self {
        let queue = Self(Arc::default());
        let of_thread = queue.clone();
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || of_thread.write_all(to));
        // Without a thread nothing is read, and all lines are dropped: no reason to serve nobody.
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

    /// The thread: line by line, whatever becomes of them.
    fn write_all(&self, mut to: impl Write) {
        loop {
            let mut waiting = self.waiting();
            waiting.writing = false;
            self.0.changed.notify_all();
            let lost = waiting.take_lost();
            if lost > 0 {
                drop(waiting);
                tracing::warn!(lost, "lines of the log were dropped, as nobody read it");
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

    /// Waits until everything is written, but not for a reader that does not read.
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

/// Writes a line. One that cannot be written is dropped: there is nobody to tell.
fn write_line(to: &mut impl Write, mut line: &[u8]) {
    while !line.is_empty() {
        match to.write(line) {
            Ok(0) => return,
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
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

    /// Takes nothing until it is let.
    struct Stuck(Arc<(Mutex<bool>, Condvar)>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let (stuck, changed) = &*self.0;
            drop(changed.wait_while(stuck.lock().unwrap(), |stuck| *stuck).unwrap());
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_costs_lines_and_no_time() {
        let (gate, written) = (Arc::new((Mutex::new(true), Condvar::new())), Arc::default());
        let queue = LogQueue::start(Stuck(gate.clone(), Arc::clone(&written)));
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
    fn lost_lines_are_counted_until_there_is_room_to_say_so() {
        let mut waiting = Waiting { bytes: WAITING_BYTES_MAX, lost: 7, ..Waiting::default() };
        assert_eq!(waiting.take_lost(), 0);
        waiting.bytes = WAITING_BYTES_MAX / 2;
        assert_eq!((waiting.take_lost(), waiting.take_lost()), (7, 0));
    }

    #[test]
    fn a_reader_that_is_gone_costs_nothing() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let queue = LogQueue::start(Gone);
        (0..10).for_each(|_| queue.push(b"line\n".to_vec()));
        let begun = Instant::now();
        queue.flush();
        assert!(begun.elapsed() < FLUSH_TIMEOUT);
    }
}
