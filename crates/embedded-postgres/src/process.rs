//! The postmaster as a process: its pid file, whether it runs, and how to stop it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::error::EmbeddedError;

/// Maximum time for a shutdown with a last checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum time for an immediate shutdown.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The contents of `postmaster.pid`. PostgreSQL writes it line by line while it starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
    /// `None` until the server listens.
    pub(super) socket_dir: Option<PathBuf>,
}

impl PidFile {
    /// Reads the pid file of a cluster. Returns `None` if there is none or it is incomplete.
    pub(super) fn read(cluster: &Path) -> Result<Option<Self>, EmbeddedError> {
        let path = cluster.join("postmaster.pid");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EmbeddedError::io("read", &path)(error)),
        }
    }

    /// Line 1 is the process id, line 5 the first socket directory (PostgreSQL's `pidfile.h`).
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        Some(Self {
            // Negative if a single-user backend uses the cluster: there is no postmaster.
            pid: lines.next()?.trim().parse().ok().filter(|pid| *pid > 1)?,
            socket_dir: lines.nth(3).filter(|dir| !dir.is_empty()).map(PathBuf::from),
        })
    }

    /// Removes an empty pid file. Its postmaster was killed before it wrote the file, and PostgreSQL does not start if
    /// the file is empty.
    pub(super) fn remove_if_empty(cluster: &Path) -> Result<(), EmbeddedError> {
        let path = cluster.join("postmaster.pid");
        if fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            warn!("removing the empty file {}", path.display());
            fs::remove_file(&path).map_err(EmbeddedError::io("remove the empty file", &path))?;
        }
        Ok(())
    }

    /// Returns whether [`disarm`](Self::disarm) of this process wrote the file.
    pub(super) fn is_disarmed(&self) -> bool {
        u32::try_from(self.pid) == Ok(std::process::id())
    }

    /// Disarms a stale file whose process id now belongs to an unrelated process, which PostgreSQL would mistake for a
    /// live server. Writes meterd's own process id, because PostgreSQL considers its parent's id stale. The other lines
    /// stay: with the shared memory key in them, PostgreSQL detects backends that outlived the postmaster.
    pub(super) fn disarm(cluster: &Path) -> Result<(), EmbeddedError> {
        let path = cluster.join("postmaster.pid");
        let rewrite = || {
            let text = fs::read_to_string(&path)?;
            let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
            fs::write(&path, format!("{}\n{rest}", std::process::id()))
        };
        rewrite().map_err(EmbeddedError::io("rewrite the stale file", &path))
    }
}

/// A running postmaster: our child, or one that an earlier meterd started.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub(super) pid: i32,
    pub(super) cluster: PathBuf,
    pub(super) child: Option<Child>,
}

impl Postmaster {
    /// Returns whether it still runs. Also reaps a child that has ended.
    pub(super) fn alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => is_postmaster_of(self.pid, &self.cluster),
        }
    }

    /// Describes how it ended, for messages.
    pub(super) fn ending(&mut self) -> String {
        match self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            Some(status) => status.to_string(),
            None => "it ended".to_owned(),
        }
    }

    /// Stops it with a fast shutdown, or with an immediate shutdown if the fast one takes too long.
    pub(super) async fn shut_down(&mut self, log: &Path) -> Result<(), EmbeddedError> {
        for (signal, limit) in [(Signal::SIGINT, STOP_TIMEOUT), (Signal::SIGQUIT, QUIT_TIMEOUT)] {
            self.signal(signal)?;
            let give_up = Instant::now() + limit;
            while Instant::now() < give_up {
                if !self.alive() {
                    info!("PostgreSQL has stopped");
                    return Ok(());
                }
                sleep(Duration::from_millis(20)).await;
            }
            warn!("PostgreSQL did not stop within {} s after {signal}", limit.as_secs());
        }
        Err(EmbeddedError::StopTimeout {
            pid: self.pid,
            waited_s: (STOP_TIMEOUT + QUIT_TIMEOUT).as_secs(),
            log: log.to_owned(),
        })
    }

    /// Sends a signal. It is not an error if the process has already ended.
    fn signal(&mut self, signal: Signal) -> Result<(), EmbeddedError> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(EmbeddedError::io("send a signal to the server of", &self.cluster)(errno.into())),
        }
    }
}

/// Returns whether a process has this id.
pub(super) fn exists(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Returns whether process `pid` is the postmaster of this cluster, and not a process that got the same id later. A
/// backend is not a postmaster either: its command line is `postgres: ...`.
pub(super) fn is_postmaster_of(pid: i32, cluster: &Path) -> bool {
    let args = arguments(pid);
    let Some(program) = args.first().map(PathBuf::from) else {
        return false; // ended, or a zombie
    };
    let is_postgres = program.file_name().is_some_and(|name| name == "postgres" || name == "postmaster");
    let names_cluster = || {
        args.iter().skip(1).any(|arg| {
            let dir = arg.strip_prefix("-D").unwrap_or(arg);
            Path::new(dir) == cluster
        })
    };
    // A postmaster that pg_ctl started with a relative path is recognized by its working directory, if that may be
    // read.
    let works_there = || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == cluster);
    is_postgres && (names_cluster() || works_there())
}

/// Returns the command line of a process, or nothing if there is no such process.
#[cfg(target_os = "linux")]
fn arguments(pid: i32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .filter(|arg| !arg.is_empty())
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect()
}

/// Returns the command line of a process, or nothing if there is no such process. `ps` joins the arguments with spaces,
/// so everything after `-D` is joined to one path.
#[cfg(not(target_os = "linux"))]
fn arguments(pid: i32) -> Vec<String> {
    let output = std::process::Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output();
    let Ok(output) = output else {
        return Vec::new();
    };
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match line.split_once(" -D ") {
        Some((program, rest)) => {
            let dir = rest.split(" -").next().unwrap_or(rest);
            vec![program.to_owned(), "-D".to_owned(), dir.to_owned()]
        }
        None if line.is_empty() => Vec::new(),
        None => vec![line],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_parsed_while_it_is_written() {
        let whole = "4711\n/d/postgres\n1732226400\n5432\n/d/run\n\n  1234  5\nready   \n";
        let file = PidFile::parse(whole).unwrap();
        assert_eq!((file.pid, file.socket_dir), (4711, Some("/d/run".into())));
        let starting = PidFile::parse("4711\n/d/postgres\n1732226400\n5432\n\n").unwrap();
        assert_eq!(starting.socket_dir, None);
        assert_eq!(PidFile::parse(""), None);
        assert_eq!(PidFile::parse("-4711\n/d/postgres\n"), None);
    }

    #[test]
    fn this_test_is_not_a_postmaster() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(exists(own));
        assert!(!is_postmaster_of(own, Path::new("/")));
    }
}
