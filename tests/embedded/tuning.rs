//! Memory and WAL settings that suit the machine, and settings of the operator, which override them.

use super::TestDir;
use sqlx::{Connection, PgConnection, Row};
use std::fs;

/// Returns the values of settings in a running server, in their own units.
async fn shown(url: &str, names: &[&str]) -> Vec<String> {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let mut values = vec![];
    for name in names {
        let row = sqlx::query("SELECT current_setting($1)").bind(name).fetch_one(&mut conn).await.unwrap();
        values.push(row.get(0));
    }
    values
}

/// Returns the megabytes of a setting in a file of settings.
fn megabytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([' ', '=', '\'']).trim_end_matches("MB").parse().unwrap()
}

/// Returns the megabytes of a value that the server shows, such as `6GB`.
fn shown_megabytes(text: &str) -> u64 {
    match text.strip_suffix("GB") {
        Some(number) => number.parse::<u64>().unwrap() * 1024,
        None => text.strip_suffix("MB").unwrap().parse().unwrap(),
    }
}

#[tokio::test]
async fn memory_and_wal_follow_the_machine() {
    let dir = TestDir::new();
    let embedded = dir.start().await;
    let values = shown(embedded.url(), &["shared_buffers", "max_wal_size", "checkpoint_timeout"]).await;
    embedded.stop().await.unwrap();
    let computed = fs::read_to_string(dir.data_dir.join("postgres/meterd.conf")).unwrap();
    assert_eq!(shown_megabytes(&values[0]), megabytes(&computed, "shared_buffers"));
    assert_eq!(shown_megabytes(&values[1]), megabytes(&computed, "max_wal_size"));
    assert_eq!(values[2], "15min");
    // Only on Linux.
    let Ok(memory) = fs::read_to_string("/proc/meminfo") else { return };
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let total: u64 = total.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    let share = megabytes(&computed, "shared_buffers");
    assert!((64..=(total / 4).max(64)).contains(&share), "{share} MB of {total} MB");
}

#[tokio::test]
async fn settings_of_the_operator_override_the_computed_ones() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    let conf = dir.data_dir.join("postgres/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap() + "shared_buffers = 96MB\n";
    fs::write(&conf, &text).unwrap();
    let embedded = dir.start().await;
    let mut conn = PgConnection::connect(embedded.url()).await.unwrap();
    sqlx::query("ALTER SYSTEM SET max_wal_size = '3GB'").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    embedded.stop().await.unwrap();
    let embedded = dir.start().await;
    assert_eq!(shown(embedded.url(), &["shared_buffers", "max_wal_size"]).await, ["96MB", "3GB"]);
    embedded.stop().await.unwrap();
    assert_eq!(fs::read_to_string(&conf).unwrap(), text, "a start must not change the operator's file");
}

#[tokio::test]
async fn data_of_an_earlier_version_gets_the_computed_settings() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    let conf = dir.data_dir.join("postgres/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    let text: String =
        text.lines().filter(|line| !line.contains("meterd.conf")).map(|line| format!("{line}\n")).collect();
    let old = text + "shared_buffers = 128MB\t\t\t# min 128kB\nmax_wal_size = '2GB'\nwork_mem = 5MB\n";
    fs::write(&conf, old).unwrap();
    let embedded = dir.start().await;
    let values = shown(embedded.url(), &["checkpoint_timeout", "work_mem", "shared_buffers"]).await;
    embedded.stop().await.unwrap();
    assert_eq!(values[..2], ["15min", "5MB"]);
    let computed = fs::read_to_string(dir.data_dir.join("postgres/meterd.conf")).unwrap();
    assert_eq!(shown_megabytes(&values[2]), megabytes(&computed, "shared_buffers"));
}
