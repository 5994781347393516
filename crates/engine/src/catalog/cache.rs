//! The catalogue in memory: one immutable snapshot, which is replaced as a whole.

use meterd_domain::catalog::Catalog;
use meterd_store::catalog as store;
use sqlx::{PgConnection, PgPool};
use std::sync::{Arc, RwLock};

/// Holds the newest snapshot that this process has read.
#[derive(Debug, Default)]
pub struct CatalogCache {
    snapshot: RwLock<Arc<Catalog>>,
    with_name_rules: bool,
}

impl CatalogCache {
    /// Creates an empty cache, whose snapshots will have the rules for names of models or not.
    pub fn new(with_name_rules: bool) -> Self {
        Self { snapshot: RwLock::default(), with_name_rules }
    }

    /// Returns the snapshot. It may be older than the database, so a transaction that prices events compares the versions.
    pub fn current(&self) -> Arc<Catalog> {
        self.snapshot.read().expect("cache is not poisoned").clone()
    }

    /// Replaces the snapshot, unless the present one is newer.
    fn replace(&self, catalog: Catalog) {
        let mut current = self.snapshot.write().expect("cache is not poisoned");
        if catalog.version >= current.version {
            *current = Arc::new(catalog);
        }
    }

    /// Reads the catalogue under the versions lock, and replaces the snapshot, even if the present one has a higher version.
    pub async fn read(&self, conn: &mut PgConnection) -> meterd_store::Result<Arc<Catalog>> {
        let catalog = Arc::new(store::load(conn, self.with_name_rules).await?);
        *self.snapshot.write().expect("cache is not poisoned") = catalog.clone();
        Ok(catalog)
    }

    /// Reads the catalogue again if it has changed, and returns the newest snapshot.
    pub async fn refresh(&self, pool: &PgPool) -> meterd_store::Result<Arc<Catalog>> {
        if store::version(&mut *pool.acquire().await?).await? != self.current().version {
            let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let catalog = store::load(&mut tx, self.with_name_rules).await?;
            tx.commit().await?;
            self.replace(catalog);
        }
        Ok(self.current())
    }
}
