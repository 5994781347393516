//! Checks that docs/schema.md names exactly the tables and columns of the database.

use crate::harness::TestServer;
use std::collections::BTreeMap;

/// Returns the tables of the page with their columns. Tables are headings of the third level. Columns are in backquotes
/// in the last paragraph before the next heading.
fn documented(page: &str) -> BTreeMap<String, Vec<String>> {
    let sections = page.split("\n### ").skip(1);
    sections
        .map(|section| {
            let section = section.split("\n## ").next().unwrap().trim();
            let (table, text) = section.split_once('\n').expect("a table has a description");
            let columns = text.rsplit("\n\n").next().unwrap();
            let columns = columns.split('`').skip(1).step_by(2).map(String::from).collect();
            (table.to_owned(), columns)
        })
        .collect()
}

#[tokio::test]
async fn the_schema_page_names_every_table_and_column() {
    let server = TestServer::start().await;
    let there: Vec<(String, Vec<String>)> = sqlx::query_as(
        "SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum)
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND c.relname <> '_sqlx_migrations'
         GROUP BY c.relname",
    )
    .fetch_all(&server.pool)
    .await
    .unwrap();
    let page = include_str!("../../docs/schema.md");
    assert_eq!(
        documented(page),
        there.into_iter().collect(),
        "docs/schema.md (left) differs from the migrations (right)"
    );
}
