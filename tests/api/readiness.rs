//! What the server says of itself to probes.

use crate::harness::*;
use crate::http;

/// What /readyz says, with its status.
async fn readyz(server: &TestServer) -> (u16, String) {
    let answer = http::get(&server.http_address, "/readyz").await;
    (answer.status, answer.text().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_not_ready_and_is_named_until_it_takes_them_again() {
    let server = TestServer::start().await;
    eventually(async || readyz(&server).await == (200, "ready\n".into())).await;
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&server.pool).await.unwrap();
    // Sessions that are open go on as they are; those that begin from now on are read-only.
    server.sql(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    let read_only = "not ready: the database takes no writes: default_transaction_read_only is on\n";
    eventually(async || readyz(&server).await == (503, read_only.into())).await;
    server.sql(&format!("ALTER DATABASE {database} RESET default_transaction_read_only")).await;
    eventually(async || readyz(&server).await.0 == 200).await;
    // No session of the time between is left: each of these writes goes well.
    for number in 0..20 {
        server.client_in(&format!("client-{number}"), "UTC").await;
    }
    server.stop().await;
}
