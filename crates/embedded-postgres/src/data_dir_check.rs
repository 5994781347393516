//! Checks whether a data directory can be used. Changes nothing.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};

use super::EmbeddedSettings;
use super::binaries::MAJOR_MIN;
use super::cluster;
use super::error::EmbeddedError;
use super::owner::ServerUser;

/// Rejects settings with which the embedded server cannot start. Does not search for programs or start any.
///
/// # Errors
/// The errors of [`Embedded::start`](super::Embedded::start) that can be detected without a start.
pub fn check_settings(settings: &EmbeddedSettings) -> Result<(), EmbeddedError> {
    let dir = settings.data_dir.as_path();
    // A relative path is below the working directory.
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let rights = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    if !existing.is_dir() {
        return Err(EmbeddedError::NotADirectory { data_dir: dir.to_owned(), path: existing.to_owned() });
    }
    let needed = if existing == dir { rights } else { AccessFlags::W_OK | AccessFlags::X_OK };
    if let Err(errno) = access(existing, needed) {
        return Err(denied("read and write", dir)(errno.into()));
    }
    let data = dir.join("postgres");
    ServerUser::choose(&data)?;
    if let Some(made_by) = cluster::made_by(&data)?.filter(|major| *major < MAJOR_MIN) {
        return Err(EmbeddedError::DataTooOld { cluster: data, made_by });
    }
    match &settings.bin_dir {
        Some(dir) if !["initdb", "pg_config"].iter().any(|name| dir.join(name).exists()) => {
            Err(EmbeddedError::BadBinDir { dir: dir.clone(), reason: "there is no initdb in it".into() })
        }
        _ => Ok(()),
    }
}

/// Returns whether a running meterd uses this data directory.
pub fn is_locked(data_dir: &Path) -> bool {
    let lock = File::open(data_dir.join("meterd.lock"));
    lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// For `map_err`: explains why an operation on a path was not permitted.
pub(super) fn denied(needed: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError {
    let path = path.to_owned();
    move |error| {
        let ours = geteuid().as_raw();
        let there = path.ancestors().find_map(|dir| Some((dir, fs::metadata(dir).ok()?)));
        match there {
            Some((parent, at)) if error.kind() == ErrorKind::PermissionDenied => {
                let (owner, mode) = (at.uid(), at.mode() & 0o7777);
                match (parent == path, owner == ours) {
                    (false, _) => {
                        EmbeddedError::ClosedParent { parent: parent.to_owned(), path: path.clone(), owner, mode, ours }
                    }
                    (true, true) => EmbeddedError::Closed { path: path.clone(), needed, mode, ours },
                    (true, false) => EmbeddedError::ForeignOwner { path: path.clone(), owner, ours },
                }
            }
            _ => EmbeddedError::io(needed, &path)(error),
        }
    }
}
