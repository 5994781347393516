//! Fills a database for `meterd-bench` with the rows that meterd writes for live events: keys, events, days, months and
//! summaries. Only the benchmarks use it.

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// Tables that are filled without their indexes. Creating the indexes afterwards is many times faster and has the same
/// result.
const TABLES: [&str; 3] = ["usage_events", "idempotency_keys", "usage_days"];

/// Templates of events, one vector per column. They are priced; their other fields are as a client sends them.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub units: Vec<BigDecimal>,
    pub input_tokens: Vec<i64>,
    pub output_tokens: Vec<i64>,
    pub charges: Vec<BigDecimal>,
    pub price_ids: Vec<i64>,
    pub payload_hashes: Vec<Vec<u8>>,
}

/// A range of events on one UTC day, which is also the day of their clients. Events are numbered from `start_time`; the
/// range has the numbers from `first` to before `end`.
#[derive(Clone, Debug)]
pub struct EventRange {
    /// Prefix of the client ids.
    pub prefix: String,
    pub clients: i64,
    /// Time of event 0.
    pub start_time: DateTime<Utc>,
    /// Time between two events, in microseconds.
    pub step_us: i64,
    pub first: i64,
    pub end: i64,
    /// Number of kinds that each client uses. Clients next to each other use different kinds.
    pub kinds_each: i64,
    /// The generation of the keys.
    pub key_generation: i32,
}

/// Returns whether there are no events.
pub async fn is_empty(conn: &mut PgConnection) -> crate::Result<bool> {
    sqlx::query_scalar!(r#"SELECT NOT EXISTS (SELECT 1 FROM usage_events LIMIT 1) AS "empty!""#)
        .fetch_one(conn)
        .await
        .map_err(Into::into)
}

/// Returns the time of the newest event of the first ten clients with this prefix.
pub async fn last_event_time(conn: &mut PgConnection, prefix: &str) -> crate::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        "SELECT max(event_time) FROM usage_events WHERE client_id BETWEEN $1 || '-000000' AND $1 || '-000009'",
        prefix
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// Drops the indexes of the tables to fill. Returns the statements that create them again.
pub async fn drop_indexes(conn: &mut PgConnection) -> crate::Result<Vec<String>> {
    let tables: Vec<String> = TABLES.map(String::from).into();
    let rows = sqlx::query!(
        r#"SELECT i.indrelid::regclass::text AS "table!", i.indexrelid::regclass::text AS "index!",
               pg_get_indexdef(i.indexrelid) AS "definition!", c.conname::text AS "constraint?",
               pg_get_constraintdef(c.oid) AS "constraint_definition?"
           FROM pg_index i LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.conrelid = i.indrelid
           WHERE (i.indrelid::regclass::text = ANY($1)
                  OR i.indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'idempotency_keys'::regclass))
             AND NOT EXISTS (SELECT FROM pg_inherits p WHERE p.inhrelid = i.indexrelid) -- dropped with that of the parent
           ORDER BY i.indrelid, i.indexrelid"#,
        &tables
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut statements = vec![];
    for row in rows {
        let table = row.table;
        let (drop, make) = match (row.constraint, row.constraint_definition) {
            (Some(name), Some(definition)) => (
                format!("ALTER TABLE {table} DROP CONSTRAINT {name}"),
                format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"),
            ),
            // `ONLY` would create the index on the parent table without its partitions.
            _ => (format!("DROP INDEX {}", row.index), row.definition.replace(" ON ONLY ", " ON ")),
        };
        conn.execute(AssertSqlSafe(drop)).await?;
        statements.push(make);
    }
    Ok(statements)
}

/// Creates an index again.
pub async fn make_index(conn: &mut PgConnection, statement: &str) -> crate::Result<()> {
    conn.execute(AssertSqlSafe(statement.to_string())).await.map(drop).map_err(Into::into)
}

/// Creates `clients` clients with this prefix, in the time zone UTC.
pub async fn insert_clients(conn: &mut PgConnection, prefix: &str, clients: i64) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO clients (client_id, time_zone)
         SELECT $1 || '-' || lpad(n::text, 6, '0'), 'UTC' FROM generate_series(0::bigint, $2::bigint - 1) AS n ON CONFLICT DO NOTHING",
        prefix,
        clients
    )
    .execute(conn)
    .await
    .map(drop).map_err(Into::into)
}

/// Inserts the events of a range in order of time, their keys and their days. The key of an event is its id.
pub async fn insert_range(conn: &mut PgConnection, kinds: &Kinds, range: &EventRange) -> crate::Result<()> {
    sqlx::query_file!(
        "sql/bench/preload_range.sql",
        range.prefix,
        range.clients,
        range.start_time,
        range.step_us,
        range.first,
        range.end,
        range.kinds_each,
        &kinds.services,
        &kinds.operations,
        &kinds.models,
        &kinds.units,
        &kinds.input_tokens,
        &kinds.output_tokens,
        &kinds.charges,
        &kinds.price_ids,
        &kinds.payload_hashes,
        range.key_generation
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Removes the constraint that closes generation 0, because the floors write their keys to it. Their client ids are not
/// used through meterd, so the closed generation gets no key that meterd could look up.
pub async fn let_floors_write_keys(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("ALTER TABLE idempotency_keys_0 DROP CONSTRAINT IF EXISTS idempotency_keys_0_is_closed").await?;
    Ok(())
}

/// Computes the month services from the days, and the months from the month services. Marks no summary as stale.
pub async fn insert_months(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO usage_month_services (client_id, month, service, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count)
         SELECT client_id, date_trunc('month', day::timestamp)::date, service, sum(request_count), sum(units),
             sum(input_tokens), sum(output_tokens), sum(cached_input_tokens), sum(cost), sum(unpriced_event_count)
         FROM usage_days GROUP BY 1, 2, 3"
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "INSERT INTO usage_months (client_id, month, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count)
         SELECT client_id, month, sum(request_count), sum(units), sum(input_tokens), sum(output_tokens),
             sum(cached_input_tokens), sum(cost), sum(unpriced_event_count)
         FROM usage_month_services GROUP BY 1, 2"
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Writes the summaries of all months, as the summary job does.
pub async fn insert_summaries(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO monthly_summaries (client_id, month, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count, messages, ai_calls, voice_minutes, services)
         SELECT client_id, month, request_count, units, input_tokens, output_tokens, cached_input_tokens, cost,
             unpriced_event_count, messages, ai_calls, voice_minutes, services
         FROM live_summaries"
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Runs VACUUM (ANALYZE) on the whole database, as autovacuum would do over time.
pub async fn tidy(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("VACUUM (ANALYZE)").await.map(drop).map_err(Into::into)
}
