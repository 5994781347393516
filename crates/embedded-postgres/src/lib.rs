//! Runs a private, durable PostgreSQL for meterd, so that `cargo run` needs nothing but this binary.
//!
//! In reading order: [`Embedded`] in this file; `layout` (files and the lock), `owner` (the user of the server),
//! `environment` (the variables that its processes inherit), `data_dir_check` (checks of the data directory), `binaries`,
//! `search_dirs` and `download` (finding the programs), `cluster` (initdb), `launch` (start, take over, wait), `tuning`
//! (settings that follow the machine), `upgrade`
//! (programs that are replaced while the server runs), `process` (pid file and signals), `connection`, `log`, `error`.
//! `existing` is for commands that only read existing data.
//!
//! Invariants:
//! - The server is durable (`fsync`, `full_page_writes` and `synchronous_commit` are on the command line, above any
//!   configuration file), unless a test says otherwise.
//! - Only meterd's user can connect: the server listens on a socket with mode 0700 in a directory with mode 0700.
//! - The server outlives meterd. Dropping an [`Embedded`] releases the lock and leaves the server running, as killing
//!   meterd does. The next start takes it over, or restarts it if its programs were upgraded. Only [`Embedded::stop`]
//!   ends it.
//! - The server is not in meterd's process group, so Ctrl-C reaches only meterd. Use `KillMode=mixed` under systemd for
//!   the same reason.

mod binaries;
mod cluster;
mod connection;
mod data_dir_check;
mod download;
mod environment;
mod error;
mod existing;
mod launch;
mod layout;
mod log;
mod owner;
mod process;
mod search_dirs;
mod tuning;
mod upgrade;

use std::path::{Path, PathBuf};

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use binaries::Binaries;
pub use data_dir_check::{check_settings, is_locked};
pub use error::EmbeddedError;
pub use existing::{is_initialized, sibling_databases};
use launch::Ready;
pub use layout::default_data_dir;
use layout::{Layout, Lock};
use owner::ServerUser;
use process::{PidFile, Postmaster, is_postmaster_of};
use upgrade::Stamp;

/// How to find, create and run the embedded server.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// meterd's data directory, created if it does not exist. See [`default_data_dir`].
    pub data_dir: PathBuf,
    /// The directory of `initdb` and `postgres`. `None` searches the `PATH` and the usual directories for version 15 or
    /// newer.
    pub bin_dir: Option<PathBuf>,
    /// The only source to download from: the URL of one of the two GitHub projects that package PostgreSQL
    /// (`theseus-rs/postgresql-binaries`, `zonkyio/embedded-postgres-binaries`), or the root of a Maven repository that
    /// mirrors the latter. `None` tries the first project and then Maven Central.
    pub download_url: Option<String>,
    /// Whether programs may be downloaded if none are found.
    pub download: bool,
    /// True in production. False disables fsync, for tests.
    pub durable: bool,
}

/// A running PostgreSQL that belongs to this meterd, and the lock of its data directory.
///
/// Dropping it releases the lock and leaves the server running. Call [`stop`](Self::stop) to end both.
#[derive(Debug)]
pub struct Embedded {
    layout: Layout,
    settings: EmbeddedSettings,
    user: ServerUser,
    url: String,
    version: String,
    reattached: bool,
    running: Mutex<Running>,
    _lock: Lock,
}

/// The server that runs now.
#[derive(Debug)]
struct Running {
    postmaster: Postmaster,
    socket_dir: PathBuf,
    version: String,
    /// The directory of its programs, and the stamp of the programs when they were last checked.
    bin_dir: PathBuf,
    stamp: Option<Stamp>,
    checked_at: Instant,
}

impl Running {
    fn new(ready: Ready, bin_dir: PathBuf) -> Self {
        let Ready { postmaster, socket_dir, version } = ready;
        let stamp = Stamp::of(&bin_dir);
        Self { postmaster, socket_dir, version, bin_dir, stamp, checked_at: Instant::now() }
    }
}

impl Embedded {
    /// Takes the lock of the data directory, finds the programs, creates the cluster if there is none, starts the
    /// server or takes over a running one, and creates the database `meterd`.
    ///
    /// Waits up to five minutes for a crash recovery and logs the progress. If cancelled, it may leave a server
    /// running, which the next start takes over.
    ///
    /// # Errors
    /// Any [`EmbeddedError`]. After an error, the lock is free again and the data is unchanged.
    pub async fn start(settings: &EmbeddedSettings) -> Result<Self, EmbeddedError> {
        let (layout, lock) = Layout::claim(&settings.data_dir).await?;
        let user = ServerUser::choose(&layout.cluster)?;
        layout.open_to(&user, &lock)?;
        cluster::remove_leftovers(&layout.data_dir);
        let made_by = cluster::made_by(&layout.cluster)?;
        user.check_reach(&layout.data_dir).await?;
        let binaries = binaries::find(settings, made_by, &user, &layout.cluster).await?;
        if made_by.is_none() {
            cluster::make(&layout, &binaries, &user, settings.durable).await?;
            cluster::remove_leftovers(&layout.data_dir);
        }

        let mut running = launch::find_running(&layout).await?;
        if let Some(ready) = &mut running
            && let Some(reason) = upgrade::restart_reason(ready, &binaries, settings.durable).await?
        {
            warn!("restarting the PostgreSQL that is still running: {reason}");
            ready.postmaster.shut_down(&layout.log).await?;
            running = None;
        }
        let reattached = running.is_some();
        let ready = match running {
            Some(ready) => ready,
            None => launch::start(&layout, &binaries, &user, settings.durable).await?,
        };
        connection::ensure_database(&ready.socket_dir).await?;
        info!(
            "PostgreSQL {} {} as process {} on {}",
            ready.version,
            if reattached { "is still running" } else { "is running" },
            ready.postmaster.pid,
            layout.data_dir.display()
        );
        Ok(Self {
            url: connection::url(&ready.socket_dir, cluster::NAME),
            layout,
            settings: settings.clone(),
            user,
            version: ready.version.clone(),
            reattached,
            running: Mutex::new(Running::new(ready, binaries.dir)),
            _lock: lock,
        })
    }

