//! Commands with a running server.

use crate::harness::*;
use std::path::Path;
use std::process::{Output, Stdio};

/// Rows in the format of the public LLM inference traces: CRLF, seven decimals of a second, one row twice.
const TRACE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
    2023-11-16 18:15:46.6805900,374,44\r\n\
    2023-11-16 18:15:50.9951690,396,109\r\n\
    2023-11-16 18:15:50.9951690,396,109\r\n\
    2023-11-30 23:59:59.9999999,879,55\r\n\
    2023-12-01 00:00:00.0000000,91,16\r\n";

const MAPPING: [&str; 14] = [
    "--client",
    "azure-chat",
    "--service",
    "openai",
    "--operation",
    "chat_completion",
    "--model",
    "gpt-4o-mini",
    "--time-column",
    "TIMESTAMP",
    "--input-tokens-column",
    "ContextTokens",
    "--output-tokens-column",
    "GeneratedTokens",
];

pub async fn meterd(server: &TestServer, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(arguments).env("METERD_SERVER", &server.address).env("DATABASE_URL", &server.database_url);
    command.stdin(Stdio::null()).output().await.unwrap()
}

/// Runs a command that must succeed, and returns its output.
pub async fn succeed(server: &TestServer, arguments: &[&str]) -> String {
    let output = meterd(server, arguments).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn stamp(time: chrono::DateTime<chrono::Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }
}

