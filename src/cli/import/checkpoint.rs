//! The progress of an import, stored in a file, so that an interrupted import can be resumed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::batches::digest_of;
use super::rows::Position;

/// A position in a file. All rows before it are settled: recorded, or reported as bad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Number of bytes before the position.
    pub offset: u64,
    /// Number of lines before the position.
    pub line: u64,
    /// Number of rows before the position.
    pub rows: u64,
    /// Number of bad rows among them.
    pub bad_rows: u64,
    /// SHA-256 of the bytes before the position.
    pub digest: String,
    /// Digest of the flags that affect rows and keys.
    pub mapping: String,
}

impl Checkpoint {
    /// Creates a checkpoint for a position.
    pub fn at(position: &Position, mapping: &str, bad_rows: u64) -> Checkpoint {
        Checkpoint {
            offset: position.offset,
            line: position.line,
            rows: position.rows,
            bad_rows,
            digest: digest_of(position),
            mapping: mapping.to_owned(),
        }
    }

    /// Reads a checkpoint. `None` if the file does not exist.
    pub fn load(path: &Path) -> anyhow::Result<Option<Checkpoint>> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is not a checkpoint: delete it", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Replaces the file atomically.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let new = with_suffix(path, ".new");
        let written = std::fs::write(&new, serde_json::to_vec(self)?).and_then(|()| std::fs::rename(&new, path));
        written.with_context(|| format!("cannot write the checkpoint {}", path.display()))
    }
}

/// The default path of the checkpoint of a file.
pub fn path_for(file: &Path) -> PathBuf {
    with_suffix(file, ".meterd-import")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Tracks settled batches, which can settle in any order, and the end of the contiguous settled part.
#[derive(Debug, Default)]
pub struct SettledPrefix {
    next: u64,
    bad_rows: u64,
    ahead: std::collections::BTreeMap<u64, (Position, u64)>,
}

impl SettledPrefix {
    /// Creates the state with the number of bad rows of an earlier run.
    pub fn new(bad_rows: u64) -> SettledPrefix {
        SettledPrefix { bad_rows, ..SettledPrefix::default() }
    }

    /// Marks a batch as settled. If the settled prefix grows, returns its new end and the number of bad rows in it.
    pub fn settle(&mut self, number: u64, end: Position, bad_rows: u64) -> Option<(Position, u64)> {
        self.ahead.insert(number, (end, bad_rows));
        let mut moved = None;
        while let Some((end, bad_rows)) = self.ahead.remove(&self.next) {
            self.next += 1;
            self.bad_rows += bad_rows;
            moved = Some(end);
        }
        moved.map(|end| (end, self.bad_rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(offset: u64) -> Position {
        Position { offset, ..Position::default() }
    }

    #[test]
    fn a_saved_checkpoint_is_loaded_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(&dir.path().join("a.csv"));
        assert!(path.ends_with("a.csv.meterd-import"));
        assert_eq!(Checkpoint::load(&path).unwrap(), None);
        let checkpoint = Checkpoint::at(&position(7), "m", 2);
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), Some(checkpoint));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(&path, "x").unwrap();
        assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("not a checkpoint"));
    }

    #[test]
    fn the_prefix_contains_only_settled_batches() {
        let mut prefix = SettledPrefix::new(1);
        assert!(prefix.settle(1, position(20), 2).is_none());
        assert!(prefix.settle(2, position(30), 0).is_none());
        let (end, bad_rows) = prefix.settle(0, position(10), 1).unwrap();
        assert_eq!((end.offset, bad_rows), (30, 4));
        assert_eq!(prefix.settle(3, position(40), 0).unwrap().0.offset, 40);
    }
}
