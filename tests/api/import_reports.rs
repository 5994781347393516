//! `meterd import` of reports, logs and responses of other systems.

use crate::harness::*;
use crate::import_files::*;

/// Returns rows with these units, one per minute.
fn rows(units: &[&str]) -> String {
    let row = |(minute, units): (usize, &&str)| format!("z,twilio_sms,{units},2026-11-20T10:{minute:02}:00Z,ok\n");
    units.iter().enumerate().map(row).collect()
}

const HEADER: &str = "client_id,service,units,event_time,note\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_after_an_unclosed_quote_are_reported_and_recorded_after_the_fix() {
    let server = TestServer::start().await;
    let good = format!("{HEADER}{}", rows(&["1", "2", "3", "4", "5"]));
    // Quotes in the first and the fourth row. The last quote ends a value or is within one.
    for end in ["ok\"\n", "\"ok\"\n"] {
        let mut lines: Vec<String> = good.lines().map(|line| format!("{line}\n")).collect();
        lines[1] = lines[1].replace("ok", "\"ok");
        lines[4] = lines[4].replace("ok\n", end);
        let imported = import(&server, "usage.csv", lines.concat(), &[]).await;
        assert!(!imported.is_fine && imported.count("unreadable") == 1, "{}", imported.printed);
        assert!(imported.printed.contains("usage.csv:2: UNREADABLE: the row"), "{}", imported.printed);
        assert_eq!(recorded(&server, "''").await.len(), 1);
    }
    assert_eq!(import(&server, "usage.csv", &good, &[]).await.outcomes(), [4, 1, 0, 0, 0]);
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concatenated_files_count_their_rows_but_not_headers_or_sums() {
    let server = TestServer::start().await;
    let file = format!("{HEADER}{}{HEADER}{}Total,,3,,\n", rows(&["1"]), rows(&["0", "2"]).split_once('\n').unwrap().1);
    let flags = ["--time", "now", "--service", "twilio_sms"];
    let imported = import(&server, "usage.csv", &file, &flags).await;
    assert_eq!((imported.outcomes(), imported.count("repeated_headers")), ([2, 0, 0, 0, 1], 1), "{}", imported.printed);
    assert!(imported.printed.contains("the row has the label \"Total\""), "{}", imported.printed);
    assert_eq!(imported.summary["new_clients"], serde_json::json!({ "count": 1, "first": ["z"] }));
    assert_eq!(imported.summary["cost"]["amount"], "0.0237");
    let other = format!("{HEADER}{}service,client_id,units,event_time,note\n", rows(&["9"]));
    let other = import(&server, "usage.csv", other, &[]).await;
    assert!(!other.is_fine && other.printed.contains("columns in another order"), "{}", other.printed);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_with_a_duplicate_key_is_rejected() {
    let server = TestServer::start().await;
    let file = "{\"client_id\":\"z\",\"service\":\"twilio_sms\",\"units\":1,\"units\":100,\"event_time\":\"2026-11-20\"}\n\
        {\"client_id\":\"z\",\"service\":\"twilio_sms\",\"units\":1,\"event_time\":\"2026-11-20\"}\n";
    let imported = import(&server, "usage.ndjson", file, &[]).await;
    assert_eq!(imported.outcomes(), [1, 0, 0, 0, 1]);
    assert!(imported.printed.contains("has the key \"units\" twice"), "{}", imported.printed);
    assert_eq!(recorded(&server, "''").await, ["z|twilio_sms|1|"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_of_a_model_is_charged_by_its_usage_object() {
    let server = TestServer::start().await;
    let file = r#"{"id":"c1","created":1795132800,"model":"gpt-4o-mini","usage":{"prompt_tokens":1000,"completion_tokens":500,"prompt_tokens_details":{"cached_tokens":400}}}"#;
    let flags = ["--client", "z", "--service", "openai", "--time-column", "created", "--key-column", "id"];
    let logged = import(&server, "calls.ndjson", file, &[&flags[..], &["--dry-run"]].concat()).await;
    for flag in ["--input-tokens-column", "--output-tokens-column", "--cached-input-tokens-column"] {
        assert!(logged.notes().contains(flag), "{flag}: {}", logged.notes());
    }
    let tokens = [
        "--input-tokens-column",
        "usage.prompt_tokens",
        "--output-tokens-column",
        "usage.completion_tokens",
        "--cached-input-tokens-column",
        "usage.prompt_tokens_details.cached_tokens",
    ];
    let imported = import(&server, "calls.ndjson", file, &[&flags[..], &tokens].concat()).await;
    // 600 fresh and 400 cached input tokens, 500 output tokens.
    assert_eq!(
        (imported.is_fine, &imported.summary["cost"]["amount"]),
        (true, &"0.00042".into()),
        "{}",
        imported.printed
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_log_with_line_breaks_in_quotes_is_charged_by_segments() {
    let server = TestServer::start().await;
    let file = "\"From\",\"Body\",\"Status\",\"SentDate\",\"NumSegments\",\"Sid\"\n\
        \"+1501\",\"Hi, your code\nis 1234\",\"delivered\",\"2026-11-20T18:15:23Z\",\"2\",\"SM1\"\n\
        \"+1501\",\"Your code is \"\"9\"\"\",\"delivered\",\"2026-11-20T18:16:23Z\",\"1\",\"SM2\"\n";
    let flags = [
        "--client",
        "z",
        "--service",
        "twilio_sms",
        "--units-column",
        "NumSegments",
        "--time-column",
        "SentDate",
        "--key-column",
        "Sid",
    ];
    let imported = import(&server, "log.csv", file, &flags).await;
    assert_eq!((imported.outcomes(), &imported.summary["cost"]["amount"]), ([2, 0, 0, 0, 0], &"0.0237".into()));
    assert_eq!(import(&server, "log.csv", file, &flags).await.outcomes(), [0, 2, 0, 0, 0]);
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_with_several_time_formats_is_parsed_with_several_formats() {
    let server = TestServer::start().await;
    let file = "client_id,service,units,event_time\nz,twilio_sms,1,11/20/2026 10:00\nz,twilio_sms,1,20.11.2026\n\
        z,twilio_sms,1,2026-11-20T12:00:00\n";
    let formats = ["%m/%d/%Y %H:%M", "%d.%m.%Y", "%Y-%m-%dT%H:%M:%S"];
    let flags: Vec<&str> = formats.iter().flat_map(|format| ["--time-format", format]).collect();
    let imported = import(&server, "usage.csv", file, &flags).await;
    assert!(imported.is_fine, "{}", imported.printed);
    assert_eq!(
        recorded(&server, TIME).await,
        [
            "z|twilio_sms|1|2026-11-20T00:00:00",
            "z|twilio_sms|1|2026-11-20T10:00:00",
            "z|twilio_sms|1|2026-11-20T12:00:00"
        ]
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_required_columns_is_rejected_with_all_missing_ones() {
    let server = TestServer::start().await;
    let imported = import(&server, "cost.csv", "stripe_customer_id,event_name,value\na,b,1\n", &[]).await;
    for flag in ["--client-column", "--service-column", "--time-column"] {
        assert!(imported.printed.contains(flag), "{flag}: {}", imported.printed);
    }
    assert_eq!(imported.printed.matches("(columns: ").count(), 1, "{}", imported.printed);
    server.stop().await;
}
