//! Readiness probes of the server.

use crate::harness::*;
use crate::http;

/// Returns the status and the body of /readyz.
async fn readyz(server: &TestServer) -> (u16, String) {
    let answer = http::get(&server.http_address, "/readyz").await;
    (answer.status, answer.text().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_database_is_reported_as_not_ready_until_it_accepts_writes() {
    let server = TestServer::start().await;
    wait_until(async || readyz(&server).await == (200, "ready\n".into())).await;
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&server.pool).await.unwrap();
    // Open sessions do not change, but new ones are read-only.
    server.sql(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    let read_only = "not ready: the database takes no writes: default_transaction_read_only is on\n";
    wait_until(async || readyz(&server).await == (503, read_only.into())).await;
    server.sql(&format!("ALTER DATABASE {database} RESET default_transaction_read_only")).await;
    wait_until(async || readyz(&server).await.0 == 200).await;
    // No session of the time between is left, so each of these writes succeeds.
    for number in 0..20 {
        server.create_client_in_zone(&format!("client-{number}"), "UTC").await;
    }
    server.stop().await;
}
