//! What holds for the whole deployment.

use sqlx::PgConnection;

/// The deployment as it was made at the first start.
pub struct Deployment {
    /// ISO 4217 code.
    pub currency: String,
    /// Signs page tokens.
    pub token_secret: Vec<u8>,
}

/// The deployment, if there is one.
pub async fn find(conn: &mut PgConnection) -> sqlx::Result<Option<Deployment>> {
    sqlx::query_as!(Deployment, "SELECT currency, token_secret FROM deployment").fetch_optional(conn).await
}

/// Makes the deployment.
pub async fn insert(conn: &mut PgConnection, deployment: &Deployment) -> sqlx::Result<()> {
    let Deployment { currency, token_secret } = deployment;
    sqlx::query!("INSERT INTO deployment (currency, token_secret) VALUES ($1, $2)", currency, token_secret)
        .execute(conn)
        .await
        .map(drop)
}
