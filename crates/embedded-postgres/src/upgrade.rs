//! Minor upgrades of the installed PostgreSQL while its server runs: the package manager replaces the programs and libraries,
//! and the old postmaster goes on. A backend that then loads a library gets the new file, which may not fit the old postmaster.
//!
//! Three measures: the postmaster loads the libraries that meterd needs when it starts, so backends inherit them. A start that
//! finds a running server of another version than the installed programs restarts it. And while meterd runs, it tries from time
//! to time whether a new backend can still load the library, and restarts a server that cannot with the new programs.

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

/// How often a running meterd looks after the installed programs.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Libraries for the postmaster to load: those that the cluster's configuration names, and that of PL/pgSQL.
pub(super) async fn libraries_to_preload(layout: &Layout, binaries: &Binaries, user: &ServerUser) -> String {
    let mut command = user.command(&binaries.dir.join("postgres"));
    command.arg("-D").arg(&layout.cluster).args(["-C", "shared_preload_libraries"]).kill_on_drop(true);
    // A configuration that cannot be read stops the start itself, which then shows the server's log.
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

/// Whether a list of libraries, separated by commas, names that of PL/pgSQL.
fn is_named(libraries: &str) -> bool {
    libraries.split(',').any(|name| name.trim().trim_matches('"') == LIBRARY)
}

/// Whether a message of the server says that it cannot load a library. Its messages are in English: the cluster's locale is C.
pub(super) fn is_load_failure(message: &str) -> bool {
    ["could not load library", "could not access file", "could not find function", "incompatible library"]
        .iter()
        .any(|start| message.starts_with(start))
}

/// Why a running server must be restarted before this meterd uses it, if it must.
pub(super) async fn restart_reason(
    ready: &Ready,
    binaries: &Binaries,
    durable: bool,
) -> Result<Option<String>, EmbeddedError> {
    if ready.version != binaries.version {
        let Binaries { dir, version, .. } = binaries;
        return Ok(Some(format!("it is PostgreSQL {}, and {} is now {version}", ready.version, dir.display())));
    }
    let traits = connection::traits(&ready.socket_dir).await?;
    if durable && !traits.durable {
        return Ok(Some("it is not durable".to_owned()));
    }
    if !is_named(&traits.preloaded) {
        return Ok(Some(format!("it has not loaded the library {LIBRARY}, which an upgrade may replace")));
    }
    Ok(None)
}

/// Identifies a program file: an upgrade replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64, u64, i64);

impl Stamp {
    /// The stamp of `postgres` in a directory; `None` if there is no such file.
    pub(super) fn of(bin_dir: &Path) -> Option<Self> {
        let file = std::fs::metadata(bin_dir.join("postgres")).ok()?;
        Some(Self(file.dev(), file.ino(), file.mtime()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_in_lists_as_postgresql_writes_them() {
        for named in ["plpgsql", "pg_stat_statements, plpgsql", "\"plpgsql\",auto_explain"] {
            assert!(is_named(named), "{named}");
        }
        for other in ["", "pg_stat_statements", "plpgsql_check"] {
            assert!(!is_named(other), "{other}");
        }
    }
}