async fn import(server: &TestServer, file: &Path, more: &[&str]) -> (bool, serde_json::Value) {
    let mut arguments = vec!["import", file.to_str().unwrap(), "--json"];
    arguments.extend(MAPPING);
    arguments.extend(more);
    let output = meterd(server, &arguments).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let summary = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.success(), summary)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_trace_counts_once_and_its_equal_rows_are_separate_events() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.csv");
    std::fs::write(&file, TRACE).unwrap();

    let (fine, rejection) = import(&server, &file, &[]).await;
    assert!(!fine, "old rows must be rejected without --backfill: {rejection}");
    server.assert_exact(0).await;

    let (fine, first) = import(&server, &file, &["--backfill"]).await;
    assert!(fine, "{first}");
    assert_eq!((&first["accepted"], &first["duplicates"]), (&5.into(), &0.into()), "{first}");
    // 2,136 × 0.00000015 + 333 × 0.0000006
    assert_eq!(first["cost"]["amount"], "0.0005202", "{first}");
    let (fine, second) = import(&server, &file, &["--backfill", "--batch", "2"]).await;
    assert!(fine, "{second}");
    assert_eq!((&second["accepted"], &second["duplicates"]), (&0.into(), &5.into()), "{second}");

    let verified = succeed(&server, &["verify"]).await;
    assert_eq!(verified, "2 client-months, 5 events: 0 differences\n");
    let shown = succeed(&server, &["usage", "azure-chat", "--start", "2023-11-01", "--end", "2023-12-31"]).await;
    assert!(shown.contains("2,136 input tokens"), "{shown}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_imported_elsewhere_has_the_same_sums() {
    let server = TestServer::start().await;
    let elsewhere = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let awkward = meterd::proto::UsageEvent {
        idempotency_key: "=1+1".into(),
        subject: "'-quoted, \"twice\"".into(),
        units: "0.000000000001".into(),
        ..event("+acme", "sms", "")
    };
    server.track(awkward).await.unwrap();
    server.track(model_call("acme", 1_000_003, 7)).await.unwrap();
    for format in ["csv", "ndjson"] {
        let file = folder.path().join(format!("usage.{format}"));
        succeed(&server, &["export", "--output", file.to_str().unwrap()]).await;
        let imported = succeed(&elsewhere, &["import", file.to_str().unwrap(), "--json"]).await;
        let summary: serde_json::Value = serde_json::from_str(&imported).unwrap();
        let recorded = summary["accepted"].as_u64().unwrap() + summary["duplicates"].as_u64().unwrap();
        assert_eq!(recorded, 2, "{format}: {summary}");
    }
    elsewhere.assert_exact(2).await;
    let rows =
        "SELECT string_agg(concat_ws('|', client_id, idempotency_key, subject, trim_scale(units), charge), ' ' ORDER BY
                client_id) FROM usage_events";
    let of = async |server: &TestServer| sqlx::query_scalar::<_, String>(rows).fetch_one(&server.pool).await.unwrap();
    assert_eq!(of(&server).await, of(&elsewhere).await);
    server.stop().await;
    elsewhere.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_imported_into_the_same_server_is_all_duplicates() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let number = prost_types::value::Kind::NumberValue(1e16);
    let number = prost_types::Value { kind: Some(number) };
    let metadata = prost_types::Struct { fields: [("n".to_string(), number)].into() };
    let event_with_key = meterd::proto::UsageEvent {
        idempotency_key: "k".into(),
        units: "0.30000000000000004".into(),
        metadata: Some(metadata),
        ..event("acme", "sms", "")
    };
    let timed = meterd::proto::UsageEvent { event_time: Some(stamp(server.clock.now())), ..event("acme", "sms", "") };
    for event in [event_with_key, timed, event("acme", "sms", "2"), model_call("acme", 7, 1)] {
        server.track(event).await.unwrap();
    }
    for format in ["csv", "ndjson"] {
        let file = folder.path().join(format!("usage.{format}"));
        succeed(&server, &["export", "--output", file.to_str().unwrap()]).await;
        let imported = succeed(&server, &["import", file.to_str().unwrap(), "--json"]).await;
        let summary: serde_json::Value = serde_json::from_str(&imported).unwrap();
        assert_eq!((&summary["accepted"], &summary["duplicates"]), (&0.into(), &4.into()), "{format}: {summary}");
    }
    server.assert_exact(4).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_prints_every_difference_and_fails_and_rebuild_repairs() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "3")).await.unwrap();
    sqlx::query("UPDATE usage_months SET cost = cost + 1").execute(&server.pool).await.unwrap();
    server.run_job("pending_usage").await;
    sqlx::query("DELETE FROM usage_days").execute(&server.pool).await.unwrap();
    let broken = meterd(&server, &["verify"]).await;
    let printed = String::from_utf8(broken.stdout).unwrap();
    assert_eq!(broken.status.code(), Some(1));
    assert!(printed.contains("cost is 1.0225, but the sum of the events is 0.0225"), "{printed}");
    assert!(printed.contains("requests is 0, but the sum of the events is 1"), "{printed}");
    assert!(printed.ends_with("1 client-months, 1 events: 2 differences\n"), "{printed}");
    succeed(&server, &["rebuild", "--month", &server.clock.now().format("%Y-%m").to_string()]).await;
    assert!(succeed(&server, &["verify"]).await.ends_with(": 0 differences\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_finds_inconsistent_keys_and_rows_without_events() {
    let server = TestServer::start().await;
    let event_with_key = |key: &str, client_id: &str| meterd::proto::UsageEvent {
        idempotency_key: key.into(),
        ..event(client_id, "sms", "1")
    };
    for key in ["lost", "shared", "orphan", "fine"] {
        server.track(event_with_key(key, "acme")).await.unwrap();
    }
    server.track(event_with_key("other", "other")).await.unwrap();
    server.assert_exact(5).await;
    let month = server.clock.now().format("%Y-%m").to_string();
    let damages = [
        (
            "DELETE FROM idempotency_keys WHERE idempotency_key = 'lost'".to_string(),
            vec!["key \"lost\": event ", "has no row in idempotency_keys"],
        ),
        (
            "UPDATE idempotency_keys SET event_seq = f.event_seq, event_time = f.event_time
             FROM (SELECT * FROM usage_events WHERE idempotency_key = 'fine') AS f WHERE
             idempotency_keys.idempotency_key = 'shared'"
                .into(),
            vec!["key \"shared\": event ", "has the key of another event"],
        ),
        (
            "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq)
             VALUES ('acme', 'ghost', '', now(), 7)"
                .into(),
            vec!["key \"ghost\": names event ", "which does not exist"],
        ),
        (
            format!("INSERT INTO usage_days VALUES ('acme', '{month}-01', 'sms', 'ghost', '', 2, 3, 0, 0, 0, 0, 0)"),
            vec!["-01 sms operation=\"ghost\"", "a row without events: requests is 2, but the sum of the events is 0"],
        ),
        (
            format!("INSERT INTO usage_days VALUES ('acme', '{month}-02', 'sms', 'ghost', '', 0, 0, 0, 0, 0, 0, 0)"),
            vec!["-02 sms operation=\"ghost\"", "a row of zeros without events"],
        ),
        (
            format!("INSERT INTO usage_month_services VALUES ('acme', '{month}-01', 'ghost', 1, 1, 0, 0, 0, 0, 0)"),
            vec!["month of ghost: a row without events"],
        ),
        (
            format!("INSERT INTO usage_months VALUES ('ghost', '{month}-01', 1, 1, 0, 0, 0, 0, 0)"),
            vec!["\"ghost\"", "month total: a row without events"],
        ),
    ];
    let count = damages.len();
    for (damage, _) in &damages {
        assert_eq!(server.sql(damage).await, 1, "{damage}");
    }
    let printed = String::from_utf8(meterd(&server, &["verify"]).await.stdout).unwrap();
    for (damage, texts) in damages {
        let found = printed.lines().any(|line| texts.iter().all(|text| line.contains(text)));
        assert!(found, "{damage}: no {texts:?} in\n{printed}");
    }
    assert!(printed.ends_with(&format!("5 events: {count} differences\n")), "{printed}");
    // The other client has no differences.
    assert!(succeed(&server, &["verify", "--client", "other"]).await.ends_with("1 events: 0 differences\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_from_the_shell_is_recorded_or_its_error_explained() {
    let server = TestServer::start().await;
    let tracked = succeed(&server, &["track", "acme", "twilio_sms", "3", "--key", "k1"]).await;
    assert!(tracked.contains("ACCEPTED") && tracked.contains("0.0237 USD"), "{tracked}");
    let again = succeed(&server, &["track", "acme", "twilio_sms", "3", "--key", "k1"]).await;
    assert!(again.contains("DUPLICATE"), "{again}");
    let wrong = meterd(&server, &["track", "acme", "twilio_sns", "3"]).await;
    let explained = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(explained.contains("event.service") && explained.contains("did you mean twilio_sms"), "{explained}");
    server.assert_exact(1).await;
    server.stop().await;
}
