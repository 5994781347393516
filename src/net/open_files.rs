//! The limit of open files. Each connection needs a file descriptor.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Ports that each take the maximum number of connections.
const PORTS: u64 = 2;
/// Descriptors for everything else: the database, files, the runtime.
const OTHER_FILES: u64 = 256;

/// Raises the soft limit of open files if the connections of both ports need more, up to the hard limit. Logs a warning if the
/// hard limit is too low.
///
/// Most systems set the soft limit to 1,024 for programs that use `select`.
pub fn raise_open_files_limit(connections_max: u32) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let needed = open_files_needed(connections_max);
    let target = needed.min(hard).max(soft);
    let is_raised = setrlimit(Resource::RLIMIT_NOFILE, target, hard).is_ok();
    let allowed = if is_raised { target } else { soft };
    if allowed < needed {
        tracing::warn!(
            allowed,
            needed,
            "the limit of open files is too low for --inbound-connections-max; raise the hard limit (ulimit -Hn)"
        );
    }
}

/// Returns the number of files that are open if both ports have their maximum number of connections.
pub fn open_files_needed(connections_max: u32) -> u64 {
    PORTS * u64::from(connections_max) + OTHER_FILES
}
