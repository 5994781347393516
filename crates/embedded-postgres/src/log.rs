//! The server's log file and its maximum size.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::EmbeddedError;

/// At a start, a longer log is renamed to `postgres.log.1` and replaces the previous one.
const ROTATE_BYTES: u64 = 10 * 1024 * 1024;

/// The part of the log that is shown in an error.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 16 * 1024;

/// Opens the log for a server that starts, and returns the position at which its part begins. meterd opens the file, so
/// that it is private to meterd's user. The server only writes to the open file.
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

/// Returns the last lines that were written after `begin`.
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
