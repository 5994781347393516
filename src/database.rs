//! The database of the settings: the one of a database URL, or the embedded PostgreSQL.

use crate::config::{DatabaseSettings, hints};
use anyhow::Context as _;
use meterd_embedded_postgres::Embedded;
use meterd_store::database::{cause, connect};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use std::path::Path;

/// An open database.
pub struct Database {
    pub options: PgConnectOptions,
    embedded: Option<Embedded>,
}

impl Database {
    /// Opens the database of the URL. Without a URL, starts the embedded PostgreSQL.
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

    /// Opens the database for a command. Connects to an embedded PostgreSQL that already runs; otherwise works like
    /// [`Self::open`].
    pub async fn open_shared(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        if settings.database_url.is_none()
            && let Some(url) = meterd_embedded_postgres::attach(&settings.data_dir).await?
        {
            return Ok(Self { options: connect::options(&url)?, embedded: None });
        }
        let database = Self::open(settings).await?;
        // Test the connection, because the error of a pool is only a timeout.
        let opened = connect::open(&database.options).await.map_err(anyhow::Error::from);
        drop(database.explain(opened)?);
        Ok(database)
    }

    /// Replaces a database error by one that states the cause and the fix.
    pub fn explain<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(|error| hints::name_url_source(cause::explained(error, &self.options)))
    }

    /// Opens the database for a command that only reads. Works like [`Self::open_shared`], but never creates a data directory.
    pub async fn open_existing(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        if settings.database_url.is_none() {
            check_initialized(&settings.data_dir, "")?;
        }
        Self::open_shared(settings).await
    }

    /// Opens the database like [`Self::open`]. Without a database URL, the data directory must contain a database. Otherwise a
    /// forgotten URL would create a new, empty database.
    pub async fn open_initialized(settings: &DatabaseSettings) -> anyhow::Result<Self> {
        if settings.database_url.is_none() {
            check_initialized(&settings.data_dir, "")?;
        }
        Self::open(settings).await
    }

    /// Opens the database for a command that may run before the first start of the server. Creates a database, and prints a
    /// note, if the data directory is the default one, exists, or `may_be_new` is true. Otherwise a missing directory is an
    /// error, because its name may be misspelt.
    pub async fn open_or_create(settings: &DatabaseSettings, may_be_new: bool) -> anyhow::Result<Self> {
        if settings.database_url.is_none() {
            let data_dir = &settings.data_dir;
            let may_be_new =
                may_be_new || data_dir.is_dir() || *data_dir == meterd_embedded_postgres::default_data_dir();
            match check_initialized(data_dir, " without --new-database") {
                Err(error) if !may_be_new => return Err(error),
                Err(_) => eprintln!("note: creating a new database in {}", data_dir.display()),
                Ok(()) => {}
            }
        }
        Self::open_shared(settings).await
    }

    /// Describes where the data is. Contains no password.
    pub fn describe(&self) -> String {
        match &self.embedded {
            Some(embedded) => {
                let how = if embedded.reattached() { "already running" } else { "started" };
                format!("{} (embedded PostgreSQL {}, {how})", embedded.data_dir().display(), embedded.version())
            }
            None => cause::place(&self.options),
        }
    }

    /// Closes the database. Stops the embedded PostgreSQL.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Some(embedded) = self.embedded {
            embedded.stop().await?;
        }
        Ok(())
    }

    /// The embedded PostgreSQL, unless the settings have a database URL.
    pub fn embedded(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }
}

/// Checks that the data directory contains a database of meterd. The error names neighbouring directories that contain one.
/// `exception` is added to the rule.
fn check_initialized(data_dir: &Path, exception: &str) -> anyhow::Result<()> {
    let shown = data_dir.display();
    let is_initialized = meterd_embedded_postgres::is_initialized(data_dir).with_context(|| {
        format!("cannot read the data directory {shown}: run this command as the user that runs meterd")
    })?;
    if is_initialized {
        return Ok(());
    }
    let neighbours: Vec<String> =
        meterd_embedded_postgres::sibling_databases(data_dir).iter().map(|path| path.display().to_string()).collect();
    let hint = match &neighbours[..] {
        [] => String::new(),
        paths => format!("; databases exist in {}", paths.join(" and in ")),
    };
    anyhow::bail!(
        "{shown} contains no database of meterd, and this command does not create one{exception}: \
         check --data-dir (METERD_DATA_DIR){hint}"
    )
}

/// Returns the connection pool of a command.
pub fn command_pool(options: &PgConnectOptions) -> PgPool {
    // Statements of commands can take long. Warnings about slow statements would only disturb the user.
    connect::pool(options.clone().disable_statement_logging(), 2)
}
