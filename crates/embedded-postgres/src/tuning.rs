//! Memory and WAL settings that suit the machine. PostgreSQL's own defaults suit a machine with 512 MB of memory.
//!
//! Each start computes them and writes them to `meterd.conf` in PostgreSQL's data directory. The first line of
//! `postgresql.conf` includes that file, so any setting that an operator adds to `postgresql.conf`, or sets with
//! `ALTER SYSTEM`, overrides the computed one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tokio::time::timeout;
use tracing::warn;

use super::binaries::{Binaries, PROBE_TIMEOUT};
use super::error::EmbeddedError;
use super::layout::Layout;
use super::owner::ServerUser;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Name of the file with the computed settings.
const FILE: &str = "meterd.conf";

/// The first lines of `postgresql.conf`.
const INCLUDE: &str =
    "# Settings that meterd computes for this machine at each start. Any setting below overrides them.
include_if_exists = 'meterd.conf'
";

/// The values that `initdb`, or an earlier meterd, wrote to `postgresql.conf` for the computed settings. They are not an
/// operator's choice, so they are removed.
const WRITTEN_DEFAULTS: [&str; 4] =
    ["shared_buffers = 128MB", "max_wal_size = 1GB", "max_wal_size = '2GB'", "min_wal_size = 80MB"];

/// How much memory the server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// The share that suits the machine.
    Share,
    /// PostgreSQL's default, for a machine that does not grant the share.
    Default,
}

/// What the settings depend on.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Memory of the machine, or the limit of its container if that is lower, in bytes.
    memory: u64,
    /// Free bytes on the disk of the data directory.
    free_disk: u64,
    /// Whether the programs can compress the WAL with lz4.
    lz4: bool,
}

impl Machine {
    async fn of(layout: &Layout, binaries: &Binaries, user: &ServerUser) -> Self {
        let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(kind);
        let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
        // If the free space is not known, the size of the WAL stays small.
        let free_disk = statvfs(&layout.cluster).map_or(0, |disk| disk.fragment_size() * disk.blocks_available());
        Self { memory: system.total_memory().min(limit), free_disk, lz4: has_lz4(layout, binaries, user).await }
    }

    /// Returns the settings. `docs/operating.md` lists them with their reasons.
    fn settings(self, memory: Memory) -> Vec<(&'static str, String)> {
        let mib = |bytes: u64| format!("{}MB", bytes / MIB);
        let shared = match memory {
            // A quarter is the advice of PostgreSQL's manual, chapter "Resource Consumption".
            Memory::Share => (self.memory / 4).clamp(64 * MIB, 8 * GIB),
            Memory::Default => 128 * MIB,
        };
        // Between two checkpoints, each page that changes is written to the WAL in full once. So checkpoints should be rare.
        let wal = (self.free_disk / 10).clamp(GIB, 8 * GIB);
        vec![
            ("shared_buffers", mib(shared)),
            ("effective_cache_size", mib((self.memory / 2).max(128 * MIB))),
            ("maintenance_work_mem", mib((self.memory / 32).clamp(64 * MIB, GIB))),
            ("max_wal_size", mib(wal)),
            ("min_wal_size", mib(wal / 8)),
            ("checkpoint_timeout", "15min".to_owned()),
            ("wal_compression", if self.lz4 { "lz4" } else { "pglz" }.to_owned()),
        ]
    }
}

/// Returns whether these programs can compress the WAL with lz4, which is an option of their build.
async fn has_lz4(layout: &Layout, binaries: &Binaries, user: &ServerUser) -> bool {
    let mut command = user.command(&binaries.dir.join("postgres"));
    command.arg("-D").arg(&layout.cluster).args(["-c", "wal_compression=lz4", "-C", "wal_compression"]);
    let asked = timeout(PROBE_TIMEOUT, command.kill_on_drop(true).output()).await;
    matches!(asked, Ok(Ok(output)) if output.status.success())
}

