//! Which data directories have a database, for commands that must not make one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Directories that are looked at beside the one that was named.
const NEIGHBOURS_MAX: usize = 1_000;

/// Whether a meterd has made its database in this directory. Changes nothing.
///
/// # Errors
/// The directory may not be looked into.
pub fn is_made(data_dir: &Path) -> io::Result<bool> {
    data_dir.join("postgres").join("PG_VERSION").try_exists()
}

/// The data directories beside this one that have a database.
pub fn made_beside(data_dir: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let Some(entries) = absolute.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return vec![] };
    let paths = entries.take(NEIGHBOURS_MAX).filter_map(|entry| Some(entry.ok()?.path()));
    let mut made: Vec<_> = paths.filter(|path| is_made(path).unwrap_or(false)).collect();
    made.sort();
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_a_database_once_it_was_made_and_its_neighbours_are_found() {
        let place = tempfile::tempdir().unwrap();
        let (data, typo) = (place.path().join("data"), place.path().join("dat"));
        fs::create_dir_all(data.join("postgres")).unwrap();
        assert!(!is_made(&data).unwrap());
        fs::write(data.join("postgres/PG_VERSION"), "17\n").unwrap();
        assert!(is_made(&data).unwrap());
        assert!(!is_made(&typo).unwrap() && !typo.exists());
        assert_eq!(made_beside(&typo), [data]);
    }
}