    /// Returns the database's URL, which does not change. It names the socket directory in `host`, so sqlx and `psql`
    /// can both use it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns meterd's data directory as a canonical path.
    pub fn data_dir(&self) -> &Path {
        &self.layout.data_dir
    }

    /// Returns whether the server was already running when this meterd started.
    pub fn reattached(&self) -> bool {
        self.reattached
    }

    /// Returns the server's version, for example `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Checks that the server runs and can load its libraries. Starts it again if it has died, and restarts it if an
    /// upgrade has replaced its libraries by files that it cannot load. PostgreSQL then recovers the committed data.
    /// Returns whether the server was started; then all earlier connections are broken.
    ///
    /// Cheap while the server runs. A task of meterd calls it every second. That task must end before
    /// [`stop`](Self::stop) is called; otherwise it would start the server again. It may be cancelled and called again.
    ///
    /// # Errors
    /// The server does not start (`StartFailed`, `NotReady`, `Io`), or its programs are missing (`NoBinaries`,
    /// `WrongMajor`). The call may be retried later.
    pub async fn ensure_running(&self) -> Result<bool, EmbeddedError> {
        let mut running = self.running.lock().await;
        if running.postmaster.alive() {
            if running.checked_at.elapsed() < upgrade::CHECK_EVERY {
                return Ok(false);
            }
            running.checked_at = Instant::now();
            return self.check_upgrade(&mut running).await;
        }
        let (pid, ending) = (running.postmaster.pid, running.postmaster.ending());
        warn!("PostgreSQL (process {pid}) stopped unexpectedly ({ending}): restarting it");
        self.start_again(&mut running).await?;
        Ok(true)
    }

    /// Logs replaced programs, and restarts a server that can no longer load its libraries.
    async fn check_upgrade(&self, running: &mut Running) -> Result<bool, EmbeddedError> {
        let stamp = Stamp::of(&running.bin_dir);
        let replaced = running.stamp != stamp;
        running.stamp = stamp;
        let failure = match connection::run_plpgsql(&running.socket_dir).await {
            Err(sqlx::Error::Database(error)) if upgrade::is_load_failure(error.message()) => error,
            // A server that does not answer may be busy, which is not a reason to restart it.
            _ if !replaced => return Ok(false),
            _ => {
                let found = self.find_binaries().await?.version;
                if found != running.version {
                    warn!(
                        "PostgreSQL was upgraded to {found} while {} is running: the running server continues, and the next start \
                         of meterd uses the new version",
                        running.version
                    );
                }
                return Ok(false);
            }
        };
        let found = self.find_binaries().await?.version;
        if found == running.version {
            // The library is missing, so a restarted server would not start either.
            error!("PostgreSQL {found} cannot load a library ({}): repair its installation", failure.message());
            return Ok(false);
        }
        warn!(
            "the files of PostgreSQL {} were replaced while it was running ({}): restarting it with {found}",
            running.version,
            failure.message()
        );
        running.postmaster.shut_down(&self.layout.log).await?;
        self.start_again(running).await?;
        Ok(true)
    }

    async fn start_again(&self, running: &mut Running) -> Result<(), EmbeddedError> {
        // Searched again, because an upgrade may have moved them.
        let binaries = self.find_binaries().await?;
        // A cancelled call of this function, or another process, may have started it already.
        let ready = match launch::find_running(&self.layout).await? {
            Some(ready) => ready,
            None => launch::start(&self.layout, &binaries, &self.user, self.settings.durable).await?,
        };
        info!("PostgreSQL {} is running again as process {}", ready.version, ready.postmaster.pid);
        *running = Running::new(ready, binaries.dir);
        Ok(())
    }

    /// Finds the programs for the existing data.
    async fn find_binaries(&self) -> Result<Binaries, EmbeddedError> {
        let made_by = cluster::made_by(&self.layout.cluster)?;
        binaries::find(&self.settings, made_by, &self.user, &self.layout.cluster).await
    }

    /// Stops the server and frees the data directory. Open transactions are rolled back (PostgreSQL's fast shutdown). A
    /// server that has not stopped after 60 s gets an immediate shutdown, which loses no commit but requires a recovery
    /// at the next start.
    ///
    /// # Errors
    /// `StopTimeout` if the server still runs after that, `Io` if it cannot be signalled.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        self.running.into_inner().postmaster.shut_down(&self.layout.log).await
    }
}

/// Returns the URL of the server that runs on this data directory, or `None` if none runs or answers. For commands that
/// run next to a running meterd. Takes no lock and changes nothing. Needs the rights of meterd's user.
///
/// # Errors
/// `Io` if the directory may not be read.
pub async fn attach(data_dir: &Path) -> Result<Option<String>, EmbeddedError> {
    if !data_dir.exists() {
        return Ok(None);
    }
    let layout = Layout::of(data_dir)?;
    let Some(file) = PidFile::read(&layout.cluster)? else {
        return Ok(None);
    };
    let Some(socket_dir) = file.socket_dir else {
        return Ok(None);
    };
    if !is_postmaster_of(file.pid, &layout.cluster) {
        return Ok(None);
    }
    match connection::ask(&socket_dir, &layout.cluster).await {
        Ok(_) => Ok(Some(connection::url(&socket_dir, cluster::NAME))),
        Err(_) => Ok(None),
    }
}
