//! Where a scenario lives: a directory, the processes in it, what is mounted in it. All of it ends with the test, however that
//! ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Waits for the end of the test, then ends the servers, the database and the mounts, and removes the directory. Servers first:
/// one of them would start the database again.
const KEEPER: &str = r#"
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

/// A directory of a scenario.
pub struct Place {
    dir: PathBuf,
    keeper: Child,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("meterd-faults-").tempdir_in("/tmp").unwrap().keep();
        // The user that runs PostgreSQL must get through.
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is not for it.
            .process_group(0)
            .spawn()
            .unwrap();
        Self { dir, keeper }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Notes a process to be ended.
    pub fn note_process(&self, name: &str, pid: u32) {
        fs::write(self.path(&format!("{name}.pid")), pid.to_string()).unwrap();
    }

    /// It has ended.
    pub fn forget_process(&self, name: &str) {
        drop(fs::remove_file(self.path(&format!("{name}.pid"))));
    }

    /// A file system in memory; nothing where we may not mount.
    pub fn mount(&self, name: &str, mib: usize) -> Option<PathBuf> {
        let dir = self.path(&format!("mount-{name}"));
        fs::create_dir(&dir).unwrap();
        let size = format!("size={mib}m,mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(dir)
    }

    /// Of a test that failed, what the servers said.
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

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// Runs a program that must go well.
pub fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
