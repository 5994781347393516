//! Starts the postmaster, or takes over a running one, and waits until it answers.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::binaries::Binaries;
use super::connection::ask;
use super::error::EmbeddedError;
use super::layout::Layout;
use super::log;
use super::owner::ServerUser;
use super::process::{PidFile, Postmaster, exists, is_postmaster_of};
use super::tuning::{self, Memory};
use super::upgrade;

/// Maximum time until the server answers. Crash recovery replays up to `max_wal_size`.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a start is retried while backends of a killed postmaster use its shared memory. They end as soon as they
/// notice that the postmaster is gone, which a long statement delays.
const RETRY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often the log reports the progress of a start.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Texts in the server's log that mean that the start should be retried. The last one: the file was created but not
/// written yet.
const RETRY_TEXTS: [&str; 3] =
    ["pre-existing shared memory block", "Is another postmaster", "lock file \"postmaster.pid\" is empty"];

/// Text in the server's log if the system does not grant its shared memory.
const NO_MEMORY_TEXT: &str = "could not map anonymous shared memory";

/// How long `postmaster.pid` may be empty. The server writes it right after creating it, so after this time the creator
/// is considered dead.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that accepts connections.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) postmaster: Postmaster,
    pub(super) socket_dir: PathBuf,
    /// As the server reports it: `15.18`.
    pub(super) version: String,
}

/// Waits for the postmaster that already runs on this cluster, if there is one.
pub(super) async fn find_running(layout: &Layout) -> Result<Option<Ready>, EmbeddedError> {
    let Some(file) = PidFile::read(&layout.cluster)? else {
        return Ok(None);
    };
    if !is_postmaster_of(file.pid, &layout.cluster) {
        return Ok(None);
    }
    let postmaster = Postmaster { pid: file.pid, cluster: layout.cluster.clone(), child: None };
    match wait_ready(postmaster, layout, 0).await {
        Ok(ready) => Ok(Some(ready)),
        // It was shutting down.
        Err(EmbeddedError::StartFailed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts a postmaster and waits until it answers. Returns the running one if a killed meterd has just started another.
pub(super) async fn start(
    layout: &Layout,
    binaries: &Binaries,
    user: &ServerUser,
    durable: bool,
) -> Result<Ready, EmbeddedError> {
    let give_up = Instant::now() + RETRY_TIMEOUT;
    let begin = Instant::now();
    tuning::write(layout, binaries, user, Memory::Share).await;
    let mut memory = Memory::Share;
    let preload = upgrade::libraries_to_preload(layout, binaries, user).await;
    loop {
        if let Some(file) = PidFile::read(&layout.cluster)?
            && !file.is_disarmed()
            && exists(file.pid)
            && !is_postmaster_of(file.pid, &layout.cluster)
        {
            warn!("process {} in postmaster.pid is not this server: the file is stale", file.pid);
            PidFile::disarm(&layout.cluster)?;
        }
        let (postmaster, log_begin) = spawn(layout, binaries, user, durable, &preload)?;
        match wait_ready(postmaster, layout, log_begin).await {
            Err(EmbeddedError::StartFailed { log_tail, .. })
                if RETRY_TEXTS.iter().any(|sign| log_tail.contains(sign)) && Instant::now() < give_up =>
            {
                info!("an earlier server of this data directory is still starting or stopping: retrying");
                sleep(Duration::from_millis(500)).await;
                if let Some(ready) = find_running(layout).await? {
                    return Ok(ready);
                }
                if begin.elapsed() > EMPTY_TIMEOUT {
                    PidFile::remove_if_empty(&layout.cluster)?;
                }
            }
            Err(EmbeddedError::StartFailed { log_tail, .. })
                if log_tail.contains(NO_MEMORY_TEXT) && memory == Memory::Share =>
            {
                warn!("this machine does not grant PostgreSQL the memory that was computed for it: retrying with less");
                memory = Memory::Default;
                tuning::write(layout, binaries, user, memory).await;
            }
            outcome => return outcome,
        }
    }
}

/// Starts the process in its own process group, so that Ctrl-C in the terminal reaches only meterd, which first drains
/// and then stops the server.
fn spawn(
    layout: &Layout,
    binaries: &Binaries,
    user: &ServerUser,
    durable: bool,
    preload: &str,
) -> Result<(Postmaster, u64), EmbeddedError> {
    let socket_dir = layout.make_socket_dir(user)?;
    let (log, log_begin) = log::open(&layout.log)?;
    let program = binaries.dir.join("postgres");
    let io = |error| EmbeddedError::io("start", &program)(error);
    let mut command = user.command(&program);
    command.arg("-D").arg(&layout.cluster);
    let on = if durable { "on" } else { "off" };
    let mut set = |name: &str, value: &str| {
        command.arg("-c").arg(format!("{name}={value}"));
    };
    set("listen_addresses", "");
    set("port", "5432"); // part of the socket's name, not a network port
    set("unix_socket_directories", &format!("\"{}\"", socket_dir.display()));
    set("unix_socket_permissions", "0700");
    set("fsync", on);
    set("full_page_writes", on);
    set("synchronous_commit", "on");
    set("logging_collector", "off");
    set("log_destination", "stderr");
    // Libraries that the postmaster has loaded stay loaded when an upgrade replaces the files. JIT compilation would
    // load another library later, and meterd's queries are too short to gain from it.
    set("shared_preload_libraries", preload);
    set("jit", "off");
    let child = command
        .stdout(Stdio::from(log.try_clone().map_err(io)?))
        .stderr(Stdio::from(log))
        .process_group(0)
        .spawn()
        .map_err(io)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    let postmaster = Postmaster { pid, cluster: layout.cluster.clone(), child: Some(child) };
    Ok((postmaster, log_begin))
}

/// Waits until the server answers, ends, or reaches the timeout.
async fn wait_ready(mut postmaster: Postmaster, layout: &Layout, log_begin: u64) -> Result<Ready, EmbeddedError> {
    let begin = Instant::now();
    let mut told = begin;
    let mut pause = Duration::from_millis(20);
    loop {
        let file = PidFile::read(&layout.cluster)?.filter(|file| file.pid == postmaster.pid);
        let last = match file.and_then(|file| file.socket_dir) {
            None => "it does not listen yet".to_owned(),
            Some(socket_dir) => match ask(&socket_dir, &layout.cluster).await {
                Ok(version) => {
                    return Ok(Ready { postmaster, socket_dir, version });
                }
                Err(answer) => answer,
            },
        };
        if !postmaster.alive() {
            return Err(EmbeddedError::StartFailed {
                reason: postmaster.ending(),
                log: layout.log.clone(),
                log_tail: log::tail(&layout.log, log_begin),
            });
        }
        if begin.elapsed() > READY_TIMEOUT {
            return Err(EmbeddedError::NotReady {
                pid: postmaster.pid,
                waited_s: READY_TIMEOUT.as_secs(),
                last,
                log: layout.log.clone(),
                log_tail: log::tail(&layout.log, log_begin),
            });
        }
        if told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            info!("waiting for PostgreSQL for {} s: {last}", begin.elapsed().as_secs());
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
