//! The secrets of API keys are stored and printed nowhere.

use crate::harness::*;
use crate::key_server::*;
use crate::keys::new_key;
use meterd::proto::{Scope as Scope_, *};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tonic::transport::Channel;

/// Returns the contents of all tables as text.
async fn dump(server: &TestServer) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('information_schema', 'pg_catalog')",
    )
    .fetch_all(&server.pool)
    .await
    .unwrap();
    assert!(tables.len() > 20, "{tables:?}");
    let mut text = String::new();
    for table in tables {
        let sql = format!("SELECT COALESCE(string_agg(t::text, ' '), '') FROM {table} AS t");
        let rows: String = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&server.pool).await.unwrap();
        text += &rows;
    }
    text
}

/// Returns a secret in all formats in which it could be stored.
fn forms_of(token: &str) -> [String; 4] {
    use base64::Engine;
    let secret = token.rsplit('_').next().unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [
        secret.into(),
        secret.to_uppercase(),
        hex(secret.as_bytes()),
        base64::engine::general_purpose::STANDARD.encode(secret),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_in_no_table_log_or_debug_output() {
    let key_server = KeyServer::start().await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(["serve", "--auth=keys", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--log=trace,h2=trace"]);
    command.args(["--allow-non-durable-database"]).env("DATABASE_URL", &key_server.server.database_url);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let log = tokio::spawn(async move {
        let mut log = vec![];
        stderr.read_to_end(&mut log).await.unwrap();
        String::from_utf8(log).unwrap()
    });
    let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
    let address = loop {
        let line = stdout.next_line().await.unwrap().expect("the server prints its addresses");
        if let Some(rest) = line.trim().strip_prefix("gRPC") {
            break format!("http://{}", rest.split_whitespace().next().unwrap());
        }
    };
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut keys = meterd::proto::key_service_client::KeyServiceClient::with_interceptor(
        channel.clone(),
        key_server.admin.clone(),
    );
    let request = CreateApiKeyRequest { api_key: Some(new_key(Scope_::Read, &["acme"])), request_id: "r1".into() };
    let created = keys.create_api_key(request.clone()).await.unwrap().into_inner();
    keys.create_api_key(request).await.unwrap();
    let key_id = created.api_key.as_ref().unwrap().key_id.clone();
    let request = RotateApiKeyRequest { key_id, request_id: "r2".into(), ..Default::default() };
    let rotated = keys.rotate_api_key(request).await.unwrap().into_inner();
    let shown = format!("{created:?} {created:#?} {rotated:?} {rotated:#?}");
    let strange = meterd_engine::auth::token::new().token;
    let presented = [&created.token, &rotated.token, &key_server.admin.token, &strange];
    for token in presented {
        for value in [format!("Bearer {token}"), format!("Bearer {token}x"), format!("Basic {token}")] {
            drop(call(&channel, "AlertService/ListAlerts", "{}", &[value]).await);
        }
    }
    let pid = process.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(process.wait().await.unwrap().success());
    let (log, tables) = (log.await.unwrap(), dump(&key_server.server).await);
    assert!(log.contains("TRACE") && log.contains("ListAlerts") && tables.contains("billing"));
    for (place, text) in [("log", &log), ("database", &tables), ("Debug", &shown)] {
        for token in presented {
            for form in forms_of(token) {
                let at = text.find(&form);
                assert!(at.is_none(), "in the {place}: {}", &text[at.unwrap().saturating_sub(300)..at.unwrap() + 20]);
            }
        }
    }
    key_server.server.stop().await;
}
