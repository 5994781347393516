//! Finds PostgreSQL's programs: in the directory of the setting, on the `PATH`, in the usual directories, or by
//! downloading them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::EmbeddedSettings;
use super::download;
use super::error::EmbeddedError;
use super::owner::ServerUser;
use super::search_dirs;

/// The oldest major version that meterd supports.
pub(super) const MAJOR_MIN: u32 = 15;

/// Maximum time for `postgres --version` or `pg_config --bindir`.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A directory with an `initdb` and a `postgres` that run on this machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    /// As PostgreSQL formats it: `15.18`.
    pub(super) version: String,
    pub(super) major: u32,
}

/// Finds programs of the major version `wanted`, which created the data, or of version 15 or newer for new data.
pub(super) async fn find(
    settings: &EmbeddedSettings,
    wanted: Option<u32>,
    user: &ServerUser,
    cluster: &Path,
) -> Result<Binaries, EmbeddedError> {
    if let Some(made_by) = wanted.filter(|major| *major < MAJOR_MIN) {
        return Err(EmbeddedError::DataTooOld { cluster: cluster.to_owned(), made_by });
    }
    let wrong_major = |made_by: u32, found: String, details: String| EmbeddedError::WrongMajor {
        cluster: cluster.to_owned(),
        made_by,
        found,
        details,
    };
    if let Some(dir) = &settings.bin_dir {
        let bad = |reason| EmbeddedError::BadBinDir { dir: dir.clone(), reason };
        let found = probe(&search_dirs::resolve(dir).await, user).await.map_err(bad)?;
        return match wanted {
            Some(made_by) if made_by != found.major => {
                let found = format!("--postgres-bin-dir is PostgreSQL {}", found.version);
                Err(wrong_major(made_by, found, String::new()))
            }
            _ if found.major < MAJOR_MIN => Err(bad(too_old(&found))),
            _ => Ok(found),
        };
    }

    let mut refused = Vec::new();
    let mut others = Vec::new();
    for dir in search_dirs::candidates().await {
        match probe(&dir, user).await {
            Ok(found) if found.major < MAJOR_MIN => refused.push(too_old(&found)),
            Ok(found) if wanted.is_some_and(|major| major != found.major) => {
                others.push(format!("{} in {}", found.version, found.dir.display()));
            }
            Ok(found) => return Ok(found),
            Err(reason) => refused.push(reason),
        }
    }

    let download = if settings.download {
        match download::fetch(settings.download_url.as_deref(), wanted).await {
            Ok(dir) => match probe(&dir, user).await {
                Ok(found) => return Ok(found),
                Err(reason) => format!("The downloaded PostgreSQL does not run: {reason}"),
            },
            Err(reason) => format!("Downloading it failed: {reason}"),
        }
    } else {
        "Downloading it is disabled.".to_owned()
    };
    let mut details = download;
    if !refused.is_empty() {
        details = format!("{details} Not usable: {}.", refused.join("; "));
    }
    Err(match wanted {
        Some(made_by) if others.is_empty() => wrong_major(made_by, "no PostgreSQL was found".to_owned(), details),
        Some(made_by) => {
            let found = format!("only PostgreSQL {} was found", others.join(", "));
            wrong_major(made_by, found, details)
        }
        None => EmbeddedError::NoBinaries { details },
    })
}

/// Runs `postgres --version` as the server's user. This checks that the programs exist, that this user can reach them,
/// and that they run.
async fn probe(dir: &Path, user: &ServerUser) -> Result<Binaries, String> {
    for name in ["initdb", "postgres"] {
        if !dir.join(name).exists() {
            return Err(format!("{} is missing", dir.join(name).display()));
        }
    }
    let program = dir.join("postgres");
    let mut command = user.command(&program);
    command.arg("--version").kill_on_drop(true);
    let output = match timeout(PROBE_TIMEOUT, command.output()).await {
        Err(_) => return Err(format!("{} does not answer", program.display())),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(user.unreachable(&program).to_string());
        }
        Ok(Err(error)) => return Err(format!("{} does not run: {error}", program.display())),
        Ok(Ok(output)) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).map(|(version, major)| Binaries { dir: dir.to_owned(), version, major }).ok_or_else(|| {
        let error_of = String::from_utf8_lossy(&output.stderr);
        format!("{} printed no version: {}", program.display(), error_of.trim())
    })
}

/// Parses `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` to 15.18 and the major version 15.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version.to_owned(), version[..digits].parse().ok()?))
}

fn too_old(found: &Binaries) -> String {
    format!(
        "{} is PostgreSQL {}, but meterd needs {MAJOR_MIN} or newer",
        found.dir.join(OsStr::new("postgres")).display(),
        found.version
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_parsed_from_the_output_of_postgres() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse_version(debian), Some(("15.18".to_owned(), 15)));
        assert_eq!(parse_version("postgres (PostgreSQL) 19beta1\n"), Some(("19beta1".to_owned(), 19)));
        assert_eq!(parse_version("pyenv: postgres: command not found"), None);
    }
}
