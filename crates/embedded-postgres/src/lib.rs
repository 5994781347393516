//! The embedded server's life: `cargo run` with nothing but this binary gets a private, durable PostgreSQL.
//!
//! In reading order: [`Embedded`] here; `layout` (what lies where, the lock), `owner` (who the server runs as),
//! `environment` (what its processes inherit), `place` (whether the directory will do),
//! `binaries`, `places` and `download` (where its programs come from), `cluster` (initdb), `launch` (start, reattach, wait),
//! `upgrade` (programs that are replaced while the server runs), `process` (pid file and signals), `connection`, `log`, `error`.
//! `made` tells commands that only read what is there.
//!
//! What holds whatever happens:
//! - The server is durable (`fsync`, `full_page_writes` and `synchronous_commit` are on the command line, above any
//!   configuration file), unless a test says otherwise.
//! - Nobody else gets in: it listens on a socket in a 0700 directory only, with socket mode 0700.
//! - It outlives meterd. Dropping an [`Embedded`] lets go of the lock and leaves the server running, as a killed meterd
//!   does; the next start takes it over, or restarts it if its programs were upgraded. Only [`Embedded::stop`] ends it.
//! - It is not in meterd's process group, so Ctrl-C reaches meterd alone. Under systemd use `KillMode=mixed` for the
//!   same reason.

mod binaries;
mod cluster;
mod connection;
mod download;
mod environment;
mod error;
mod launch;
mod layout;
mod log;
mod made;
mod owner;
mod place;
mod places;
mod process;
mod upgrade;

use std::path::{Path, PathBuf};

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use binaries::Binaries;
pub use error::EmbeddedError;
use launch::Ready;
pub use layout::default_data_dir;
use layout::{Layout, Lock};
pub use made::{is_made, made_beside};
use owner::ServerUser;
pub use place::{check_place, is_locked};
use process::{PidFile, Postmaster, is_postmaster_of};
use upgrade::Stamp;

/// How the embedded server is found, made and run.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// meterd's data directory; made when missing. See [`default_data_dir`].
    pub data_dir: PathBuf,
    /// The directory of `initdb` and `postgres`. `None` searches the `PATH` and the usual places for version 15 or newer.
    pub bin_dir: Option<PathBuf>,
    /// The only place to download from: the URL of one of the two GitHub projects that package PostgreSQL
    /// (`theseus-rs/postgresql-binaries`, `zonkyio/embedded-postgres-binaries`), or the root of a Maven repository that
    /// mirrors the latter. `None` tries the first and then Maven Central.
    pub download_url: Option<String>,
    /// Whether programs may be downloaded when none are found.
    pub download: bool,
    /// True in production. False turns fsync off, for tests.
    pub durable: bool,
}

/// A running PostgreSQL that belongs to this meterd, with the lock on its data directory.
///
/// Dropping it lets go of the lock and leaves the server running; call [`stop`](Self::stop) to end both.
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
    /// Of its programs, and their stamp when they were looked at last.
    bin_dir: PathBuf,
    stamp: Option<Stamp>,
    looked_at: Instant,
}

impl Running {
    fn new(ready: Ready, bin_dir: PathBuf) -> Self {
        let Ready { postmaster, socket_dir, version } = ready;
        let stamp = Stamp::of(&bin_dir);
        Self { postmaster, socket_dir, version, bin_dir, stamp, looked_at: Instant::now() }
    }
}

impl Embedded {
    /// Takes the data directory's lock, finds the programs, makes the cluster when there is none, starts the server or
    /// takes over the one that an earlier meterd left running, and creates the database `meterd`.
    ///
    /// Waits up to five minutes for a crash recovery, and says so in the log. Cancelled halfway it may leave a server
    /// running, which the next start takes over.
    ///
    /// # Errors
    /// Any [`EmbeddedError`]. After one, the lock is free again and no data is touched.
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
            warn!("restarting the PostgreSQL that still runs: {reason}");
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
            if reattached { "still runs" } else { "runs" },
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

    /// The database's URL, the same for the whole life of this value. It names the socket directory in `host`, so sqlx
    /// and `psql` both take it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// meterd's data directory, as a canonical path.
    pub fn data_dir(&self) -> &Path {
        &self.layout.data_dir
    }

