//! Finds data directories that contain a database, for commands that must not create one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Maximum number of sibling directories that are checked.
const NEIGHBOURS_MAX: usize = 1_000;

/// Returns whether this directory contains a database of meterd. Changes nothing.
///
/// # Errors
/// The directory may not be read.
pub fn is_initialized(data_dir: &Path) -> io::Result<bool> {
    data_dir.join("postgres").join("PG_VERSION").try_exists()
}

/// Returns the sibling directories that contain a database.
pub fn sibling_databases(data_dir: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let Some(entries) = absolute.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return vec![] };
    let paths = entries.take(NEIGHBOURS_MAX).filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = paths.filter(|path| is_initialized(path).unwrap_or(false)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_database_is_recognized_and_found_as_a_sibling() {
        let parent = tempfile::tempdir().unwrap();
        let (data, typo) = (parent.path().join("data"), parent.path().join("dat"));
        fs::create_dir_all(data.join("postgres")).unwrap();
        assert!(!is_initialized(&data).unwrap());
        fs::write(data.join("postgres/PG_VERSION"), "17\n").unwrap();
        assert!(is_initialized(&data).unwrap());
        assert!(!is_initialized(&typo).unwrap() && !typo.exists());
        assert_eq!(sibling_databases(&typo), [data]);
    }
}
