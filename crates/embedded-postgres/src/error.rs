//! Errors of the embedded server. Each message says how to fix the problem, because the reader ran a single command and
//! does not know how the server works.

use std::io;
use std::path::{Path, PathBuf};

/// Why the embedded server could not be found, created, started, reached or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another meterd holds the lock of the data directory.
    #[error(
        "another meterd{} already uses the data directory {}: stop it, or choose another directory with --data-dir",
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default(), data_dir.display()
    )]
    Locked {
        /// The locked directory.
        data_dir: PathBuf,
        /// The process id of the other meterd, if its lock file contains it.
        holder: Option<u32>,
    },

    /// A file or process operation failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },

    /// The data directory, or a part of its path, is not a directory.
    #[error("--data-dir {}: {} is not a directory: choose another --data-dir", data_dir.display(), path.display())]
    NotADirectory {
        /// The data directory.
        data_dir: PathBuf,
        /// The file on its path.
        path: PathBuf,
    },

    /// The directory belongs to another user.
    #[error(
        "{} belongs to user id {owner}, but PostgreSQL would run as user id {ours}: run meterd as user id {owner}, change the owner with `chown -R`, or choose another --data-dir",
        path.display()
    )]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user id that the server would run as.
        ours: u32,
    },

    /// The directory or a file in it belongs to this user, but its mode does not allow access.
    #[error(
        "meterd has no permission to {needed} {}, although it runs as the owner (user id {ours}): the mode is {mode:04o}. {}, or choose another --data-dir",
        path.display(),
        if mode & 0o700 == 0o700 {
            "The mode allows it, so check access lists (`getfacl`), flags (`lsattr`) and the options of the mounted file system".to_owned()
        } else {
            format!("Add the permission with `chmod u+rwX {}`", path.display())
        }
    )]
    Closed {
        /// The directory or file.
        path: PathBuf,
        /// The operation, as a verb.
        needed: &'static str,
        /// Its mode.
        mode: u32,
        /// The user id of meterd, which owns it.
        ours: u32,
    },

    /// The data directory does not exist and meterd may not create it.
    #[error(
        "the data directory {} does not exist, and user id {ours} may not create it in {} (owner: user id {owner}, mode {mode:04o}): \
         create it as root with `install -d -o {ours} -m 700 {}`, or choose another --data-dir",
        path.display(), parent.display(), path.display()
    )]
    ClosedParent {
        /// The missing directory.
        path: PathBuf,
        /// The nearest existing directory above it.
        parent: PathBuf,
        /// The owner of `parent`.
        owner: u32,
        /// The mode of `parent`.
        mode: u32,
        /// The user id of meterd.
        ours: u32,
    },

    /// meterd runs as root, and there is no user to run PostgreSQL as.
    #[error(
        "PostgreSQL refuses to run as root, and neither of the users `postgres` and `nobody` exists: create one (`useradd --system postgres`), run meterd as an ordinary user, or set DATABASE_URL"
    )]
    NoServerUser,

    /// The user that PostgreSQL runs as cannot enter a directory.
    #[error(
        "PostgreSQL refuses to run as root, so meterd runs it as user `{user}`, who has no access to {}{}: choose another directory with --data-dir, for example {}",
        path.display(),
        blocker.as_ref().map(|dir| format!(" because {} is closed to other users", dir.display())).unwrap_or_default(),
        super::default_data_dir().display()
    )]
    Unreachable {
        /// The user's name.
        user: String,
        /// The path that it must reach.
        path: PathBuf,
        /// The first closed directory on the path, if the mode bits show one.
        blocker: Option<PathBuf>,
    },

    /// `--postgres-bin-dir` does not contain a usable PostgreSQL.
    #[error(
        "--postgres-bin-dir {} contains no usable PostgreSQL: {reason}. Set it to the directory that contains `initdb` and `postgres` (`pg_config --bindir` prints it)",
        dir.display()
    )]
    BadBinDir {
        /// The setting.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// No PostgreSQL was found or downloaded.
    #[error(
        "no PostgreSQL {} or newer was found. {}, or set --postgres-bin-dir to the directory that contains `initdb` and `postgres`, or set DATABASE_URL to use your own server. {details}",
        super::binaries::MAJOR_MIN,
        install_hint(None)
    )]
    NoBinaries {
        /// The programs that were found but cannot be used, with the reasons, and the result of the download.
        details: String,
    },

    /// The data was written by a major version that is not installed.
    #[error(
        "the data in {} was written by PostgreSQL {made_by}, but {found}. {}, or set --postgres-bin-dir to its directory, or move the data to the newer version with pg_upgrade. {details}",
        cluster.display(), install_hint(Some(*made_by))
    )]
    WrongMajor {
        /// PostgreSQL's data directory.
        cluster: PathBuf,
        /// The major version in its `PG_VERSION`.
        made_by: u32,
        /// The versions that were found.
        found: String,
        /// The result of the download, if there was one.
        details: String,
    },

    /// The data was written by a version that meterd does not support.
    #[error(
        "the data in {} was written by PostgreSQL {made_by}, but meterd needs {} or newer: move the data to a newer version with pg_upgrade, or choose another --data-dir",
        cluster.display(), super::binaries::MAJOR_MIN
    )]
    DataTooOld {
        /// PostgreSQL's data directory.
        cluster: PathBuf,
        /// The major version in its `PG_VERSION`.
        made_by: u32,
    },

    /// PostgreSQL's data directory contains something else.
    #[error(
        "{} is not empty and contains no PostgreSQL data (no file PG_VERSION): move it away, or choose another --data-dir",
        cluster.display()
    )]
    NotACluster {
        /// The directory.
        cluster: PathBuf,
    },

    /// The socket directory cannot be used.
    #[error(
        "the socket directory {} is not a private directory of user id {owner}: remove it, or choose a shorter --data-dir (at most {limit} bytes)",
        dir.display()
    )]
    SocketDir {
        /// The directory.
        dir: PathBuf,
        /// The user id that must own it.
        owner: u32,
        /// The maximum length of a socket directory in the data directory, in bytes.
        limit: usize,
    },

    /// `initdb` failed.
    #[error("initdb could not create a database in {}:\n{output}", cluster.display())]
    InitFailed {
        /// PostgreSQL's data directory.
        cluster: PathBuf,
        /// The output of `initdb`.
        output: String,
    },

    /// The server ended instead of starting.
    #[error("PostgreSQL did not start ({reason}). The end of {}:\n{log_tail}", log.display())]
    StartFailed {
        /// How it ended.
        reason: String,
        /// The path of the log.
        log: PathBuf,
        /// The last lines of the log.
        log_tail: String,
    },

    /// The server runs but does not accept connections in time.
    #[error(
        "PostgreSQL (process {pid}) runs but accepts no connection after {waited_s} s ({last}). It keeps running, because a crash recovery can take long; start meterd again to wait for it. The end of {}:\n{log_tail}",
        log.display()
    )]
    NotReady {
        /// Process id of the postmaster.
        pid: i32,
        /// How long meterd waited, in seconds.
        waited_s: u64,
        /// The last answer of the server.
        last: String,
        /// The path of the log.
        log: PathBuf,
        /// The last lines of the log.
        log_tail: String,
    },

    /// The server did not stop.
    #[error(
        "PostgreSQL (process {pid}) still runs {waited_s} s after meterd requested its stop; committed data is safe. See {}",
        log.display()
    )]
    StopTimeout {
        /// Process id of the postmaster.
        pid: i32,
        /// How long meterd waited, in seconds.
        waited_s: u64,
        /// The path of the log.
        log: PathBuf,
    },

    /// A statement that prepares the database failed.
    #[error("cannot prepare the embedded database")]
    Database(#[from] sqlx::Error),
}

impl EmbeddedError {
    /// For `map_err`: an operation on a path failed.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Returns a sentence that says how to install PostgreSQL, without the full stop.
fn install_hint(major: Option<u32>) -> String {
    let dashed = major.map(|major| format!("-{major}")).unwrap_or_default();
    if cfg!(target_os = "macos") {
        format!("Install it (`brew install postgresql@{}`)", major.unwrap_or(17))
    } else {
        format!(
            "Install it (`apt install postgresql{dashed}`, `dnf install postgresql-server`, `apk add postgresql{}`)",
            major.unwrap_or(17)
        )
    }
}