    /// Whether the server was already running when this meterd started.
    pub fn reattached(&self) -> bool {
        self.reattached
    }

    /// The server's version, for example `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Looks whether the server still runs and can load its libraries. Starts it again if it has died, and restarts it if an
    /// upgrade has replaced its libraries by files that it cannot load. PostgreSQL then recovers what was committed. Returns
    /// whether it was started: every connection from before is broken then.
    ///
    /// Cheap while the server runs. A task of meterd calls it every second; that task must have ended before
    /// [`stop`](Self::stop), or it would undo it. May be cancelled and called again.
    ///
    /// # Errors
    /// The server does not start: `StartFailed`, `NotReady`, `Io`, or its programs are gone: `NoBinaries`, `WrongMajor`.
    /// Trying again later is all right.
    pub async fn ensure_running(&self) -> Result<bool, EmbeddedError> {
        let mut running = self.running.lock().await;
        if running.postmaster.alive() {
            if running.looked_at.elapsed() < upgrade::LOOK_EVERY {
                return Ok(false);
            }
            running.looked_at = Instant::now();
            return self.look_after(&mut running).await;
        }
        let (pid, ending) = (running.postmaster.pid, running.postmaster.ending());
        warn!("PostgreSQL (process {pid}) has died ({ending}): starting it again");
        self.start_again(&mut running).await?;
        Ok(true)
    }

    /// Reports programs that were replaced, and restarts a server that cannot load its libraries any more.
    async fn look_after(&self, running: &mut Running) -> Result<bool, EmbeddedError> {
        let stamp = Stamp::of(&running.bin_dir);
        let replaced = running.stamp != stamp;
        running.stamp = stamp;
        let failure = match connection::run_plpgsql(&running.socket_dir).await {
            Err(sqlx::Error::Database(error)) if upgrade::is_load_failure(error.message()) => error,
            // One that does not answer may be busy, and is no reason to end it.
            _ if !replaced => return Ok(false),
            _ => {
                let found = self.find_binaries().await?.version;
                if found != running.version {
                    warn!(
                        "PostgreSQL was upgraded to {found} while {} runs: it goes on as it is, and the next start of meterd \
                         uses the new version",
                        running.version
                    );
                }
                return Ok(false);
            }
        };
        let found = self.find_binaries().await?.version;
        if found == running.version {
            // Its library is gone: without it the server would not even start.
            error!("PostgreSQL {found} cannot load a library ({}): repair its installation", failure.message());
            return Ok(false);
        }
        warn!(
            "the files of PostgreSQL {} were replaced while it runs ({}): restarting it with {found}",
            running.version,
            failure.message()
        );
        running.postmaster.shut_down(&self.layout.log).await?;
        self.start_again(running).await?;
        Ok(true)
    }

    async fn start_again(&self, running: &mut Running) -> Result<(), EmbeddedError> {
        // Looked for again: an upgrade may have moved them.
        let binaries = self.find_binaries().await?;
        // Somebody else, or a call of this that was cancelled, may have started it already.
        let ready = match launch::find_running(&self.layout).await? {
            Some(ready) => ready,
            None => launch::start(&self.layout, &binaries, &self.user, self.settings.durable).await?,
        };
        info!("PostgreSQL {} runs again as process {}", ready.version, ready.postmaster.pid);
        *running = Running::new(ready, binaries.dir);
        Ok(())
    }

    /// The programs for the data as it is.
    async fn find_binaries(&self) -> Result<Binaries, EmbeddedError> {
        let made_by = cluster::made_by(&self.layout.cluster)?;
        binaries::find(&self.settings, made_by, &self.user, &self.layout.cluster).await
    }

    /// Shuts the server down and frees the data directory. Open transactions are rolled back (PostgreSQL's fast
    /// shutdown). A server that has not ended after 60 s is told to quit at once, which loses no commit and costs a
    /// recovery at the next start.
    ///
    /// # Errors
    /// `StopTimeout` when it runs even then, `Io` when it cannot be signalled.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        self.running.into_inner().postmaster.shut_down(&self.layout.log).await
    }
}

/// The URL of the server that runs on this data directory, `None` when none runs or answers: for commands beside a
/// running meterd. Takes no lock and changes nothing. Needs the rights of meterd's user.
///
/// # Errors
/// `Io` when the directory may not be read.
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
