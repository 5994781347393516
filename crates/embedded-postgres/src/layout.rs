//! The files in meterd's data directory, and the lock that prevents a second meterd from using it.
//!
//! ```text
//! <data_dir>/              0700; 0710 for the server's group when meterd runs as root
//!   meterd.lock            locked (flock) while a meterd runs; contains its process id
//!   postgres/              PostgreSQL's data directory, 0700
//!   postgres.init.*        a cluster that is being created; removed by a later start if interrupted
//!   postgres/meterd.conf   settings that follow the machine, written by each start
//!   postgres.log           the server's log; postgres.log.1 is the previous one
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

use super::data_dir_check;
use super::error::EmbeddedError;
use super::owner::ServerUser;

/// Maximum length of a socket directory, in bytes. A socket's path has at most 103 bytes on macOS (107 on Linux), and
/// `/.s.PGSQL.5432` is appended to the directory.
const SOCKET_DIR_BYTES_MAX: usize = 88;

/// How long a taken lock is retried. A meterd that is just ending, or a child between fork and exec, releases it within
/// moments.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Returns the data directory that meterd uses without `--data-dir`.
///
/// For root it is `/var/lib/meterd`, because the user that PostgreSQL runs as cannot enter root's home. For other users
/// it is `$XDG_DATA_HOME/meterd`, usually `~/.local/share/meterd`.
pub fn default_data_dir() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/var/lib/meterd");
    }
    let xdg = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::home_dir().map(|home| home.join(".local/share"));
    xdg.or_else(home).unwrap_or_default().join("meterd")
}

/// The paths in a data directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) data_dir: PathBuf,
    /// PostgreSQL's data directory.
    pub(super) cluster: PathBuf,
    pub(super) log: PathBuf,
}

impl Layout {
    /// Returns the layout of an existing directory. The path is made canonical, because it is compared with the path
    /// that the server reports.
    pub(super) fn of(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = data_dir.canonicalize().map_err(EmbeddedError::io("open the data directory", data_dir))?;
        Ok(Self { cluster: data_dir.join("postgres"), log: data_dir.join("postgres.log"), data_dir })
    }

    /// Creates the directory if it does not exist, and takes its lock.
    pub(super) async fn claim(data_dir: &Path) -> Result<(Self, Lock), EmbeddedError> {
        make_dir(data_dir)?;
        let layout = Self::of(data_dir)?;
        let fresh =
            fs::read_dir(&layout.data_dir).map_err(data_dir_check::denied("read", &layout.data_dir))?.next().is_none();
        let path = layout.data_dir.join("meterd.lock");
        let ours = fresh || path.exists();
        let lock = Lock::take(&layout.data_dir, path, ours).await?;
        Ok((layout, lock))
    }

    /// Lets the server's user pass through the data directory. Only a directory that belongs to meterd is changed. For
    /// another directory, a later check reports what is closed.
    pub(super) fn open_to(&self, user: &ServerUser, lock: &Lock) -> Result<(), EmbeddedError> {
        if !user.drops_root() || !lock.ours {
            return Ok(());
        }
        let dir = &self.data_dir;
        let at = fs::metadata(dir).map_err(EmbeddedError::io("read the owner and mode of", dir))?;
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

    /// Returns the directory for the server's socket. It is in the data directory, or in `/tmp` if that path is too
    /// long for a socket or contains a comma, which separates directories in PostgreSQL's setting. It is always the
    /// same for the same data.
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

    /// Creates the socket directory with mode 0700 and the server's user as owner. This is the only authentication. In
    /// `/tmp` another user could have created it before, so an existing directory is checked.
    pub(super) fn make_socket_dir(&self, user: &ServerUser) -> Result<PathBuf, EmbeddedError> {
        let dir = self.socket_dir();
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => user.give(&dir)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(EmbeddedError::io("create the socket directory", &dir)(error)),
        }
        let at = fs::symlink_metadata(&dir).map_err(EmbeddedError::io("read the owner and mode of", &dir))?;
        if at.is_dir() && at.uid() == geteuid().as_raw() && user.drops_root() {
            // An earlier start was killed between the two steps above.
            user.give(&dir)?;
        }
        let at = fs::symlink_metadata(&dir).map_err(EmbeddedError::io("read the owner and mode of", &dir))?;
        if !at.is_dir() || at.uid() != user.uid() || at.mode() & 0o077 != 0 {
            return Err(EmbeddedError::SocketDir { dir, owner: user.uid(), limit: SOCKET_DIR_BYTES_MAX });
        }
        Ok(dir)
    }
}

/// The exclusive right to use a data directory. It is released when dropped or when the process ends in any way: the
/// lock belongs to an open file, which the standard library closes on exec, so the postmaster does not inherit it.
#[derive(Debug)]
pub(super) struct Lock {
    /// Whether the directory was empty or already belonged to meterd.
    ours: bool,
    _file: File,
}

impl Lock {
    async fn take(data_dir: &Path, path: PathBuf, ours: bool) -> Result<Self, EmbeddedError> {
        let mut file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(&path).map_err(
                |error| match path.exists() {
                    true => data_dir_check::denied("write", &path)(error),
                    false => data_dir_check::denied("write to", data_dir)(error),
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

/// Creates a directory with mode 0700, and missing parents with mode 0755 regardless of the umask, because the server's
/// user must pass through them.
pub(super) fn make_dir(dir: &Path) -> Result<(), EmbeddedError> {
    if dir.exists() {
        return Ok(());
    }
    let absolute = std::path::absolute(dir).map_err(EmbeddedError::io("find the absolute path of", dir))?;
    if let Some(parent) = absolute.parent().filter(|parent| !parent.exists()) {
        make_dir(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755))
            .map_err(EmbeddedError::io("change the mode of", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(&absolute) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(data_dir_check::denied("create the directory", &absolute)(error))
        }
        _ => Ok(()),
    }
}
