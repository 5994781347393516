//! Each connection needs a file descriptor.

use super::NetSettings;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Each takes as many connections as the setting says.
const PORTS: u64 = 2;
/// Descriptors for everything else: the database, files, the runtime.
const OTHER_FILES: u64 = 256;

/// Raises the soft limit of open files to the hard one, and says so where it is too low for the connections that may come.
///
/// The soft limit is 1,024 in most places for the sake of programs that use `select`.
pub fn allow_open_files(settings: &NetSettings) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = wanted(settings);
    let reachable = wanted.min(hard).max(soft);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, reachable, hard).is_ok();
    let allowed = if raised { reachable } else { soft };
    if allowed < wanted {
        tracing::warn!(
            allowed,
            wanted,
            "fewer files may be open than --inbound-connections-max needs; raise the limit (ulimit -Hn)"
        );
    }
}

fn wanted(settings: &NetSettings) -> u64 {
    PORTS * u64::from(settings.inbound_connections_max) + OTHER_FILES
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    #[test]
    fn the_connections_of_both_ports_fit_into_twenty_thousand_files_by_default() {
        let matches = NetSettings::augment_args(clap::Command::new("test")).get_matches_from(["test"]);
        assert_eq!(wanted(&NetSettings::from_arg_matches(&matches).unwrap()), 16_256);
    }
}
