//! The first start, killed anywhere: what it leaves is no obstacle to the next one, which begins at once.

use super::{Place, count, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Places that are begun, and starts of each that are killed before one may go on.
const PLACES: u64 = 8;
const KILLS: u64 = 5;
/// A first start takes about two seconds. The kills come at other times in each place.
const STEP: Duration = Duration::from_millis(37);
const LONGEST: Duration = Duration::from_millis(1_500);

/// Starts `meterd_to_be_killed` on the data of this place.
fn begin(place: &Place) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "meterd_to_be_killed"])
        .env("METERD_TEST_DATA_DIR", &place.data_dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn leftovers(place: &Place) -> Vec<String> {
    let names = fs::read_dir(&place.data_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("postgres.init")).collect()
}

#[tokio::test]
async fn a_first_start_that_is_killed_anywhere_is_followed_by_one_that_works() {
    let mut cut_initdb = 0;
    for number in 0..PLACES {
        let place = Place::new();
        for kill_number in 0..KILLS {
            let step = u32::try_from((number * KILLS + kill_number) * 7 % (PLACES * KILLS)).unwrap();
            let mut meterd = begin(&place);
            tokio::time::sleep((STEP * step).min(LONGEST)).await;
            // meterd alone: its initdb and its PostgreSQL are orphans that go on.
            kill(Pid::from_raw(meterd.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
            meterd.wait().unwrap();
            cut_initdb += usize::from(place.data_dir.exists() && !leftovers(&place).is_empty());
        }
        let embedded = place.start().await;
        write(embedded.url()).await;
        assert!(count(embedded.url()).await >= 1);
        embedded.stop().await.unwrap();
        place.start().await.stop().await.unwrap();
        assert_eq!(leftovers(&place), Vec::<String>::new(), "a later start has removed them");
    }
    println!("{cut_initdb} of {} kills were in initdb", PLACES * KILLS);
    assert!(cut_initdb > 0, "no kill was in initdb: the test shows nothing");
}

#[tokio::test]
async fn an_empty_pid_file_that_a_kill_left_is_no_obstacle() {
    let place = Place::new();
    place.start().await.stop().await.unwrap();
    fs::write(place.pid_file(), "").unwrap();
    let embedded = place.start().await;
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_not_a_leftover_of_initdb_stays() {
    let place = Place::new();
    place.start().await.stop().await.unwrap();
    let notes = place.data_dir.join("postgres.init-notes");
    fs::create_dir(&notes).unwrap();
    place.start().await.stop().await.unwrap();
    assert!(notes.exists());
}
