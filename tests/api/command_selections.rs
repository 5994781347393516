//! Selections of commands: the same words select the same days in every command, and an empty selection is an error.

use crate::commands::{meterd, succeed};
use crate::harness::*;
use meterd::proto::{ExportFormat, ExportUsageRequest, UsageEvent};
use serde_json::Value;

/// Runs a command that must fail with status 1, and returns its error.
pub async fn fail(server: &TestServer, arguments: &[&str]) -> String {
    let output = meterd(server, arguments).await;
    let output_text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output_text}");
    output_text
}

/// Returns the number of exported events.
async fn exported(server: &TestServer, arguments: &[&str]) -> usize {
    let file = succeed(server, &[&["export", "--format=ndjson", "--allow-empty"], arguments].concat()).await;
    file.lines().count()
}

/// Returns the number of requests that `usage` counts.
async fn used(server: &TestServer, arguments: &[&str]) -> usize {
    let shown = succeed(server, &[&["usage", "acme", "--json"], arguments].concat()).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown["totals"]["request_count"].as_u64().unwrap() as usize
}

/// Records events at the boundaries of November 1 and 25 for a client west and a client east of Greenwich.
async fn boundaries(server: &TestServer) {
    server.create_client_in_zone("acme", "America/Los_Angeles").await;
    server.create_client_in_zone("beta", "Pacific/Kiritimati").await;
    let times = [
        // October 31 and November 1 in Los Angeles.
        "2026-11-01T06:59:59Z",
        "2026-11-01T07:00:00Z",
        // November 25 and 26 in Los Angeles.
        "2026-11-26T07:59:59Z",
        "2026-11-26T08:00:00Z",
    ];
    let acme = times.map(|time| event_at("acme", "sms", "1", time));
    // October 31, November 1, November 25 and November 26 in Kiritimati.
    let times = ["2026-10-31T09:59:59Z", "2026-10-31T10:00:00Z", "2026-11-25T09:59:59Z", "2026-11-25T10:00:00Z"];
    let beta = times.map(|time| event_at("beta", "sms", "1", time));
    server.batch([acme, beta].concat(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_end_and_month_select_the_clients_own_days_in_usage_and_export() {
    let server = TestServer::start().await;
    boundaries(&server).await;
    for (words, count) in [
        (&["--start=2026-11-01", "--end=2026-11-25"][..], 2),
        (&["--start=2026-11-01", "--end=2026-11-01"], 1),
        (&["--start=2026-10-31", "--end=2026-11-26"], 4),
        (&["--start=2026-11-02", "--end=2026-11-24"], 0),
        (&["--month=2026-11"], 3),
        (&["--month=2026-10"], 1),
    ] {
        assert_eq!(used(&server, words).await, count, "usage {words:?}");
        assert_eq!(exported(&server, &[&["--client=acme"], words].concat()).await, count, "export {words:?}");
        assert_eq!(exported(&server, &[&["--client=beta"], words].concat()).await, count, "export of beta {words:?}");
        assert_eq!(exported(&server, words).await, 2 * count, "export of all {words:?}");
    }
    assert_eq!(exported(&server, &["--client=acme", "--start=2026-11-25"]).await, 2);
    assert_eq!(exported(&server, &["--client=acme", "--end=2026-11-24"]).await, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_accepts_exact_times_only_with_an_offset() {
    let server = TestServer::start().await;
    boundaries(&server).await;
    let instants = ["--client=acme", "--start=2026-11-01T00:00:00-07:00", "--end=2026-11-26T08:00:00Z"];
    assert_eq!(exported(&server, &instants).await, 2);
    assert_eq!(exported(&server, &["--client=acme", "--start=2026-11-01", "--end=2026-11-26T07:59:59Z"]).await, 1);
    for (words, expected_text) in [
        ("--start=2026-11-01T00:00:00", "a time with an offset"),
        ("--start=20261101", "a time with an offset"),
        ("--start=2026-11", "--month 2026-11"),
    ] {
        let output = meterd(&server, &["export", words]).await;
        let output_text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output_text.contains(expected_text), "{words}: {output_text}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_export_by_days_uses_each_clients_days_and_rejects_invalid_days() {
    let server = TestServer::start().await;
    boundaries(&server).await;
    let request = |start: &str, end: &str| ExportUsageRequest {
        start_date: start.into(),
        end_date: end.into(),
        format: ExportFormat::Ndjson.into(),
        ..Default::default()
    };
    let count = async |request| {
        let mut pieces = server.usage().export_usage(request).await.unwrap().into_inner();
        let mut last = 0;
        while let Some(piece) = pieces.message().await.unwrap() {
            last = piece.event_count;
        }
        last
    };
    assert_eq!(count(request("2026-11-01", "2026-11-25")).await, 4);
    assert_eq!(count(request("", "2026-10-31")).await, 2);
    assert_eq!(count(request("2026-11-26", "")).await, 2);
    let both = ExportUsageRequest { end_time: Some(timestamp("2026-11-02T00:00:00Z")), ..request("2026-11-01", "") };
    assert_eq!(count(both).await, 2);
    for (start, end, field) in
        [("2026-11-31", "", "start_date"), ("", "yesterday", "end_date"), ("2026-11-02", "2026-11-01", "end_date")]
    {
        let status = server.usage().export_usage(request(start, end)).await.unwrap_err();
        assert!(status.message().contains(field), "{status}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_last_chunk_of_an_export_names_the_services_without_events() {
    let server = TestServer::start().await;
    boundaries(&server).await;
    let services = vec!["sms".into(), "smss".into(), "email".into()];
    let request = ExportUsageRequest { services, ..Default::default() };
    let mut pieces = server.usage().export_usage(request).await.unwrap().into_inner();
    let mut last = pieces.message().await.unwrap().unwrap();
    while let Some(piece) = pieces.message().await.unwrap() {
        last = piece;
    }
    assert_eq!((last.event_count, last.empty_services), (8, vec!["smss".to_string(), "email".to_string()]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_export_is_an_error_with_suggestions_and_leaves_no_file() {
    let server = TestServer::start().await;
    boundaries(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.csv");
    let output = format!("--output={}", file.display());
    for (words, expected_text) in [
        (&["--client=acem"][..], &["no client \"acem\"", "did you mean acme?"][..]),
        (&["--service=smss"], &["--service: service \"smss\" does not exist", "did you mean sms"]),
        // A service with events does not hide the one without.
        (
            &["--service=sms", "--service=emial"],
            &["--service: service \"emial\" does not exist", "did you mean email or"],
        ),
        (&["--service=email"], &["nothing to export", "of service email", "--month 2026-11"]),
        (&["--client=acme", "--month=2026-09"], &["client \"acme\" in 2026-09", "2026-11, 2026-10"]),
        (&["--start=2026-09-01", "--end=2026-09-02"], &["from 2026-09-01 to 2026-09-02", "--allow-empty"]),
        (&["--start=2026-12-02", "--end=2026-12-01"], &["--start 2026-12-02 is after --end 2026-12-01"]),
    ] {
        let output_text = fail(&server, &[&["export", &output], words].concat()).await;
        assert!(
            expected_text.iter().all(|expected_text| output_text.contains(expected_text)),
            "{words:?}: {output_text}"
        );
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "{words:?}");
    }
    let output_text = meterd(&server, &["export", "--service=sms", "--service=email"]).await;
    assert!(
        output_text.status.success()
            && String::from_utf8_lossy(&output_text.stderr).contains("no events of service email")
    );
    succeed(&server, &["export", &output, "--month=2026-09", "--allow-empty"]).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_verification_is_an_error_that_says_what_exists() {
    let server = TestServer::start().await;
    let output_text = fail(&server, &["verify"]).await;
    assert!(output_text.contains("nothing to verify: no client has usage; no usage is recorded yet"), "{output_text}");
    assert_eq!(succeed(&server, &["verify", "--allow-empty"]).await, "nothing to verify: there are no events\n");
    boundaries(&server).await;
    for (words, expected_text) in [
        (&["--client=acem"][..], "client \"acem\" does not exist; did you mean acme?"),
        (&["--client=nosuch"], "client \"nosuch\" does not exist; `meterd clients list`"),
        (
            &["--client=acme", "--month=2026-09"],
            "client \"acme\" has no usage in 2026-09; there is usage in 2026-11, 2026-10",
        ),
        (&["--month=2026-09"], "no client has usage in 2026-09; there is usage in 2026-11, 2026-10"),
    ] {
        let output_text = fail(&server, &[&["verify"], words].concat()).await;
        assert!(output_text.contains(expected_text), "{words:?}: {output_text}");
    }
    let one = succeed(&server, &["verify", "--client=acme", "--month=2026-11"]).await;
    assert_eq!(one, "1 client-months, 3 events: 0 differences\n");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_without_events_are_a_difference() {
    let server = TestServer::start().await;
    let row = "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq)
               VALUES ('acme', 'ghost', '', now(), 7)";
    server.create_client_in_zone("acme", "UTC").await;
    assert_eq!(server.sql(row).await, 1);
    for words in [&["verify"][..], &["verify", "--client=acme"], &["verify", "--allow-empty"]] {
        let output = meterd(&server, words).await;
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.ends_with("0 client-months, 0 events: 1 differences\n"), "{printed}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_summary_is_an_error_in_every_format_unless_allowed() {
    let server = TestServer::start().await;
    for form in [&[][..], &["--csv"], &["--json"]] {
        let summary = [&["summary"], form].concat();
        let output = meterd(&server, &summary).await;
        let output_text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{form:?}: {output_text}");
        assert!(
            output_text.contains("nothing to show: no usage in ") && output_text.contains("no usage is recorded yet"),
            "{output_text}"
        );
    }
    let text = succeed(&server, &["summary", "--allow-empty"]).await;
    assert!(text.starts_with("no usage in "), "{text}");
    assert_eq!(succeed(&server, &["summary", "--allow-empty", "--csv"]).await.lines().count(), 1);
    assert_eq!(succeed(&server, &["summary", "--allow-empty", "--json"]).await, "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_and_migrate_create_no_data_directory_and_verify_rejects_other_databases() {
    let place = tempfile::tempdir().unwrap();
    let run = async |name: &str, directory: &std::path::Path| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
        command.args([name, "--data-dir"]).arg(directory).env_remove("DATABASE_URL");
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let created = place.path().join("data");
    std::fs::create_dir_all(created.join("postgres")).unwrap();
    std::fs::write(created.join("postgres/PG_VERSION"), "17").unwrap();
    let missing = place.path().join("dta");
    let empty = place.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for command in ["verify", "migrate"] {
        let (code, output_text) = run(command, &missing).await;
        assert!(output_text.contains("contains no database of meterd"), "{output_text}");
        assert!(output_text.contains(&created.display().to_string()), "{output_text}");
        assert_eq!((code, missing.exists()), (Some(1), false));
        let (code, output_text) = run(command, &empty).await;
        assert!(code == Some(1) && output_text.contains("contains no database of meterd"), "{output_text}");
        assert!(std::fs::read_dir(&empty).unwrap().next().is_none());
    }

    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    let output = command.arg("verify").env("DATABASE_URL", empty_database().await).output().await.unwrap();
    let output_text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && output_text.contains("no tables of meterd"), "{output_text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_suggest_similar_names_for_an_unknown_client() {
    let server = TestServer::start().await;
    boundaries(&server).await;
    for words in [
        &["usage", "acem"][..],
        &["usage", "acem", "--month=2026-11"],
        &["usage", "acem", "--start=2026-11-01"],
        &["unpriced", "--client=acem"],
        &["summary", "--client=acem"],
        &["rebuild", "--client=acem", "--month=2026-11"],
        &["alerts", "check", "--client=acem"],
        &["clients", "show", "acem"],
        &["clients", "update", "acem", "--name=x"],
    ] {
        let output_text = fail(&server, words).await;
        assert!(output_text.contains("no client \"acem\"; did you mean acme?"), "{words:?}: {output_text}");
        assert_eq!(output_text.matches("no client").count(), 1, "{output_text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_of_an_empty_month_names_the_months_with_usage() {
    let server = TestServer::start().await;
    server.create_client_in_zone("acme", "UTC").await;
    let nothing = succeed(&server, &["usage", "acme"]).await;
    assert!(nothing.contains("no usage\nno usage is recorded yet"), "{nothing}");
    let old = ["2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"].map(|time| event_at("acme", "sms", "1", time));
    server.batch(old.into(), true).await;
    for words in [&["usage", "acme"][..], &["usage", "acme", "--month=2024-04"]] {
        let shown = succeed(&server, words).await;
        assert!(shown.contains("there is usage in 2024-03, 2024-02: use --month 2024-03"), "{shown}");
    }
    let shown = succeed(&server, &["usage", "acme", "--month=2024-02"]).await;
    assert!(shown.contains("acme  2024-02-01 to 2024-02-29 (UTC)") && shown.contains("1 requests"), "{shown}");
    let event = UsageEvent { event_time: None, ..event("acme", "sms", "1") };
    server.track(event).await.unwrap();
    let since = succeed(&server, &["usage", "acme", "--start=2024-03-01", "--json"]).await;
    let since: Value = serde_json::from_str(&since).unwrap();
    assert_eq!(since["totals"]["request_count"], 2);
    server.stop().await;
}
