//! The directory of a scenario, its processes and its mounted file systems. All of them are removed when the test ends
//! in any way.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Waits for the end of the test, then ends the servers, the database and the mounts, and removes the directory. The
/// servers end first, because they would restart the database.
const CLEANUP_SCRIPT: &str = r#"
cat > /dev/null
for file in "$1"/*.pid; do [ -e "$file" ] && kill -9 "$(cat "$file")" 2> /dev/null; done
postmaster=$(find "$1" -maxdepth 4 -name postmaster.pid -exec head -n 1 {} \; 2> /dev/null)
if [ -n "$postmaster" ]; then
  kill -QUIT "$postmaster" 2> /dev/null
  for _ in $(seq 100); do kill -0 "$postmaster" 2> /dev/null || break; sleep 0.1; done
fi
for dir in "$1"/mount-*; do [ -e "$dir" ] && umount -l "$dir"; done
rm -rf "$1"
"#;

/// The directory of a scenario.
pub struct ScenarioDir {
    dir: PathBuf,
    cleanup: Child,
}

impl ScenarioDir {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("meterd-faults-").tempdir_in("/tmp").unwrap().keep();
        // The user that runs PostgreSQL must be able to enter it.
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let cleanup = Command::new("sh")
            .args(["-c", CLEANUP_SCRIPT, "cleanup"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C must not end it.
            .process_group(0)
            .spawn()
            .unwrap();
        Self { dir, cleanup }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Registers a process that must be ended.
    pub fn add_process(&self, name: &str, pid: u32) {
        fs::write(self.path(&format!("{name}.pid")), pid.to_string()).unwrap();
    }

    /// Removes a process that has ended.
    pub fn remove_process(&self, name: &str) {
        drop(fs::remove_file(self.path(&format!("{name}.pid"))));
    }

    /// Mounts a file system in memory. Returns `None` if this process may not mount.
    pub fn mount(&self, name: &str, mib: usize) -> Option<PathBuf> {
        let dir = self.path(&format!("mount-{name}"));
        fs::create_dir(&dir).unwrap();
        let size = format!("size={mib}m,mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(dir)
    }

    /// Prints the logs of the servers after a failed test.
    fn show_logs(&self) {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in files.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("--- end of {}", log.display());
            lines[lines.len().saturating_sub(20)..].iter().for_each(|line| println!("{line}"));
        }
    }
}

impl Drop for ScenarioDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        drop(self.cleanup.stdin.take());
        drop(self.cleanup.wait());
    }
}

/// Runs a program and checks that it succeeds.
pub fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
