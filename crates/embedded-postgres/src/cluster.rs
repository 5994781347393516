//! PostgreSQL's data directory (the cluster): its version, and its creation.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tracing::info;

use super::binaries::Binaries;
use super::error::EmbeddedError;
use super::layout::Layout;
use super::owner::ServerUser;

/// Name of meterd's superuser and of its database.
pub(super) const NAME: &str = "meterd";

/// Maximum time for `initdb`. It usually takes about a second, and longer if the disk syncs slowly.
const INITDB_TIMEOUT: Duration = Duration::from_secs(300);

/// Defaults for meterd, appended to `postgresql.conf`, where an operator may change them. Settings that must not be
/// changed are on the server's command line instead.
const CONF: &str = "
# Defaults of meterd. You may change them. Settings that must not change are on the command line of the server.
max_connections = 200
timezone = 'UTC'
log_timezone = 'UTC'
";

/// Returns the major version that created the cluster, or `None` if there is no cluster.
pub(super) fn made_by(cluster: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = cluster.join("PG_VERSION");
    let not_a_cluster = || EmbeddedError::NotACluster { cluster: cluster.to_owned() };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let major = text.trim().split('.').next().and_then(|major| major.parse().ok());
            major.map(Some).ok_or_else(not_a_cluster)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_dir(cluster) {
            Ok(mut entries) => match entries.next() {
                Some(_) => Err(not_a_cluster()),
                None => Ok(None),
            },
            Err(_) => Ok(None),
        },
        Err(error) => Err(EmbeddedError::io("read", &path)(error)),
    }
}

/// Prefix of the directories in which clusters are created. A point and 16 hexadecimal digits follow. Earlier versions
/// used one directory with exactly this name.
const TEMPORARY_PREFIX: &str = "postgres.init";

/// Returns whether meterd created the directory for an initialization. If the initialization did not finish, the
/// directory is removed.
fn is_temporary(name: &str) -> bool {
    let is_suffix = |rest: &str| rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_prefix(TEMPORARY_PREFIX)
        .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.').is_some_and(is_suffix))
}

/// Removes the directories of interrupted starts. The `initdb` of a killed meterd may still write to its directory; if
/// removing fails, a later call removes it.
pub(super) fn remove_leftovers(data_dir: &Path) {
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name().to_string_lossy())
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            info!("cannot remove {}: {error}; the next start tries again", entry.path().display());
        }
    }
}

/// Creates the cluster in a temporary directory and then renames it, so that an incomplete cluster is never used. Each
/// attempt has its own directory, because the `initdb` of a killed meterd may still write to the previous one.
pub(super) async fn make(
    layout: &Layout,
    binaries: &Binaries,
    user: &ServerUser,
    durable: bool,
) -> Result<(), EmbeddedError> {
    let cluster = &layout.cluster;
    let making = layout.data_dir.join(format!("{TEMPORARY_PREFIX}.{:016x}", rand::random::<u64>()));
    fs::create_dir(&making).map_err(EmbeddedError::io("create the directory", &making))?;
    user.give(&making)?;
    info!("creating a PostgreSQL {} database in {}", binaries.version, cluster.display());

    let mut initdb = user.command(&binaries.dir.join("initdb"));
    initdb
        .arg("--pgdata")
        .arg(&making)
        .args(["--username", NAME, "--encoding=UTF8", "--locale=C"])
        // Only the server's user and root can enter the socket directory (mode 0700), and there are no network
        // connections.
        .args(["--auth-local=trust", "--auth-host=reject", "--no-instructions"])
        .kill_on_drop(true);
    if !durable {
        initdb.arg("--no-sync");
    }
    let failed = |output: String| EmbeddedError::InitFailed { cluster: cluster.clone(), output };
    match timeout(INITDB_TIMEOUT, initdb.output()).await {
        Err(_) => {
            return Err(failed(format!("initdb did not finish within {} s", INITDB_TIMEOUT.as_secs())));
        }
        Ok(Err(error)) => {
            return Err(EmbeddedError::io("run", &binaries.dir.join("initdb"))(error));
        }
        Ok(Ok(output)) if !output.status.success() => {
            let error_of = [output.stdout, output.stderr].concat();
            return Err(failed(String::from_utf8_lossy(&error_of).trim().to_owned()));
        }
        Ok(Ok(_)) => {}
    }

    let conf = making.join("postgresql.conf");
    fs::OpenOptions::new()
        .append(true)
        .open(&conf)
        .and_then(|mut file| file.write_all(CONF.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(EmbeddedError::io("write", &conf))?;
    if cluster.exists() {
        // It is empty; otherwise `made_by` would have rejected it.
        fs::remove_dir(cluster).map_err(EmbeddedError::io("remove the empty directory", cluster))?;
    }
    fs::rename(&making, cluster)
        .and_then(|()| fs::File::open(&layout.data_dir)?.sync_all())
        .map_err(EmbeddedError::io("rename a directory to", cluster))
}

#[cfg(test)]
mod tests {
    use super::is_temporary;

    #[test]
    fn only_directories_of_an_initialization_are_temporary() {
        for name in ["postgres.init", "postgres.init.0123456789abcdef"] {
            assert!(is_temporary(name), "{name}");
        }
        for name in
            ["postgres", "postgres.initdb", "postgres.init.bad", "postgres.init.20261127", "postgres.init.d", "x"]
        {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
