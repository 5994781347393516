//! PostgreSQL's own directory: which version made it, and how it is made.

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

/// The superuser and the database of meterd.
pub(super) const NAME: &str = "meterd";

/// How long `initdb` may take. It needs about a second; a slow disk syncs for longer.
const INITDB_TIMEOUT: Duration = Duration::from_secs(300);

/// Defaults that suit meterd, at the end of `postgresql.conf`, where an operator may change them. What must not be
/// changed is on the server's command line instead.
const CONF: &str = "
# meterd's defaults. Change them as you like; what meterd insists on is on the command line.
max_connections = 200
max_wal_size = '2GB'
timezone = 'UTC'
log_timezone = 'UTC'
";

/// The major version that made the cluster, `None` when there is none yet.
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

/// Begins the names of directories in which clusters are made; a point and 16 hexadecimal digits follow. Earlier versions made
/// all of them in the one of this name.
const MAKING: &str = "postgres.init";

/// Whether meterd made the directory itself, for an initialisation that did not finish. Such a directory is removed.
fn is_making(name: &str) -> bool {
    let is_try = |rest: &str| rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_prefix(MAKING).is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.').is_some_and(is_try))
}

/// Removes what starts that were cut short have left. The `initdb` of a killed meterd may still write to its directory: what
/// cannot be removed now is removed by a later call.
pub(super) fn remove_leftovers(data_dir: &Path) {
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        if is_making(&entry.file_name().to_string_lossy())
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            info!("{} is left for the next start: {error}", entry.path().display());
        }
    }
}

/// Makes the cluster, in a directory beside and then renamed, so that one cut short is never taken for a whole one. Each try
/// has a directory of its own: the `initdb` of a killed meterd may still be at work in the one before.
pub(super) async fn make(
    layout: &Layout,
    binaries: &Binaries,
    user: &ServerUser,
    durable: bool,
) -> Result<(), EmbeddedError> {
    let cluster = &layout.cluster;
    let making = layout.data_dir.join(format!("{MAKING}.{:016x}", rand::random::<u64>()));
    fs::create_dir(&making).map_err(EmbeddedError::io("make the directory", &making))?;
    user.give(&making)?;
    info!("making a PostgreSQL {} database in {}", binaries.version, cluster.display());

    let mut initdb = user.command(&binaries.dir.join("initdb"));
    initdb
        .arg("--pgdata")
        .arg(&making)
        .args(["--username", NAME, "--encoding=UTF8", "--locale=C"])
        // Whoever gets through the 0700 socket directory is the server's user or root; nobody comes over the network.
        .args(["--auth-local=trust", "--auth-host=reject", "--no-instructions"])
        .kill_on_drop(true);
    if !durable {
        initdb.arg("--no-sync");
    }
    let failed = |output: String| EmbeddedError::InitFailed { cluster: cluster.clone(), output };
    match timeout(INITDB_TIMEOUT, initdb.output()).await {
        Err(_) => {
            return Err(failed(format!("no end after {} s", INITDB_TIMEOUT.as_secs())));
        }
        Ok(Err(error)) => {
            return Err(EmbeddedError::io("run", &binaries.dir.join("initdb"))(error));
        }
        Ok(Ok(output)) if !output.status.success() => {
            let said = [output.stdout, output.stderr].concat();
            return Err(failed(String::from_utf8_lossy(&said).trim().to_owned()));
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
        // Empty, else `made_by` would have refused it.
        fs::remove_dir(cluster).map_err(EmbeddedError::io("remove the empty", cluster))?;
    }
    fs::rename(&making, cluster)
        .and_then(|()| fs::File::open(&layout.data_dir)?.sync_all())
        .map_err(EmbeddedError::io("put in place", cluster))
}

#[cfg(test)]
mod tests {
    use super::is_making;

    #[test]
    fn only_directories_that_a_start_has_made_are_leftovers() {
        for name in ["postgres.init", "postgres.init.0123456789abcdef"] {
            assert!(is_making(name), "{name}");
        }
        for name in
            ["postgres", "postgres.initdb", "postgres.init.bad", "postgres.init.20261127", "postgres.init.d", "x"]
        {
            assert!(!is_making(name), "{name}");
        }
    }
}
