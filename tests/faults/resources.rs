//! The threads, tasks, files and connections of a server process. They must not grow with the faults.

use crate::replica::Replica;
use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

/// Maximum time until a server has released its resources after the callers are gone: the keepalive of dead connections
/// and the lifetime of idle threads.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of database connections of a replica: writers, calls, jobs, leases, feed.
const DATABASE_CONNECTIONS_MAX: usize = 2 + 10 + 4 + 2 + 5;

/// Threads, tasks and files of a process, without its connections.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    threads: usize,
    tasks: usize,
    files: usize,
}

impl Resources {
    /// Returns the resources that a replica uses now.
    pub async fn used_by(replica: &Replica) -> Self {
        let pid = replica.pid();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        let sockets = open_files(pid).filter(|file| file.starts_with("socket:")).count();
        let tasks = replica.metric("meterd_tasks").await as usize;
        Self { threads, tasks, files: open_files(pid).count() - sockets }
    }

    /// Waits until a replica uses no more resources than this, and has no connection of a caller, no queued event and
    /// no subscription.
    pub async fn wait_until_released(&self, replica: &Replica) {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            let now = Self::used_by(replica).await;
            let callers = callers(replica.grpc_port());
            let sockets = open_files(replica.pid()).filter(|file| file.starts_with("socket:")).count();
            let queued = replica.metric("meterd_queue_events").await;
            let subscriptions = replica.metric("meterd_alert_subscriptions").await;
            // Two sockets listen, and a pair of sockets wakes the process for signals.
            let connections_fit = sockets <= DATABASE_CONNECTIONS_MAX + 2 + 4;
            let fits =
                now.threads <= self.threads && now.tasks <= self.tasks && now.files <= self.files && connections_fit;
            if fits && callers == 0 && queued == 0.0 && subscriptions == 0.0 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "leaked: {now:?} after {self:?}, {sockets} sockets, {callers} connections of callers, {queued} queued \
                 events, {subscriptions} subscriptions"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Returns the targets of the open files of a process.
fn open_files(pid: u32) -> impl Iterator<Item = String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    files.filter_map(|file| Some(fs::read_link(file.path()).ok()?.to_string_lossy().into_owned()))
}

/// Counts the connections that a server has accepted on this port and not closed.
fn callers(port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let here = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let connections: HashSet<&str> = table
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, _, state) = (fields.next(), fields.next(), fields.next());
            local == Some(&here) && matches!(state, Some(ESTABLISHED | CLOSE_WAIT))
        })
        .collect();
    connections.len()
}