/// Writes the settings for the next start of the server. The server can start without them, so an error is only logged.
pub(super) async fn write(layout: &Layout, binaries: &Binaries, user: &ServerUser, memory: Memory) {
    let machine = Machine::of(layout, binaries, user).await;
    let lines = machine.settings(memory).into_iter().map(|(name, value)| format!("{name} = '{value}'\n"));
    let text = "# Computed by meterd at each start. To change a setting, add it to postgresql.conf.\n".to_owned();
    let written = replace(&layout.cluster.join(FILE), user, &lines.fold(text, |text, line| text + &line))
        .and_then(|()| include(&layout.cluster.join("postgresql.conf"), user));
    if let Err(error) = written {
        warn!("cannot write the memory and WAL settings; PostgreSQL starts with its current ones: {error}");
    }
}

/// Makes `postgresql.conf` include the settings.
fn include(conf: &Path, user: &ServerUser) -> Result<(), EmbeddedError> {
    let text = fs::read_to_string(conf).map_err(EmbeddedError::io("read", conf))?;
    match with_include(&text) {
        Some(text) => replace(conf, user, &text),
        None => Ok(()),
    }
}

/// Returns the configuration with the line that includes the settings, or `None` if it already has that line, even
/// commented out.
fn with_include(conf: &str) -> Option<String> {
    if conf.contains(FILE) {
        return None;
    }
    let is_default = |line: &&str| {
        let value = line.split('#').next().unwrap_or_default().trim();
        WRITTEN_DEFAULTS.contains(&value)
    };
    let kept = conf.lines().filter(|line| !is_default(line)).map(|line| line.to_owned() + "\n");
    Some(INCLUDE.to_owned() + &kept.collect::<String>())
}

/// Replaces the contents of a file of the server. After a crash, the file has either the old or the new contents.
fn replace(path: &Path, user: &ServerUser, text: &str) -> Result<(), EmbeddedError> {
    let new = path.with_extension("conf.new");
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(EmbeddedError::io("write", &new))?;
    user.give(&new)?;
    fs::rename(&new, path).map_err(EmbeddedError::io("rename a file to", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(memory: u64, free_disk: u64) -> Vec<String> {
        let machine = Machine { memory, free_disk, lz4: true };
        machine.settings(Memory::Share).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn settings_follow_the_machine_within_bounds() {
        let rest = ["checkpoint_timeout=15min", "wal_compression=lz4"];
        let of = |values: [&str; 5]| {
            let names =
                ["shared_buffers", "effective_cache_size", "maintenance_work_mem", "max_wal_size", "min_wal_size"];
            let computed = names.iter().zip(values).map(|(name, value)| format!("{name}={value}"));
            computed.chain(rest.map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(settings(24 * GIB, 200 * GIB), of(["6144MB", "12288MB", "768MB", "8192MB", "1024MB"]));
        assert_eq!(settings(2 * GIB, 20 * GIB), of(["512MB", "1024MB", "64MB", "2048MB", "256MB"]));
        assert_eq!(settings(256 * MIB, 0), of(["64MB", "128MB", "64MB", "1024MB", "128MB"]));
        assert_eq!(settings(1_024 * GIB, 9_000 * GIB), of(["8192MB", "524288MB", "1024MB", "8192MB", "1024MB"]));
        let machine = Machine { memory: 24 * GIB, free_disk: GIB, lz4: false };
        let settings = machine.settings(Memory::Default);
        assert!(settings.contains(&("shared_buffers", "128MB".to_owned())));
        assert!(settings.contains(&("wal_compression", "pglz".to_owned())));
    }

    #[test]
    fn the_settings_of_an_operator_stay_and_written_defaults_are_removed() {
        let conf = "max_connections = 100\t# a comment\nshared_buffers = 128MB\t\t# min 128kB\n#work_mem = 4MB\n\
                    max_wal_size = 1GB\nmin_wal_size = 80MB\n\n# Defaults of meterd.\nmax_wal_size = '2GB'\n";
        let kept = "max_connections = 100\t# a comment\n#work_mem = 4MB\n\n# Defaults of meterd.\n";
        assert_eq!(with_include(conf), Some(INCLUDE.to_owned() + kept));
        let own = "shared_buffers = 3GB\nmax_wal_size = 12GB # more\n";
        assert_eq!(with_include(own), Some(INCLUDE.to_owned() + own));
        let (included, removed) = (with_include(own).unwrap(), "# include_if_exists = 'meterd.conf'\n");
        assert_eq!((with_include(&included), with_include(removed)), (None, None));
    }
}
