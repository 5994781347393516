//! `meterd import` of various files with a running server.

use crate::harness::*;
use crate::key_server::*;
use meterd::proto::UsageEvent;
use meterd_domain::access::Scope;
use std::io::Write;
use std::process::Stdio;

/// The result of an import.
pub struct Imported {
    pub is_fine: bool,
    pub summary: serde_json::Value,
    /// Everything that it printed except the summary.
    pub printed: String,
}

impl Imported {
    pub fn count(&self, name: &str) -> u64 {
        self.summary[name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", self.summary))
    }

    /// Returns the numbers of accepted events, duplicates, conflicts, rejected events and unreadable rows.
    pub fn outcomes(&self) -> [u64; 5] {
        ["accepted", "duplicates", "conflicts", "rejected", "unreadable"].map(|name| self.count(name))
    }

    pub fn notes(&self) -> String {
        self.summary["notes"].to_string()
    }
}

pub async fn import_all(server: &TestServer, files: &[(&str, &[u8])], flags: &[&str]) -> Imported {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.current_dir(&folder).arg("import").args(files.iter().map(|(name, _)| name)).arg("--json").args(flags);
    let output = command.env("METERD_SERVER", &server.address).stdin(Stdio::null()).output().await.unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Imported { is_fine: output.status.success(), summary, printed }
}

pub async fn import(server: &TestServer, name: &str, text: impl AsRef<[u8]>, flags: &[&str]) -> Imported {
    import_all(server, &[(name, text.as_ref())], &[&["--backfill"], flags].concat()).await
}

/// Returns the recorded events: client, service, units, and time or day.
pub async fn recorded(server: &TestServer, column: &str) -> Vec<String> {
    let sql = format!(
        "SELECT concat_ws('|', client_id, service, trim_scale(units), {column}) FROM usage_events
         ORDER BY client_id, event_time, units"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&server.pool).await.unwrap()
}

pub const TIME: &str = "to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_without_a_time_zone_is_in_the_clients_time_zone() {
    let server = TestServer::start().await;
    server.create_client_in_zone("la", "America/Los_Angeles").await;
    server.create_client_in_zone("tokyo", "Asia/Tokyo").await;
    let file =
        "client_id,service,units,event_time\nla,sms,5,2026-11-01\ntokyo,sms,5,2026-11-01 00:30\nnew,sms,5,2026-11-01\n";
    let imported = import(&server, "usage.csv", file, &[]).await;
    assert!(imported.is_fine, "{}", imported.printed);
    assert_eq!(
        recorded(&server, "day").await,
        ["la|sms|5|2026-11-01", "new|sms|5|2026-11-01", "tokyo|sms|5|2026-11-01"]
    );
    assert_eq!(imported.count("local_times"), 3);
    assert!(imported.notes().contains("the time zone of each client (America/Los_Angeles, Asia/Tokyo, UTC)"));
    // With another time zone the event has another time, but it is not a second event.
    let other = import(&server, "usage.csv", file, &["--time-zone", "Asia/Tokyo"]).await;
    assert!(other.notes().contains("in Asia/Tokyo (--time-zone)"), "{}", other.notes());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_spreadsheets_and_databases_are_parsed_row_by_row() {
    let server = TestServer::start().await;
    let times = [
        ("46351.5", "2026-11-25T12:00:00"),
        ("20261120", "2026-11-20T00:00:00"),
        ("20261120T101500", "2026-11-20T10:15:00"),
        ("1795428900", "2026-11-23T10:15:00"),
        ("1795428901000", "2026-11-23T10:15:01"),
        ("2026-11-20 10:17:00.123456+00", "2026-11-20T10:17:00"),
        ("2026-11-20 10:17:01+0530", "2026-11-20T04:47:01"),
        ("2026-11-20 10:17:02 UTC", "2026-11-20T10:17:02"),
        ("2026-11-20 10:17:03.5 +0200", "2026-11-20T08:17:03"),
    ];
    let rows: String = times.iter().map(|(time, _)| format!("z,sms,1,{time}\n")).collect();
    let wrong = "z,sms,1,4635\nz,sms,1,20.11.2026\n";
    let file = format!("client_id,service,units,event_time\n{rows}{wrong}");
    let imported = import(&server, "usage.csv", file, &[]).await;
    assert_eq!(imported.outcomes(), [9, 0, 0, 0, 2], "{}", imported.printed);
    let mut expected: Vec<String> = times.iter().map(|(_, time)| format!("z|sms|1|{time}")).collect();
    expected.sort();
    assert_eq!(recorded(&server, TIME).await, expected);
    assert!(
        imported
            .printed
            .contains("usage.csv:11: column event_time: UNREADABLE: is a number that is not a plausible time")
    );
    assert!(imported.printed.contains("as Unix seconds it would be 1970-01-01T01:17:15Z"), "{}", imported.printed);
    assert!(imported.printed.contains("--time-format \"%d.%m.%Y\""), "{}", imported.printed);
    assert_eq!(imported.count("serial_times"), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_row_shows_the_parsed_time() {
    let server = TestServer::start().await;
    let file = "client_id,service,units,event_time\nz,sms,1,36526.5\n";
    let imported = import_all(&server, &[("usage.csv", file.as_bytes())], &[]).await;
    assert!(imported.printed.contains("the time was interpreted as 2000-01-01T12:00:00Z"), "{}", imported.printed);
    assert!(imported.notes().contains("use --backfill"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_units_are_rejected_and_missing_units_are_reported() {
    let server = TestServer::start().await;
    let file = "client_id,service,operation,units,event_time\nz,twilio_voice,outbound,,2026-11-20T10:00:00Z\n";
    let imported = import(&server, "usage.csv", file, &[]).await;
    assert_eq!(imported.outcomes(), [0, 0, 0, 0, 1]);
    assert!(imported.printed.contains("usage.csv:2: column units: UNREADABLE: is empty"), "{}", imported.printed);
    server.assert_exact(0).await;
    let filled = import(&server, "usage.csv", file, &["--empty-units", "0.5"]).await;
    assert_eq!((filled.outcomes(), filled.count("rows_with_filled_units")), ([1, 0, 0, 0, 0], 1));
    let without = file.replace(",units", "").replace(",,", ",");
    let without = import(&server, "usage.csv", without, &["--key-prefix", "other"]).await;
    assert_eq!((without.count("rows_counted_as_one"), without.is_fine), (1, true));
    assert!(without.notes().contains("each counted as 1 unit: 1"), "{}", without.notes());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_columns_are_reported_and_rejected_by_strict_before_sending() {
    let server = TestServer::start().await;
    let row = "acme,openai,chat_completion,gpt-4o-mini,1000000,2026-11-20T10:00:00Z";
    let misspelled = format!("client_id,service,operation,model,input_token,event_time\n{row}\n");
    let unknown = "{\"client_id\":\"acme\",\"service\":\"openai\",\"model\":\"gpt-4o-mini\",\"input_tokens\":1,\"event_time\":\"2026-11-20T10:00:00Z\"}\n\
        {\"client_id\":\"acme\",\"service\":\"openai\",\"model\":\"gpt-4o-mini\",\"prompt_tokens\":1000,\"event_time\":\"2026-11-20T10:00:00Z\"}\n";
    for (name, text, expected) in [
        ("usage.csv", misspelled.as_str(), "column input_token; did you mean input_tokens?"),
        ("usage.ndjson", unknown, "key prompt_tokens; did you mean input_tokens?"),
    ] {
        let strict = import(&server, name, text, &["--strict"]).await;
        assert!(!strict.is_fine);
        let (column, suggested) = expected.split_once(' ').unwrap().1.split_once("; ").unwrap();
        assert!(strict.printed.contains(suggested) && strict.printed.contains("--ignore-column"), "{}", strict.printed);
        assert!(strict.printed.contains(column), "{}", strict.printed);
        server.assert_exact(0).await;
        let logged = import(&server, name, text, &["--dry-run"]).await;
        assert!(logged.is_fine && logged.notes().contains(expected), "{}", logged.notes());
    }
    server.assert_exact(0).await;
    let suggested =
        import(&server, "usage.csv", &misspelled, &["--strict", "--input-tokens-column", "input_token"]).await;
    assert_eq!(
        (suggested.is_fine, &suggested.summary["cost"]["amount"]),
        (true, &"0.15".into()),
        "{}",
        suggested.printed
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_in_all_usual_formats_are_read() {
    let server = TestServer::start().await;
    let csv = "client_id,service,units,event_time\nz,sms,2.5,2026-11-20T10:00:00Z\n";
    let semicolons = "\u{feff}Client ID;SERVICE;\"Units\";Event Time\r\nz;sms;2,5;2026-11-20T10:00:00Z\r\n;;;\r\n";
    let utf_16: Vec<u8> =
        format!("\u{feff}{}", csv.replace(',', "\t")).encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(csv.as_bytes()).unwrap();
    let json = "[{\"client_id\":\"z\",\"service\":\"sms\",\"units\":\"2.5\",\"event_time\":\"2026-11-20T10:00:00Z\"}]";
    let files: [(&str, &[u8], &[&str]); 7] = [
        ("plain.csv", csv.as_bytes(), &[]),
        ("semicolons.csv", semicolons.as_bytes(), &["--decimal-comma"]),
        ("tabs.tsv", &csv.replace(',', "\t").into_bytes(), &[]),
        ("utf16.txt", &utf_16, &[]),
        ("packed.csv.gz", &packed.finish().unwrap(), &[]),
        ("array.json", json.as_bytes(), &[]),
        ("blanks.csv", b"client_id,service,units,event_time\n z, sms ,2.5 , 2026-11-20T10:00:00Z\n", &["--dry-run"]),
    ];
    for (index, (name, bytes, flags)) in files.into_iter().enumerate() {
        let imported = import(&server, name, bytes, flags).await;
        assert!(imported.is_fine, "{name}: {}", imported.printed);
        // All files contain the same event.
        let expected = match (index, name) {
            (0, _) | (_, "blanks.csv") => [1, 0, 0, 0, 0],
            _ => [0, 1, 0, 0, 0],
        };
        assert_eq!(imported.outcomes(), expected, "{name}: {}", imported.printed);
    }
    assert_eq!(recorded(&server, TIME).await, ["z|sms|2.5|2026-11-20T10:00:00"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ambiguous_number_is_rejected_with_both_fixes() {
    let server = TestServer::start().await;
    let file = "client_id;service;units;event_time\nz;sms;2,5;2026-11-20T10:00:00Z\nz;sms;1.234;2026-11-20T10:01:00Z\n";
    let imported = import(&server, "usage.csv", file, &[]).await;
    assert_eq!(imported.outcomes(), [0, 0, 0, 0, 2]);
    assert!(imported.printed.contains("can be 1234 or a number with three decimals"), "{}", imported.printed);
    assert!(imported.printed.contains("--decimal-comma") && imported.printed.contains("--decimal-point"));
    assert!(import(&server, "usage.csv", file, &["--decimal-comma"]).await.is_fine);
    assert_eq!(recorded(&server, "''").await, ["z|sms|2.5|", "z|sms|1234|"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blanks_around_values_do_not_create_another_client() {
    let server = TestServer::start().await;
    let file = "client_id,service,units,event_time\n z,sms,1,2026-11-20T10:00:00Z\nz , sms,1,2026-11-20T10:00:01Z\n";
    let imported = import(&server, "usage.csv", file, &[]).await;
    assert_eq!((imported.outcomes(), imported.count("trimmed_cells")), ([2, 0, 0, 0, 0], 3));
    assert_eq!(imported.summary["new_clients"], serde_json::json!({ "count": 1, "first": ["z"] }));
    assert_eq!(server.sql("SELECT FROM clients").await, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_rows_in_split_files_are_repeats_unless_the_files_are_parts_of_one() {
    let server = TestServer::start().await;
    let part = "client_id,service,units,event_time\nz,sms,1,2026-11-20\nz,sms,1,2026-11-20\n".as_bytes();
    let files = [("part-1.csv", part), ("part-2.csv", part)];
    let imported = import_all(&server, &files, &["--backfill"]).await;
    assert_eq!((imported.is_fine, imported.outcomes()), (true, [2, 2, 0, 0, 0]));
    assert!(
        imported.notes().contains("rows that equal a row of another file of this run (part-1.csv)"),
        "{}",
        imported.notes()
    );
    let strict = import_all(&server, &files, &["--backfill", "--strict"]).await;
    assert!(
        !strict.is_fine && strict.printed.contains("part-2.csv:2") && strict.printed.contains("--split-files"),
        "{}",
        strict.printed
    );
    for expected in [[2, 2, 0, 0, 0], [0, 4, 0, 0, 0]] {
        let parts = import_all(&server, &files, &["--backfill", "--split-files"]).await;
        assert_eq!(parts.outcomes(), expected);
    }
    server.assert_exact(4).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_has_the_same_result_as_the_import() {
    let server = TestServer::start().await;
    let known =
        UsageEvent { idempotency_key: "k1".into(), ..event_at("acme", "twilio_sms", "1", "2026-11-20T10:00:00Z") };
    server.batch(vec![known], true).await;
    let file = "client_id,service,model,units,input_tokens,event_time,idempotency_key\n\
        acme,twilio_sms,,1,,2026-11-20T10:00:00Z,k1\n\
        acme,twilio_sms,,2,,2026-11-20T10:00:00Z,k1\n\
        acme,twilio_sms,,3,,2026-11-20T10:00:00Z,k2\n\
        acme,twilio_sns,,3,,2026-11-20T10:00:00Z,k3\n\
        acme,openai,no-such-model,,5,2026-11-20T10:00:00Z,k4\n\
        globex,twilio_sms,,3,,2026-11-20,\n\
        globex,twilio_sms,,3,,2026-11-20,\n\
        acme,twilio_sms,,3,,2026-11-20T10:00:00Z,k2\n\
        acme,twilio_sms,,x,,2026-11-20T10:00:00Z,k5\n";
    let dry = import(&server, "usage.csv", file, &["--dry-run", "--batch", "2"]).await;
    server.assert_exact(1).await;
    assert_eq!(server.sql("SELECT FROM clients").await, 1);
    let real = import(&server, "usage.csv", file, &["--batch", "2", "--concurrency", "1"]).await;
    assert_eq!(dry.outcomes(), [4, 2, 1, 1, 1], "{}", dry.printed);
    for field in ["accepted", "duplicates", "conflicts", "rejected", "unreadable", "unpriced", "cost", "new_clients"] {
        assert_eq!(dry.summary[field], real.summary[field], "{field}");
    }
    assert_eq!((&dry.summary["cost"]["amount"], dry.count("unpriced")), (&"0.0711".into(), 1));
    assert_eq!((dry.is_fine, real.is_fine), (false, false));
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_is_reported_once_with_the_users_row() {
    let server = TestServer::start().await;
    let file = "Kunde,service,units,event_time\nz,sms,1,2026-11-20\nz,smss,1,2026-11-20\n";
    let imported = import(&server, "usage.csv", file, &["--client-column", "Kunde"]).await;
    let printed: Vec<&str> = imported.printed.lines().filter(|line| line.starts_with("usage.csv:3")).collect();
    assert_eq!(printed.len(), 1, "{}", imported.printed);
    assert!(
        printed[0].starts_with("usage.csv:3: column service: UNKNOWN_SERVICE: there is no service \"smss\""),
        "{}",
        printed[0]
    );
    assert!(!printed[0].contains("events[") && printed[0].matches("smss").count() == 1, "{}", printed[0]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_clients_are_named_and_can_be_rejected() {
    let server = TestServer::start().await;
    server.create_client_in_zone("known", "UTC").await;
    let file = "client_id,service,units,event_time\nknown,sms,1,2026-11-20\nknwon,sms,1,2026-11-20\n";
    let rejection = import(&server, "usage.csv", file, &["--no-new-clients"]).await;
    assert_eq!(rejection.outcomes(), [1, 0, 0, 1, 0]);
    assert!(
        rejection.printed.contains("usage.csv:3: column client_id: CLIENT_NOT_FOUND: client \"knwon\" does not exist")
    );
    assert_eq!(server.sql("SELECT FROM clients").await, 1);
    let strict =
        import(&server, "usage.csv", file.replace("sms", "twilio_sms"), &["--no-new-clients", "--strict"]).await;
    assert!(
        !strict.is_fine && strict.printed.contains("knwon") && strict.printed.contains("nothing was sent"),
        "{}",
        strict.printed
    );
    server.assert_exact(1).await;
    let created = import(&server, "usage.csv", file, &[]).await;
    assert!(created.notes().contains("new clients created: 1 (knwon)"), "{}", created.notes());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_only_the_ingest_scope_can_use_its_clients_time_zones() {
    let key_server = KeyServer::start().await;
    let open = TestServer::replica(&key_server.server.database_url, &[], key_server.server.clock.clone()).await;
    open.create_client_in_zone("la", "America/Los_Angeles").await;
    open.create_client_in_zone("tokyo", "Asia/Tokyo").await;
    let token = key_server.key(Scope::Ingest, &["la"]).await;
    let file = "client_id,service,units,event_time\nla,sms,5,2026-11-01\ntokyo,sms,5,2026-11-01\n";
    let imported = import(&key_server.server, "usage.csv", file, &["--api-key", &token.token]).await;
    assert_eq!(imported.outcomes(), [1, 0, 0, 1, 0], "{}", imported.printed);
    assert!(imported.printed.contains("usage.csv:3: CLIENT_NOT_COVERED"), "{}", imported.printed);
    assert_eq!(recorded(&open, "day").await, ["la|sms|5|2026-11-01"]);
    open.stop().await;
    key_server.server.stop().await;
}
