//! CPU time and memory of server, database and load generator, from Linux's `/proc`. `None` on other systems.

use std::fs;

/// Clock ticks of `/proc/<pid>/stat` per second: USER_HZ, which is 100 on all Linux targets of Rust.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time since the start of each process, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTime {
    pub server: u64,
    pub database: Option<u64>,
    pub load: u64,
}

/// The processes to watch.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    server: u32,
    /// `None` if the database runs on another machine.
    postmaster: Option<u32>,
}

/// The used fields of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    ticks: u64,
    /// Ticks of children that have ended.
    ended_ticks: u64,
}

impl Watch {
    /// Watches a server process and the PostgreSQL that has this backend. The backend runs on this machine if its title
    /// contains the name of the database, which is unique.
    pub fn new(server: u32, backend: i32, database: &str) -> Self {
        let title = fs::read(format!("/proc/{backend}/cmdline")).unwrap_or_default();
        let here = String::from_utf8_lossy(&title).contains(database);
        let postmaster = u32::try_from(backend).ok().filter(|_| here).and_then(stat).map(|stat| stat.parent);
        Self { server, postmaster }
    }

    /// Reads the CPU time of all processes.
    pub fn read(&self) -> Option<CpuTime> {
        let of = |pid| stat(pid).map(|stat| micros(stat.ticks));
        Some(CpuTime {
            server: of(self.server)?,
            database: self.postmaster.and_then(family_micros),
            load: of(std::process::id())?,
        })
    }

    /// Peak resident memory of the server, in bytes.
    pub fn server_peak_memory(&self) -> Option<u64> {
        self.server_bytes("VmHWM:")
    }

    /// Resident memory of the server, in bytes.
    pub fn server_memory(&self) -> Option<u64> {
        self.server_bytes("VmRSS:")
    }

    fn server_bytes(&self, label: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(label))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }
}

impl CpuTime {
    /// The CPU time since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            server: self.server.saturating_sub(before.server),
            database: self.database.zip(before.database).map(|(now, before)| now.saturating_sub(before)),
            load: self.load.saturating_sub(before.load),
        }
    }
}

/// CPU time of a process and its children, including those that have ended.
fn family_micros(parent: u32) -> Option<u64> {
    let own = stat(parent)?;
    let mut ticks = own.ticks + own.ended_ticks;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(child) = pid.and_then(stat).filter(|stat| stat.parent == parent) {
            ticks += child.ticks;
        }
    }
    Some(micros(ticks))
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `pid (name) state ppid …`. The name may contain anything, so parsing starts at the last parenthesis.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
        ended_ticks: number(13)? + number(14)?,
    })
}

fn micros(ticks: u64) -> u64 {
    ticks * (1_000_000 / TICKS_PER_SECOND)
}

/// The machine's load averages.
pub fn load_average() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    Some(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_hold_anything() {
        let text = "42 (a) b 7 (c)) S 7 42 42 0 -1 4194560 1 2 3 4 50 60 70 80 20 0 1 0 100 0 0";
        assert_eq!(parse(text), Some(Stat { parent: 7, ticks: 110, ended_ticks: 150 }));
        assert_eq!(parse("nothing"), None);
    }
}
