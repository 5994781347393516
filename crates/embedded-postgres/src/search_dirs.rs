//! The usual directories of PostgreSQL's programs.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::time::timeout;

use super::binaries::PROBE_TIMEOUT;
use super::download;
use super::environment;

/// Directories of numbered installations: the parent, the prefix of a child's name before the version, and the path
/// below the child. The highest version comes first.
const NUMBERED: [(&str, &str, &str); 9] = [
    ("/usr/lib/postgresql", "", "bin"), // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),          // packages of postgresql.org for Red Hat
    ("/usr/libexec", "postgresql", ""), // Alpine
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
    ("/opt/local/lib", "postgresql", "bin"), // MacPorts
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ("/Library/PostgreSQL", "", "bin"), // the installer of EDB
];

/// Directories without a version in their name.
const PLAIN: [&str; 5] =
    ["/opt/homebrew/bin", "/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin", "/usr/local/pgsql/bin", "/usr/bin"];

/// Returns every directory to check, best first, without duplicates.
pub(super) async fn candidates() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for dir in std::env::split_paths(&path).filter(|dir| dir.is_absolute()) {
        if dir.join("initdb").exists() || dir.join("pg_config").exists() {
            found.push(resolve(&dir).await);
        }
    }
    for (parent, prefix, below) in NUMBERED {
        found.extend(numbered(Path::new(parent), prefix, below));
    }
    found.extend(PLAIN.map(PathBuf::from));
    found.extend(numbered(&download::install_dir(), "", "bin"));

    let mut unique: Vec<PathBuf> = Vec::new();
    for dir in found.into_iter().filter(|dir| dir.join("initdb").exists()) {
        let dir = dir.canonicalize().unwrap_or(dir);
        if !unique.contains(&dir) {
            unique.push(dir);
        }
    }
    unique
}

/// Returns the directory that really contains the programs of `dir`: the target of the link `initdb`, or the output of
/// `pg_config`. Debian has links or wrappers on the `PATH`, and `postgres` in another directory.
pub(super) async fn resolve(dir: &Path) -> PathBuf {
    let behind_link = dir.join("initdb").canonicalize().ok().and_then(|initdb| Some(initdb.parent()?.to_owned()));
    if let Some(found) = behind_link.filter(|dir| dir.join("postgres").exists()) {
        return found;
    }
    let mut pg_config = Command::new(dir.join("pg_config"));
    pg_config.arg("--bindir").kill_on_drop(true);
    environment::reduce(pg_config.as_std_mut());
    match timeout(PROBE_TIMEOUT, pg_config.output()).await {
        Ok(Ok(output)) if output.status.success() => PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()),
        _ => dir.to_owned(),
    }
}

/// Returns the children of `parent` whose name is `prefix` and a version, highest version first, each with `below`
/// appended.
fn numbered(parent: &Path, prefix: &str, below: &str) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?;
            let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
            Some((parts?, entry.path().join(below)))
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    found.into_iter().map(|(_, dir)| dir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_several_versions_comes_first() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["postgresql@9", "postgresql@15", "postgresql@16.2", "postgresql@x", "other"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let found = numbered(parent.path(), "postgresql@", "bin");
        let names: Vec<_> = found.iter().map(|dir| dir.strip_prefix(parent.path()).unwrap()).collect();
        assert_eq!(names, ["postgresql@16.2/bin", "postgresql@15/bin", "postgresql@9/bin"].map(Path::new));
    }
}
