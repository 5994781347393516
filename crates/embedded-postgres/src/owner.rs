//! The user that PostgreSQL runs as. PostgreSQL refuses to run as root. A meterd run by root gives PostgreSQL's files
//! to another user, and runs `initdb` and `postgres` as that user without root's groups.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::{Uid, User, geteuid};
use tokio::process::Command;

use super::environment;
use super::error::EmbeddedError;

/// Accounts that can run PostgreSQL if meterd runs as root, best first.
const SERVER_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// The user that runs the server and owns its files.
#[derive(Debug, Clone)]
pub(super) struct ServerUser {
    name: String,
    uid: u32,
    gid: u32,
    /// Whether processes must be started as another user than meterd's.
    drops_root: bool,
}

impl ServerUser {
    /// Chooses the user: meterd's own user; under root the owner of existing data, or else `postgres`, or else
    /// `nobody`.
    ///
    /// Existing data decides, because PostgreSQL must own its directory. If an account `postgres` is added after the
    /// first start, meterd must still be able to use data that `nobody` owns.
    pub(super) fn choose(cluster: &Path) -> Result<Self, EmbeddedError> {
        let ours = geteuid();
        let owner = match fs::metadata(cluster) {
            Ok(metadata) => Some((metadata.uid(), metadata.gid())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(EmbeddedError::io("read the owner and mode of", cluster)(error)),
        };
        if !ours.is_root() {
            return match owner {
                Some((owner, _)) if owner != ours.as_raw() => Err(foreign(cluster, owner, ours.as_raw())),
                _ => Ok(Self {
                    name: name_of(ours.as_raw()),
                    uid: ours.as_raw(),
                    gid: nix::unistd::getegid().as_raw(),
                    drops_root: false,
                }),
            };
        }
        if let Some((uid, gid)) = owner.filter(|(uid, _)| *uid != 0) {
            let name = name_of(uid);
            return Ok(Self { name, uid, gid, drops_root: true });
        }
        let account = SERVER_ACCOUNTS
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .filter(|user| !user.uid.is_root())
            .ok_or(EmbeddedError::NoServerUser)?;
        if let Some((owner, _)) = owner {
            return Err(foreign(cluster, owner, account.uid.as_raw()));
        }
        Ok(Self { name: account.name, uid: account.uid.as_raw(), gid: account.gid.as_raw(), drops_root: true })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn gid(&self) -> u32 {
        self.gid
    }

    /// Returns whether the server's user is not meterd's, so that directories must be opened to it.
    pub(super) fn drops_root(&self) -> bool {
        self.drops_root
    }

    /// Returns a command that runs as this user with a minimal environment. It does not run in meterd's working
    /// directory, which the server's user may not be able to enter. When the user id is set under root, the standard
    /// library also drops all groups.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).current_dir("/");
        environment::reduce(command.as_std_mut());
        if self.drops_root {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes this user the owner of a file or directory. Does not follow links.
    pub(super) fn give(&self, path: &Path) -> Result<(), EmbeddedError> {
        if !self.drops_root {
            return Ok(());
        }
        lchown(path, Some(self.uid), Some(self.gid)).map_err(EmbeddedError::io("change the owner of", path))
    }

    /// Checks that this user can enter a directory by running `true` in it.
    pub(super) async fn check_reach(&self, dir: &Path) -> Result<(), EmbeddedError> {
        if !self.drops_root {
            return Ok(());
        }
        // The directory is entered after the user is changed.
        match self.command(Path::new("true")).current_dir(dir).status().await {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(self.unreachable(dir)),
            _ => Ok(()),
        }
    }

    /// Returns the error for a path that this user cannot reach.
    pub(super) fn unreachable(&self, path: &Path) -> EmbeddedError {
        EmbeddedError::Unreachable { user: self.name.clone(), path: path.to_owned(), blocker: self.blocker(path) }
    }

    /// Returns the first directory on the way to `path` that the mode bits close to this user. Used only in the
    /// message: access lists and mounts also matter, so [`check_reach`](Self::check_reach) tries.
    fn blocker(&self, path: &Path) -> Option<PathBuf> {
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter()
            .find(|dir| {
                fs::metadata(dir).is_ok_and(|at| {
                    let bit = match (at.uid() == self.uid, at.gid() == self.gid) {
                        (true, _) => 0o100,
                        (false, true) => 0o010,
                        (false, false) => 0o001,
                    };
                    at.is_dir() && at.mode() & bit == 0
                })
            })
            .map(Path::to_owned)
    }
}

fn name_of(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

fn foreign(path: &Path, owner: u32, ours: u32) -> EmbeddedError {
    EmbeddedError::ForeignOwner { path: path.to_owned(), owner, ours }
}
