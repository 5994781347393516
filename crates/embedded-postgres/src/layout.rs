//! What lies where in meterd's data directory, and the lock that keeps a second meterd out.
//!
//! ```text
//! <data_dir>/              0700; 0710 for the server's group when meterd runs as root
//!   meterd.lock            held (flock) while a meterd lives, with its process id
//!   postgres/              PostgreSQL's own directory, 0700
//!   postgres.init.*        one that is being made; removed by a later start if that was cut short
//!   postgres.log           what the server says; postgres.log.1 is the one before
//!   run/                   the socket directory, 0700 (in /tmp when this path is too long for a socket)
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;
use super::owner::ServerUser;
use super::place;

/// The longest socket directory, in bytes. A socket's path has at most 103 bytes on macOS (107 on Linux), and
/// `/.s.PGSQL.5432` follows the directory.
const SOCKET_DIR_BYTES_MAX: usize = 88;

/// How long a taken lock is tried again: a meterd that is just ending, or a child between fork and exec, lets go within
/// moments.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Where meterd keeps its data when no `--data-dir` says otherwise.
///
/// Root's home is closed to the user that PostgreSQL runs as, hence `/var/lib/meterd` for root. Anybody else gets
/// `$XDG_DATA_HOME/meterd`, usually `~/.local/share/meterd`.
pub fn default_data_dir() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/var/lib/meterd");
    }
    let xdg = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::home_dir().map(|home| home.join(".local/share"));
    xdg.or_else(home).unwrap_or_default().join("meterd")
}

/// The paths in one data directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) data_dir: PathBuf,
    /// PostgreSQL's own directory.
    pub(super) cluster: PathBuf,
    pub(super) log: PathBuf,
}

impl Layout {
    /// The layout of an existing directory. The path is made canonical: it is compared with what the server reports.
    pub(super) fn of(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = data_dir.canonicalize().map_err(EmbeddedError::io("open the data directory", data_dir))?;
        Ok(Self { cluster: data_dir.join("postgres"), log: data_dir.join("postgres.log"), data_dir })
    }

    /// Makes the directory where it is missing, and takes its lock.
    pub(super) async fn claim(data_dir: &Path) -> Result<(Self, Lock), EmbeddedError> {
        make_dir(data_dir)?;
        let layout = Self::of(data_dir)?;
        let fresh = fs::read_dir(&layout.data_dir).map_err(place::denied("read", &layout.data_dir))?.next().is_none();
        let path = layout.data_dir.join("meterd.lock");
        let ours = fresh || path.exists();
        let lock = Lock::take(&layout.data_dir, path, ours).await?;
        Ok((layout, lock))
    }

    /// Lets the server's user pass through the data directory. Only a directory that is meterd's own is changed; another
    /// one is left alone, and a later probe tells what is closed.
    pub(super) fn open_to(&self, user: &ServerUser, lock: &Lock) -> Result<(), EmbeddedError> {
        if !user.drops_root() || !lock.ours {
            return Ok(());
        }
        let dir = &self.data_dir;
        let at = fs::metadata(dir).map_err(EmbeddedError::io("look at", dir))?;
        let passable = at.mode() & 0o001 != 0
            || (at.gid() == user.gid() && at.mode() & 0o010 != 0)
            || (at.uid() == user.uid() && at.mode() & 0o100 != 0);
        if passable {
            return Ok(());
        }
        chown(dir, None, Some(user.gid())).map_err(EmbeddedError::io("change the group of", dir))?;
        let mode = (at.mode() & 0o7700) | 0o010;
        fs::set_permissions(dir, Permissions::from_mode(mode)).map_err(EmbeddedError::io("change the mode of", dir))
    }

    /// The directory for the server's socket: beside the data, or in `/tmp` when that path is too long for a socket (or
    /// holds a comma, which separates directories in PostgreSQL's setting). Always the same for the same data.
    pub(super) fn socket_dir(&self) -> PathBuf {
        let beside = self.data_dir.join("run");
        let text = beside.to_str().unwrap_or(",");
        if text.len() <= SOCKET_DIR_BYTES_MAX && !text.contains([',', '"', '\n']) {
            return beside;
        }
        let digest = Sha256::digest(self.data_dir.as_os_str().as_encoded_bytes());
        let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        PathBuf::from(format!("/tmp/meterd-{name}"))
    }

    /// Makes the socket directory: 0700 and the server's user's, which is all the authentication there is. In `/tmp`
    /// anybody could have made it first, so an existing one is checked, not trusted.
    pub(super) fn make_socket_dir(&self, user: &ServerUser) -> Result<PathBuf, EmbeddedError> {
        let dir = self.socket_dir();
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => user.give(&dir)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(EmbeddedError::io("make the socket directory", &dir)(error)),
        }
        let at = fs::symlink_metadata(&dir).map_err(EmbeddedError::io("look at", &dir))?;
        if at.is_dir() && at.uid() == geteuid().as_raw() && user.drops_root() {
            // Left by a start that was cut between the two steps above.
            user.give(&dir)?;
        }
        let at = fs::symlink_metadata(&dir).map_err(EmbeddedError::io("look at", &dir))?;
        if !at.is_dir() || at.uid() != user.uid() || at.mode() & 0o077 != 0 {
            return Err(EmbeddedError::SocketDir { dir, owner: user.uid(), limit: SOCKET_DIR_BYTES_MAX });
        }
        Ok(dir)
    }
}

/// The exclusive right to a data directory, let go when dropped or when the process ends in any way: the lock hangs on
/// an open file, which the standard library closes on exec, so the postmaster does not inherit it.
#[derive(Debug)]
pub(super) struct Lock {
    /// Whether the directory was empty or already meterd's.
    ours: bool,
    _file: File,
}

impl Lock {
    async fn take(data_dir: &Path, path: PathBuf, ours: bool) -> Result<Self, EmbeddedError> {
        let mut file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(&path).map_err(
                |error| match path.exists() {
                    true => place::denied("write", &path)(error),
                    false => place::denied("write to", data_dir)(error),
                },
            )?;
        let give_up = Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => {
                    return Err(EmbeddedError::io("lock", &path)(error));
                }
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                    sleep(Duration::from_millis(50)).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    return Err(EmbeddedError::Locked {
                        data_dir: data_dir.to_owned(),
                        holder: holder.trim().parse().ok(),
                    });
                }
            }
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(EmbeddedError::io("write", &path))?;
        Ok(Self { ours, _file: file })
    }
}

/// Makes a directory, 0700, and what is missing above it, 0755 whatever the umask: the server's user must get through.
pub(super) fn make_dir(dir: &Path) -> Result<(), EmbeddedError> {
    if dir.exists() {
        return Ok(());
    }
    let absolute = std::path::absolute(dir).map_err(EmbeddedError::io("find", dir))?;
    if let Some(parent) = absolute.parent().filter(|parent| !parent.exists()) {
        make_dir(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755))
            .map_err(EmbeddedError::io("change the mode of", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(&absolute) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(place::denied("make the directory", &absolute)(error))
        }
        _ => Ok(()),
    }
}
