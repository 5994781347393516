//! Who PostgreSQL runs as. It refuses root, so a meterd run by root hands everything that PostgreSQL touches to another
//! user, and runs `initdb` and `postgres` as that user with root's groups dropped.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::{Uid, User, geteuid};
use tokio::process::Command;

use super::environment;
use super::error::EmbeddedError;

/// Accounts to run PostgreSQL as under root, best first.
const SERVER_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// The user of the server's processes and files.
#[derive(Debug, Clone)]
pub(super) struct ServerUser {
    name: String,
    uid: u32,
    gid: u32,
    /// Whether processes must be started as somebody else than ourselves.
    drops_root: bool,
}

impl ServerUser {
    /// Chooses the user: ourselves; under root the owner of existing data, else `postgres`, else `nobody`.
    ///
    /// Existing data decides because PostgreSQL insists on owning its directory, and an account `postgres` that came
    /// after the first start must not lock meterd out of data that `nobody` owns.
    pub(super) fn choose(cluster: &Path) -> Result<Self, EmbeddedError> {
        let ours = geteuid();
        let owner = match fs::metadata(cluster) {
            Ok(metadata) => Some((metadata.uid(), metadata.gid())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(EmbeddedError::io("look at", cluster)(error)),
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

    /// Whether the server's user differs from meterd's, so that directories must be opened to it.
    pub(super) fn drops_root(&self) -> bool {
        self.drops_root
    }

    /// A command that runs as this user, with a minimal environment and away from meterd's working directory, which is
    /// closed to the server's user under root. Setting a user id under root makes the standard library drop all groups too.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).current_dir("/");
        environment::reduce(command.as_std_mut());
        if self.drops_root {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Gives a file or directory to this user. Links are not followed.
    pub(super) fn give(&self, path: &Path) -> Result<(), EmbeddedError> {
        if !self.drops_root {
            return Ok(());
        }
        lchown(path, Some(self.uid), Some(self.gid)).map_err(EmbeddedError::io("change the owner of", path))
    }

    /// Whether this user gets through to a directory, by trying: runs `true` there.
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

    /// The error for a path that this user cannot reach.
    pub(super) fn unreachable(&self, path: &Path) -> EmbeddedError {
        EmbeddedError::Unreachable { user: self.name.clone(), path: path.to_owned(), blocker: self.blocker(path) }
    }

    /// The first directory on the way to `path` that the mode bits close to this user. Only for the message: whether a
    /// path can be reached is tried, since access lists and mounts have their say too.
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
