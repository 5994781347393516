//! The server's log file, bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::EmbeddedError;

/// A log longer than this at a start becomes `postgres.log.1`, in place of the one before.
const ROTATE_BYTES: u64 = 10 * 1024 * 1024;

/// How much of the log goes into an error.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 16 * 1024;

/// Opens the log for a server that starts, and tells where its part begins. meterd opens it, so it is private to
/// meterd's user, and the server only writes to what it was given.
pub(super) fn open(path: &Path) -> Result<(File, u64), EmbeddedError> {
    if fs::metadata(path).is_ok_and(|log| log.len() > ROTATE_BYTES) {
        fs::rename(path, path.with_extension("log.1")).map_err(EmbeddedError::io("rotate", path))?;
    }
    let open = || {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let begin = file.metadata()?.len();
        Ok((file, begin))
    };
    open().map_err(EmbeddedError::io("open", path))
}

/// The last lines, none of them from before `begin`.
pub(super) fn tail(path: &Path, begin: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(begin);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
