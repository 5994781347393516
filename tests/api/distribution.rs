//! The schema and the functions of the write path meet the rules of Citus, so that the tables of clients can be distributed.

use crate::harness::*;
use meterd_store::database::distribution::{DISTRIBUTED_TABLES, TRIGGERS};
use std::collections::{BTreeMap, BTreeSet};

/// Tables with a column `client_id` that stay on the coordinator.
const LOCAL_TABLES: [&str; 10] = [
    "alert_feed",
    "alert_policies",
    "alerts",
    "notification_channels",
    "notifications",
    "prices",
    "pricing_tasks",
    "reprice_differences",
    "reprice_runs",
    "reprice_tiers",
];

/// Returns the rows of a query with one text column.
async fn texts(server: &TestServer, query: &str) -> Vec<String> {
    sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned())).fetch_all(&server.pool).await.unwrap()
}

#[tokio::test]
async fn each_table_of_clients_is_either_distributed_or_local() {
    let server = TestServer::start().await;
    let with_client = texts(
        &server,
        "SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'client_id'
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition",
    )
    .await;
    let decided: BTreeSet<&str> = DISTRIBUTED_TABLES.into_iter().chain(LOCAL_TABLES).collect();
    assert_eq!(with_client.iter().map(String::as_str).collect::<BTreeSet<_>>(), decided);
    server.stop().await;
}

#[tokio::test]
async fn distributed_tables_have_the_client_in_each_unique_key_and_no_foreign_key_or_other_trigger() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // With partitions, whose names begin with that of their table.
    let tables = DISTRIBUTED_TABLES.map(|table| format!("c.relname ~ '^{table}(_[0-9_]+)?$'")).join(" OR ");
    let keys = texts(
        &server,
        &format!(
            "SELECT c.relname || ' ' || i.indexrelid::regclass || ' ' ||
                    EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'client_id' AND a.attnum = ANY (i.indkey))
             FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE i.indisunique AND ({tables})"
        ),
    )
    .await;
    assert!(keys.len() >= DISTRIBUTED_TABLES.len() && keys.iter().any(|key| key.starts_with("idempotency_keys_0 ")));
    assert!(keys.iter().all(|key| key.ends_with(" true")), "{keys:?}");
    let foreign = format!(
        "SELECT conname::text FROM pg_constraint k JOIN pg_class c ON c.oid IN (k.conrelid, k.confrelid)
         WHERE k.contype = 'f' AND ({tables})"
    );
    assert_eq!(texts(&server, &foreign).await, [""; 0]);
    let triggers = format!(
        "SELECT c.relname || ' ' || t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
         WHERE NOT t.tgisinternal AND ({tables})"
    );
    let triggers: BTreeSet<String> = texts(&server, &triggers).await.into_iter().collect();
    assert_eq!(triggers, TRIGGERS.map(|(table, trigger)| format!("{table} {trigger}")).into_iter().collect());
    server.stop().await;
}

/// Returns the statements of a function, without comments, in lower case.
async fn statements(server: &TestServer, function: &str) -> Vec<String> {
    let source =
        "SELECT string_agg(prosrc, ';') FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = $1";
    let source: String = sqlx::query_scalar(source).bind(function).fetch_one(&server.pool).await.unwrap();
    let lines = source.lines().map(|line| line.split("--").next().unwrap());
    lines.collect::<Vec<_>>().join("\n").to_lowercase().split(';').map(String::from).collect()
}

#[tokio::test]
async fn each_statement_of_the_write_path_meets_the_rules_of_citus() {
    let server = TestServer::start().await;
    let mut writes: BTreeMap<&str, usize> = BTreeMap::new();
    let functions = [
        "add_day_measures",
        "add_new_usage",
        "apply_pending_usage",
        "change_usage",
        "claim_keys",
        "correct_usage",
        "month_services_of",
        "record_events",
    ];
    for function in functions {
        for statement in statements(&server, function).await {
            let words: Vec<&str> =
                statement.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).collect();
            // The number of rows is wrong after a conflict.
            assert!(!words.contains(&"diagnostics"), "{function}: {statement}");
            // A common table expression may write only if it is the only write of the statement. Citus then runs it first.
            let writes_in_cte = words.contains(&"with") && words.contains(&"returning");
            assert!(!writes_in_cte || !words.contains(&"insert"), "{function}: {statement}");
            let changed: BTreeSet<&str> =
                words.windows(2).filter(|pair| pair[0] == "into").map(|pair| pair[1]).collect();
            let changed: Vec<&str> = changed.into_iter().filter(|table| DISTRIBUTED_TABLES.contains(table)).collect();
            assert!(changed.len() <= 1, "{function} writes to several tables at once: {statement}");
            *writes.entry(function).or_default() += changed.len();
            // A function in DO UPDATE must be immutable.
            let update = statement.split_once("do update set").map_or("", |(_, update)| update);
            assert!(!update.contains("now()"), "{function}: {statement}");
        }
    }
    assert_eq!(
        writes,
        BTreeMap::from([
            ("add_day_measures", 1),
            // Two functions each: the other ones are for replicas of the previous release.
            ("add_new_usage", 4),
            ("apply_pending_usage", 0),
            ("change_usage", 4),
            ("claim_keys", 1),
            ("correct_usage", 0),
            ("month_services_of", 0),
            ("record_events", 2),
        ])
    );
    server.stop().await;
}

#[tokio::test]
async fn tables_cannot_be_distributed_without_citus() {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command
        .args(["migrate", "--distribute", "--allow-non-durable-database"])
        .env("DATABASE_URL", fresh_database().await);
    let output = command.output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("--distribute: the database has no Citus"), "{errors}");
}
