//! The database that the settings name: somebody's, or our own.

use crate::config::{DatabaseSettings, hints};
use anyhow::Context as _;
use meterd_embedded_postgres::Embedded;
use meterd_store::{cause, connect};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use std::path::Path;

/// A database that is open.
pub struct Database {
    pub options: PgConnectOptions,
    embedded: Option<Embedded>,
}

impl Database {
    /// Opens the database that the settings name, starting our own if they name none.
    pub async fn open(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        let (embedded, url) = match &settings.database_url {
            Some(url) => (None, url.reveal().to_string()),
            None => {
                let embedded = Embedded::start(&settings.embedded()).await?;
                let url = embedded.url().to_string();
                (Some(embedded), url)
            }
        };
        let options = connect::options(&url)
            .map_err(|error| anyhow::anyhow!("DATABASE_URL (--database-url): {}", cause::cause(&error)))?;
        Ok(Self { options, embedded })
    }

    /// Opens it for a command: as it is beside a running server, else as [`Self::open`] does.
    pub async fn open_beside(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        if settings.database_url.is_none()
            && let Some(url) = meterd_embedded_postgres::attach(&settings.data_dir).await?
        {
            return Ok(Self { options: connect::options(&url)?, embedded: None });
        }
        let database = Self::open(settings).await?;
        // So that one that cannot be reached is named with the fix, and not as a pool that has timed out.
        let opened = connect::open(&database.options).await.map_err(anyhow::Error::from);
        drop(database.explained(opened)?);
        Ok(database)
    }

    /// The result of work on it. An error that is the database's says what is wrong with it, once, and what to do.
    pub fn explained<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(|error| hints::by_url_place(cause::explained(error, &self.options)))
    }

    /// Opens it for a command that only reads: as [`Self::open_beside`] does, but makes no data directory where there is none.
    pub async fn open_existing(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        if settings.database_url.is_none() {
            check_made(&settings.data_dir, "")?;
        }
        Self::open_beside(settings).await
    }

    /// Opens it as [`Self::open`] does. Without a database URL, the data directory must contain a database. Otherwise a
    /// forgotten URL would create a new, empty one.
    pub async fn open_made(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        if settings.database_url.is_none() {
            check_made(&settings.data_dir, "")?;
        }
        Self::open(settings).await
    }

    /// Opens it for a command that may be the first on it. In the default data directory, in one that was made for it, or if that
    /// is allowed, there may be no database yet: then it says that it makes one. A directory that is not there is misspelt.
    pub async fn open_first(settings: &DatabaseSettings, may_be_new: bool) -> anyhow::Result<Self> {
        if settings.database_url.is_none() {
            let data_dir = &settings.data_dir;
            let may_be_new =
                may_be_new || data_dir.is_dir() || *data_dir == meterd_embedded_postgres::default_data_dir();
            match check_made(data_dir, " without --new-database") {
                Err(error) if !may_be_new => return Err(error),
                Err(_) => eprintln!("note: making a new database in {}", data_dir.display()),
                Ok(()) => {}
            }
        }
        Self::open_beside(settings).await
    }

    /// Where the data is, for people; without a password.
    pub fn describe(&self) -> String {
        match &self.embedded {
            Some(embedded) => {
                let how = if embedded.reattached() { "found running" } else { "started" };
                format!("{} (embedded PostgreSQL {}, {how})", embedded.data_dir().display(), embedded.version())
            }
            None => cause::place(&self.options),
        }
    }

    /// Leaves somebody's database, stops our own.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Some(embedded) = self.embedded {
            embedded.stop().await?;
        }
        Ok(())
    }

    /// Our own server, if it is.
    pub fn embedded(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }
}

/// Refuses a data directory in which no meterd has made a database, and names those beside it that have one.
fn check_made(data_dir: &Path, but: &str) -> anyhow::Result<()> {
    let shown = data_dir.display();
    let made = meterd_embedded_postgres::is_made(data_dir)
        .with_context(|| format!("the data directory {shown} cannot be read: run this as the user that runs meterd"))?;
    if made {
        return Ok(());
    }
    let beside: Vec<String> =
        meterd_embedded_postgres::made_beside(data_dir).iter().map(|path| path.display().to_string()).collect();
    let hint = match &beside[..] {
        [] => String::new(),
        paths => format!("; there is one in {}", paths.join(" and in ")),
    };
    anyhow::bail!(
        "no meterd has made a database in {shown}, and this command makes none{but}: check --data-dir (METERD_DATA_DIR){hint}"
    )
}

/// The pool of a command that reads the database beside a running server.
pub fn command_pool(options: &PgConnectOptions) -> PgPool {
    // What it asks takes as long as it takes, and is no news to who waits for it.
    connect::pool(options.clone().disable_statement_logging(), 2)
}
