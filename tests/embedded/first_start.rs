//! The first start is killed at any time. Its leftovers do not prevent the next start, which does not wait.

use super::{TestDir, count, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Number of data directories, and of killed starts on each.
const PLACES: u64 = 8;
const KILLS: u64 = 5;
/// A first start takes about two seconds. Each data directory is killed at other times.
const KILL_STEP: Duration = Duration::from_millis(37);
const LAST_KILL: Duration = Duration::from_millis(1_500);

/// Starts `meterd_to_be_killed` on a data directory.
fn start_meterd(dir: &TestDir) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "meterd_to_be_killed"])
        .env("METERD_TEST_DATA_DIR", &dir.data_dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn leftovers(dir: &TestDir) -> Vec<String> {
    let names = fs::read_dir(&dir.data_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("postgres.init")).collect()
}

#[tokio::test]
async fn a_start_works_after_a_first_start_that_was_killed_at_any_time() {
    let mut cut_initdb = 0;
    for number in 0..PLACES {
        let dir = TestDir::new();
        for kill_number in 0..KILLS {
            let step = u32::try_from((number * KILLS + kill_number) * 7 % (PLACES * KILLS)).unwrap();
            let mut meterd = start_meterd(&dir);
            tokio::time::sleep((KILL_STEP * step).min(LAST_KILL)).await;
            // Only meterd is killed. Its initdb and its PostgreSQL become orphans and keep running.
            kill(Pid::from_raw(meterd.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
            meterd.wait().unwrap();
            cut_initdb += usize::from(dir.data_dir.exists() && !leftovers(&dir).is_empty());
        }
        let embedded = dir.start().await;
        write(embedded.url()).await;
        assert!(count(embedded.url()).await >= 1);
        embedded.stop().await.unwrap();
        dir.start().await.stop().await.unwrap();
        assert_eq!(leftovers(&dir), Vec::<String>::new(), "a later start must remove them");
    }
    println!("{cut_initdb} of {} kills were in initdb", PLACES * KILLS);
    assert!(cut_initdb > 0, "no kill interrupted initdb, so the test proves nothing");
}

#[tokio::test]
async fn the_server_starts_despite_an_empty_pid_file() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    fs::write(dir.pid_file(), "").unwrap();
    let embedded = dir.start().await;
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn other_directories_are_not_removed() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    let notes = dir.data_dir.join("postgres.init-notes");
    fs::create_dir(&notes).unwrap();
    dir.start().await.stop().await.unwrap();
    assert!(notes.exists());
}
