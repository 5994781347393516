//! What can go wrong with the embedded server. Each message tells the way out, because whoever reads it has just typed
//! one command and knows nothing of the machinery below.

use std::io;
use std::path::{Path, PathBuf};

/// Why the embedded server could not be found, made, started, reached or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another meterd holds the data directory's lock.
    #[error(
        "another meterd{} already uses the data directory {}: stop it, or give this one a directory of its own with --data-dir",
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default(), data_dir.display()
    )]
    Locked {
        /// The contested directory.
        data_dir: PathBuf,
        /// The holder's process id, when its lock file tells it.
        holder: Option<u32>,
    },

    /// A file or process operation failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },

    /// The directory belongs to somebody else.
    #[error(
        "{} belongs to user id {owner}, and this is user id {ours}: run meterd as that user, hand it over with `chown -R`, or choose another --data-dir",
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

    /// The directory, or what is in it, is ours and closed to us.
    #[error(
        "meterd may not {needed} {} although user id {ours} owns it: its mode is {mode:04o}. {}, or choose another --data-dir",
        path.display(),
        if mode & 0o700 == 0o700 {
            "The mode allows it, so look for access lists (`getfacl`), flags (`lsattr`) and how the file system is mounted".to_owned()
        } else {
            format!("Give the right back with `chmod u+rwX {}`", path.display())
        }
    )]
    Closed {
        /// The directory or file.
        path: PathBuf,
        /// What was to be done with it, as a verb.
        needed: &'static str,
        /// Its mode.
        mode: u32,
        /// Who owns it, and who this is.
        ours: u32,
    },

    /// There is no data directory, and it may not be made.
    #[error(
        "the data directory {} is not there, and user id {ours} may not make it in {} (owned by user id {owner}, mode {mode:04o}): \
         make it as root with `install -d -o {ours} -m 700 {}`, or choose another --data-dir",
        path.display(), parent.display(), path.display()
    )]
    ClosedParent {
        /// The directory that is missing.
        path: PathBuf,
        /// The nearest directory above it that is there.
        parent: PathBuf,
        /// The owner of that one.
        owner: u32,
        /// The mode of that one.
        mode: u32,
        /// Who this is.
        ours: u32,
    },

    /// Running as root, and there is nobody to run PostgreSQL as.
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as: create one (`useradd --system postgres`), run meterd as an ordinary user, or set DATABASE_URL"
    )]
    NoServerUser,

    /// The user that PostgreSQL runs as cannot enter a directory.
    #[error(
        "PostgreSQL runs as user `{user}` (it refuses root), who cannot reach {}{}: choose another place with --data-dir, for example {}",
        path.display(),
        blocker.as_ref().map(|dir| format!(" because {} is closed to others", dir.display())).unwrap_or_default(),
        super::default_data_dir().display()
    )]
    Unreachable {
        /// The user's name.
        user: String,
        /// What it must reach.
        path: PathBuf,
        /// The first closed directory on the way, when the mode bits show one.
        blocker: Option<PathBuf>,
    },

    /// `--postgres-bin-dir` names no usable PostgreSQL.
    #[error(
        "--postgres-bin-dir {} holds no usable PostgreSQL: {reason}. Give the directory that holds `initdb` and `postgres` (`pg_config --bindir` prints it)",
        dir.display()
    )]
    BadBinDir {
        /// The setting.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// No PostgreSQL, and none could be downloaded.
    #[error(
        "no PostgreSQL {} or newer was found. {}, or point --postgres-bin-dir at the directory that holds `initdb` and `postgres`, or set DATABASE_URL to use a server of your own. {details}",
        super::binaries::MAJOR_MIN,
        install_hint(None)
    )]
    NoBinaries {
        /// What was looked at and why it would not do, and how the download went.
        details: String,
    },

    /// The data was written by a major version that is not here.
    #[error(
        "the data in {} was written by PostgreSQL {made_by}, and {found}. {}, or point --postgres-bin-dir at it, or move the data to the newer version with pg_upgrade. {details}",
        cluster.display(), install_hint(Some(*made_by))
    )]
    WrongMajor {
        /// PostgreSQL's own directory.
        cluster: PathBuf,
        /// The major version in its `PG_VERSION`.
        made_by: u32,
        /// What is here instead.
        found: String,
        /// How the download went, if there was one.
        details: String,
    },

    /// The data was written by a version that meterd does not run on.
    #[error(
        "the data in {} was written by PostgreSQL {made_by}, and meterd needs {} or newer: move it to a newer version with pg_upgrade, or choose another --data-dir",
        cluster.display(), super::binaries::MAJOR_MIN
    )]
    DataTooOld {
        /// PostgreSQL's own directory.
        cluster: PathBuf,
        /// The major version in its `PG_VERSION`.
        made_by: u32,
    },

    /// PostgreSQL's directory holds something else.
    #[error(
        "{} is not empty and holds no PostgreSQL data (no PG_VERSION): move it away, or choose another --data-dir",
        cluster.display()
    )]
    NotACluster {
        /// The directory.
        cluster: PathBuf,
    },

    /// No directory for the socket.
    #[error(
        "the socket directory {} is not a private directory of user id {owner}: remove it, or choose a shorter --data-dir (at most {limit} bytes)",
        dir.display()
    )]
    SocketDir {
        /// The directory.
        dir: PathBuf,
        /// Who should own it.
        owner: u32,
        /// The longest socket directory that needs no detour, in bytes.
        limit: usize,
    },

    /// `initdb` failed.
    #[error("initdb could not make a database in {}:\n{output}", cluster.display())]
    InitFailed {
        /// PostgreSQL's own directory.
        cluster: PathBuf,
        /// What it said.
        output: String,
    },

    /// The server ended instead of starting.
    #[error("PostgreSQL did not start ({reason}). The end of {}:\n{log_tail}", log.display())]
    StartFailed {
        /// How it ended.
        reason: String,
        /// The whole log.
        log: PathBuf,
        /// Its last lines.
        log_tail: String,
    },

    /// The server runs but does not accept connections within the bound.
    #[error(
        "PostgreSQL (process {pid}) runs but accepts no connection after {waited_s} s ({last}). It is left running: a long crash recovery goes on, and the next start of meterd waits for it again. The end of {}:\n{log_tail}",
        log.display()
    )]
    NotReady {
        /// The postmaster.
        pid: i32,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// Its last answer.
        last: String,
        /// The whole log.
        log: PathBuf,
        /// Its last lines.
        log_tail: String,
    },

    /// The server would not end.
    #[error(
        "PostgreSQL (process {pid}) still runs {waited_s} s after it was told to stop; committed data is safe. See {}",
        log.display()
    )]
    StopTimeout {
        /// The postmaster.
        pid: i32,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// The whole log.
        log: PathBuf,
    },

    /// A statement of the set-up failed.
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

/// One sentence on how to install PostgreSQL here, without its full stop.
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
