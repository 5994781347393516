//! The catalogue in memory: one immutable snapshot, which is replaced as a whole.

use meterd_domain::catalog::Catalog;
use meterd_store::catalog as store;
use sqlx::PgPool;
use std::sync::{Arc, RwLock};

/// Holds the newest snapshot that this process has read.
#[derive(Debug, Default)]
pub struct CatalogCache(RwLock<Arc<Catalog>>);

impl CatalogCache {
    /// Returns the snapshot. It may be older than the database, so a transaction that prices events compares the versions.
    pub fn current(&self) -> Arc<Catalog> {
        self.0.read().expect("cache is not poisoned").clone()
    }

    /// Replaces the snapshot, unless the present one is newer.
    fn replace(&self, catalog: Catalog) {
        let mut current = self.0.write().expect("cache is not poisoned");
        if catalog.version >= current.version {
            *current = Arc::new(catalog);
        }
    }

    /// Replaces the snapshot by one that was read under the versions lock, even if the present one has a higher version.
    pub fn adopt(&self, catalog: Catalog) -> Arc<Catalog> {
        let catalog = Arc::new(catalog);
        *self.0.write().expect("cache is not poisoned") = catalog.clone();
        catalog
    }

    /// Reads the catalogue again if it has changed, and returns the newest snapshot.
    pub async fn refresh(&self, pool: &PgPool) -> meterd_store::Result<Arc<Catalog>> {
        if store::version(&mut *pool.acquire().await?).await? != self.current().version {
            let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let catalog = store::load(&mut tx).await?;
            tx.commit().await?;
            self.replace(catalog);
        }
        Ok(self.current())
    }
}
