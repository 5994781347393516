//! The PostgreSQL of a run, embedded or given, and the scratch databases in it. All of them are removed at the end.

use super::args::SetupArgs;
use anyhow::Context;
use meterd_embedded_postgres::{Embedded, EmbeddedSettings};
use meterd_store::bench::floor;
use meterd_store::database::connect;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use std::path::PathBuf;

/// Suffix of the name of the second scratch database.
const SECOND: &str = "_second";

/// Parses a database name that needs no quotes.
pub fn parse_name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let fits = (1..=40).contains(&text.len()) && text.starts_with(|first: char| first.is_ascii_lowercase());
    if plain && fits {
        Ok(text.into())
    } else {
        Err("must be 1 to 40 characters of a-z, 0-9 and _, and start with a letter".into())
    }
}

/// A PostgreSQL, and the name of the scratch database in it.
pub struct Postgres {
    /// URL of any database of the server.
    url: String,
    database: String,
    embedded: Option<(Embedded, PathBuf)>,
    /// Whether the scratch database is kept at the end.
    keeps: bool,
}

impl Postgres {
    /// Starts a durable embedded PostgreSQL in a new directory, unless the arguments name a database.
    pub async fn open(args: &SetupArgs) -> anyhow::Result<Self> {
        let scratch = || format!("meterd_bench_{:016x}", rand::random::<u64>());
        let (database, keeps) = (args.keep.clone().unwrap_or_else(scratch), args.keep.is_some());
        if let Some(url) = &args.database_url {
            return Ok(Self { url: url.clone(), database, embedded: None, keeps });
        }
        let parent = args.data_dir.clone().unwrap_or_else(std::env::temp_dir);
        anyhow::ensure!(
            parent.is_dir(),
            "--data-dir {}: must be a directory; create it, or choose another one",
            parent.display()
        );
        // A new directory: it is removed with its contents at the end.
        let directory = parent.join(database.replace('_', "-"));
        let settings = EmbeddedSettings {
            data_dir: directory.clone(),
            bin_dir: args.postgres_bin_dir.clone(),
            download_url: args.postgres_download_url.clone(),
            download: args.postgres_download,
            durable: true,
        };
        match Embedded::start(&settings).await {
            Ok(embedded) => {
                Ok(Self { url: embedded.url().into(), database, embedded: Some((embedded, directory)), keeps: false })
            }
            Err(error) => {
                drop(std::fs::remove_dir_all(&directory));
                Err(error.into())
            }
        }
    }

    /// Creates the scratch database and returns its URL.
    pub async fn create_database(&self) -> anyhow::Result<String> {
        let mut conn = self.connect().await?;
        floor::create_database(&mut conn, &self.database).await.context("cannot create the scratch database")?;
        conn.close().await?;
        with_database(&self.url, &self.database)
    }

    /// Returns the URL of the scratch database, and whether it existed before.
    pub async fn find_or_create_database(&self) -> anyhow::Result<(String, bool)> {
        let mut conn = self.connect().await?;
        let exists = floor::database_exists(&mut conn, &self.database).await?;
        conn.close().await?;
        Ok(if exists {
            (with_database(&self.url, &self.database)?, true)
        } else {
            (self.create_database().await?, false)
        })
    }

    /// Creates a second scratch database, to compare with, and returns its URL.
    pub async fn create_second_database(&self) -> anyhow::Result<String> {
        let name = self.second_name();
        let mut conn = self.connect().await?;
        floor::drop_database(&mut conn, &name).await?;
        floor::create_database(&mut conn, &name).await.context("cannot create the scratch database")?;
        conn.close().await?;
        with_database(&self.url, &name)
    }

    fn second_name(&self) -> String {
        format!("{}{SECOND}", self.database)
    }

    /// Name of the scratch database. The title of each of its processes contains it.
    pub fn database(&self) -> &str {
        &self.database
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        let options = connect::options(&self.url).context("--database-url")?;
        options
            .connect()
            .await
            .context("--database-url: cannot connect to the database; check host, port, user and password")
    }

    /// Removes everything that was made.
    pub async fn close(self) -> anyhow::Result<()> {
        match self.embedded {
            Some((embedded, directory)) => {
                embedded.stop().await?;
                std::fs::remove_dir_all(&directory).with_context(|| format!("{} is left", directory.display()))
            }
            None => {
                let dropped = async {
                    let mut conn = self.connect().await?;
                    floor::drop_database(&mut conn, &self.second_name()).await?;
                    if !self.keeps {
                        floor::drop_database(&mut conn, &self.database).await?;
                    }
                    anyhow::Ok(conn.close().await?)
                };
                dropped.await.with_context(|| format!("the scratch database {} is left", self.database))
            }
        }
    }
}

/// Replaces the database in a URL.
fn with_database(url: &str, database: &str) -> anyhow::Result<String> {
    let after_scheme = url.find("://").context("--database-url: must start with postgres://")? + 3;
    let (front, query) = url.split_at(url[after_scheme..].find('?').map_or(url.len(), |at| after_scheme + at));
    let authority = front[after_scheme..].find('/').map_or(front, |at| &front[..after_scheme + at]);
    let changed = format!("{authority}/{database}{query}");
    let options: PgConnectOptions = changed.parse()?;
    anyhow::ensure!(
        options.get_database() == Some(database),
        "--database-url: must name its database in the path of the URL only"
    );
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_of_a_url_is_changed_and_nothing_else() {
        for (url, expected) in [
            (
                "postgres://u:p@h:5432/old?host=%2Ftmp%2Fx&sslmode=disable",
                "postgres://u:p@h:5432/new?host=%2Ftmp%2Fx&sslmode=disable",
            ),
            ("postgres://u@h/old", "postgres://u@h/new"),
            ("postgres://u@h", "postgres://u@h/new"),
            ("postgres://u@h?sslmode=disable", "postgres://u@h/new?sslmode=disable"),
        ] {
            assert_eq!(with_database(url, "new").unwrap(), expected);
        }
        assert!(with_database("postgres://u@h/old?dbname=other", "new").is_err());
    }
}
