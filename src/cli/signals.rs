//! Signals by which people and supervisors end a command.

use std::future::Future;
use std::io;
use tokio::signal::unix::{SignalKind, signal};

/// Takes SIGINT, SIGTERM and SIGHUP (a terminal that is closed) from now on. The future ends with the first of them.
///
/// A process that was started with SIGHUP ignored, as by `nohup`, goes on ignoring it.
pub fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
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

/// Does work until it is done or a signal ends it. What must be put in order afterwards then still can be.
pub async fn unless_stopped<T>(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = stop => anyhow::bail!("interrupted"),
    }
}

/// Whether SIGHUP was ignored when the process began. Only Linux tells; elsewhere it is taken.
fn ignores_hangup() -> bool {
    const SIGHUP_BIT: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SIGHUP_BIT != 0)
}
