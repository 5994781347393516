//! `meterd import` of reports, logs and answers of other systems: what is recorded, and what is refused with the way out.

use crate::harness::*;
use crate::importing::*;

/// Rows of these units, one a minute.
fn rows(units: &[&str]) -> String {
    let row = |(minute, units): (usize, &&str)| format!("z,twilio_sms,{units},2026-11-20T10:{minute:02}:00Z,ok\n");
    units.iter().enumerate().map(row).collect()
}

const HEADER: &str = "client_id,service,units,event_time,note\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_behind_a_quote_that_is_never_closed_are_told_and_recorded_once_it_is() {
    let server = TestServer::start().await;
    let good = format!("{HEADER}{}", rows(&["1", "2", "3", "4", "5"]));
    // Quotes of the first and the fourth row: the last one ends a value, or stands within one.
    for end in ["ok\"\n", "\"ok\"\n"] {
        let mut lines: Vec<String> = good.lines().map(|line| format!("{line}\n")).collect();
        lines[1] = lines[1].replace("ok", "\"ok");
        lines[4] = lines[4].replace("ok\n", end);
        let imported = import(&server, "usage.csv", lines.concat(), &[]).await;
        assert!(!imported.is_fine && imported.count("unreadable") == 1, "{}", imported.told);
        assert!(imported.told.contains("usage.csv:2: UNREADABLE: the row"), "{}", imported.told);
        assert_eq!(recorded(&server, "''").await.len(), 1);
    }
    assert_eq!(import(&server, "usage.csv", &good, &[]).await.outcomes(), [4, 1, 0, 0, 0]);
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_put_together_count_their_rows_and_no_headers_or_sums() {
    let server = TestServer::start().await;
    let file = format!("{HEADER}{}{HEADER}{}Total,,3,,\n", rows(&["1"]), rows(&["0", "2"]).split_once('\n').unwrap().1);
    let flags = ["--time", "now", "--service", "twilio_sms"];
    let imported = import(&server, "usage.csv", &file, &flags).await;
    assert_eq!((imported.outcomes(), imported.count("repeated_headers")), ([2, 0, 0, 0, 1], 1), "{}", imported.told);
    assert!(imported.told.contains("the row has the label \"Total\""), "{}", imported.told);
    assert_eq!(imported.summary["new_clients"], serde_json::json!({ "count": 1, "first": ["z"] }));
    assert_eq!(imported.summary["cost"]["amount"], "0.0237");
    let other = format!("{HEADER}{}service,client_id,units,event_time,note\n", rows(&["9"]));
    let other = import(&server, "usage.csv", other, &[]).await;
    assert!(!other.is_fine && other.told.contains("columns in another order"), "{}", other.told);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_twice_in_an_object_is_refused() {
    let server = TestServer::start().await;
    let file = "{\"client_id\":\"z\",\"service\":\"twilio_sms\",\"units\":1,\"units\":100,\"event_time\":\"2026-11-20\"}\n\
        {\"client_id\":\"z\",\"service\":\"twilio_sms\",\"units\":1,\"event_time\":\"2026-11-20\"}\n";
    let imported = import(&server, "usage.ndjson", file, &[]).await;
    assert_eq!(imported.outcomes(), [1, 0, 0, 0, 1]);
    assert!(imported.told.contains("has the key \"units\" twice"), "{}", imported.told);
    assert_eq!(recorded(&server, "''").await, ["z|twilio_sms|1|"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_model_is_charged_by_the_usage_within_it() {
    let server = TestServer::start().await;
    let file = r#"{"id":"c1","created":1795132800,"model":"gpt-4o-mini","usage":{"prompt_tokens":1000,"completion_tokens":500,"prompt_tokens_details":{"cached_tokens":400}}}"#;
    let flags = ["--client", "z", "--service", "openai", "--time-column", "created", "--key-column", "id"];
    let noted = import(&server, "calls.ndjson", file, &[&flags[..], &["--dry-run"]].concat()).await;
    for flag in ["--input-tokens-column", "--output-tokens-column", "--cached-input-tokens-column"] {
        assert!(noted.notes().contains(flag), "{flag}: {}", noted.notes());
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
    assert_eq!((imported.is_fine, &imported.summary["cost"]["amount"]), (true, &"0.00042".into()), "{}", imported.told);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_messages_with_quoted_line_ends_is_charged_by_its_segments() {
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
async fn a_column_with_several_forms_of_times_is_read_with_several_formats() {
    let server = TestServer::start().await;
    let file = "client_id,service,units,event_time\nz,twilio_sms,1,11/20/2026 10:00\nz,twilio_sms,1,20.11.2026\n\
        z,twilio_sms,1,2026-11-20T12:00:00\n";
    let formats = ["%m/%d/%Y %H:%M", "%d.%m.%Y", "%Y-%m-%dT%H:%M:%S"];
    let flags: Vec<&str> = formats.iter().flat_map(|format| ["--time-format", format]).collect();
    let imported = import(&server, "usage.csv", file, &flags).await;
    assert!(imported.is_fine, "{}", imported.told);
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
async fn a_file_without_the_columns_is_refused_with_all_that_it_lacks() {
    let server = TestServer::start().await;
    let imported = import(&server, "cost.csv", "stripe_customer_id,event_name,value\na,b,1\n", &[]).await;
    for flag in ["--client-column", "--service-column", "--time-column"] {
        assert!(imported.told.contains(flag), "{flag}: {}", imported.told);
    }
    assert_eq!(imported.told.matches("(columns: ").count(), 1, "{}", imported.told);
    server.stop().await;
}
