//! Signals that stop a command.

use std::future::Future;
use std::io;
use tokio::signal::unix::{SignalKind, signal};

/// Registers handlers for SIGINT, SIGTERM and SIGHUP (the terminal was closed). The future completes at the first signal.
///
/// SIGHUP stays ignored if the process was started with it ignored, as by `nohup`.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
    Ok(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hung_up => {}
        }
    })
}

/// Runs `work` until it completes or `stop` completes. Returns in both cases, so that the caller can clean up.
pub async fn unless_stopped<T>(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = stop => anyhow::bail!("interrupted"),
    }
}

/// Whether SIGHUP was ignored when the process started. Returns false on systems other than Linux.
fn ignores_hangup() -> bool {
    const SIGHUP_BIT: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SIGHUP_BIT != 0)
}
