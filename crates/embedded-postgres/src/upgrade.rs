//! Minor upgrades of the installed PostgreSQL while its server runs. The package manager replaces the programs and
//! libraries, and the old postmaster keeps running. A new backend that loads a library then gets the new file, which
//! may not fit the old postmaster.
//!
//! There are three measures. The postmaster loads the libraries that meterd needs when it starts, so that backends
//! inherit them. A start that finds a running server of another version than the installed programs restarts it. While
//! meterd runs, it regularly checks whether a new backend can load the library, and restarts the server with the new
//! programs if it cannot.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::binaries::{Binaries, PROBE_TIMEOUT};
use super::connection;
use super::error::EmbeddedError;
use super::launch::Ready;
use super::layout::Layout;
use super::owner::ServerUser;

/// The library of PL/pgSQL, the language of meterd's triggers.
const LIBRARY: &str = "plpgsql";

/// How often a running meterd checks the installed programs.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Returns the libraries that the postmaster loads: those in the cluster's configuration, and that of PL/pgSQL.
pub(super) async fn libraries_to_preload(layout: &Layout, binaries: &Binaries, user: &ServerUser) -> String {
    let mut command = user.command(&binaries.dir.join("postgres"));
    command.arg("-D").arg(&layout.cluster).args(["-C", "shared_preload_libraries"]).kill_on_drop(true);
    // If the configuration cannot be read, the start itself fails and shows the server's log.
    let configured = match timeout(PROBE_TIMEOUT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    };
    match configured.as_str() {
        "" => LIBRARY.to_owned(),
        names if is_named(names) => configured,
        names => format!("{names},{LIBRARY}"),
    }
}

/// Returns whether a comma-separated list of libraries contains that of PL/pgSQL.
fn is_named(libraries: &str) -> bool {
    libraries.split(',').any(|name| name.trim().trim_matches('"') == LIBRARY)
}

/// Returns whether a message of the server says that it cannot load a library. Its messages are in English, because the
/// cluster's locale is C.
pub(super) fn is_load_failure(message: &str) -> bool {
    ["could not load library", "could not access file", "could not find function", "incompatible library"]
        .iter()
        .any(|start| message.starts_with(start))
}

/// Returns the reason why a running server must be restarted before this meterd uses it, if there is one.
pub(super) async fn restart_reason(
    ready: &Ready,
    binaries: &Binaries,
    durable: bool,
) -> Result<Option<String>, EmbeddedError> {
    if ready.version != binaries.version {
        let Binaries { dir, version, .. } = binaries;
        return Ok(Some(format!("it is PostgreSQL {}, but {} now contains {version}", ready.version, dir.display())));
    }
    let traits = connection::traits(&ready.socket_dir).await?;
    if durable && !traits.durable {
        return Ok(Some("it is not durable".to_owned()));
    }
    if !is_named(&traits.preloaded) {
        return Ok(Some(format!("it has not loaded the library {LIBRARY}, whose file an upgrade may replace")));
    }
    Ok(None)
}

/// Identifies a version of a program file. An upgrade replaces the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64, u64, i64);

impl Stamp {
    /// Returns the stamp of `postgres` in a directory, or `None` if the file does not exist.
    pub(super) fn of(bin_dir: &Path) -> Option<Self> {
        let file = std::fs::metadata(bin_dir.join("postgres")).ok()?;
        Some(Self(file.dev(), file.ino(), file.mtime()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_in_any_form_of_list() {
        for named in ["plpgsql", "pg_stat_statements, plpgsql", "\"plpgsql\",auto_explain"] {
            assert!(is_named(named), "{named}");
        }
        for other in ["", "pg_stat_statements", "plpgsql_check"] {
            assert!(!is_named(other), "{other}");
        }
    }
}
