//! Runs `meterd-bench` with the `meterd` next to it.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A directory for the database that the user who runs PostgreSQL can reach, also if the tests run as root.
pub fn data_dir() -> TempDir {
    let directory = tempfile::Builder::new().prefix("meterd-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A command of `meterd-bench`. `cargo test` in the root builds the `meterd` that it measures, and `-p meterd-bench` does not.
pub fn bench(data_dir: &Path, flags: &[&str]) -> Command {
    let bench = Path::new(env!("CARGO_BIN_EXE_meterd-bench"));
    let meterd = bench.with_file_name("meterd");
    assert!(
        meterd.is_file(),
        "{} does not exist: run `cargo build --bin meterd` first, or `cargo test` without -p",
        meterd.display()
    );
    let mut command = Command::new(bench);
    command.args(flags).arg("--data-dir").arg(data_dir).stdin(Stdio::null()).env_remove("METERD_BIN");
    command
}

/// The names in a directory.
pub fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The JSON report of a successful run that left nothing behind.
pub fn report(flags: &[&str]) -> Value {
    let directory = data_dir();
    let output = bench(directory.path(), flags).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(entries(directory.path()), [""; 0], "nothing is left");
    serde_json::from_slice(&output.stdout).unwrap()
}
