//! Creates a key directly in the database, for `keys create --direct`.

use super::args::CreateArgs;
use crate::cli::signals;
use crate::database::{Database, command_pool};
use crate::grpc::audit;
use crate::proto::{ApiKey, CreateApiKeyRequest};
use meterd_domain::access::{ActorKind, Grants};
use meterd_engine::auth::Caller;
use meterd_engine::auth::keys::{self, NewKey};
use meterd_store::database::{connect, deployment};

/// Creates a key directly in the database, with or without a running server.
pub async fn create(args: &CreateArgs, request: &CreateApiKeyRequest) -> anyhow::Result<(ApiKey, String)> {
    // Ignore signals, so that the key is printed and the embedded PostgreSQL is stopped.
    let _stop = signals::stop_signal()?;
    let database = Database::open_or_create(&args.database, args.new_database).await?;
    let created = async {
        let pool = command_pool(&database.options);
        if args.database.database_url.is_some() && !deployment::has_schema(&pool).await? {
            eprintln!("note: {} has no tables of meterd yet: creating them", database.describe());
        }
        connect::migrate(&database.options).await?;
        let caller = Caller {
            kind: ActorKind::Database,
            id: String::new(),
            name: user_name(),
            grants: Grants::all(),
            valid_until: None,
        };
        let entry = audit::begin(&pool, &caller, "", request).await?;
        let created = async {
            let now = connect::now(&pool).await?;
            let spec = NewKey::from(request.api_key.clone().unwrap_or_default()).check(now)?;
            let mut tx = pool.begin().await?;
            let created = keys::create_in(&mut tx, &spec, now).await?;
            tx.commit().await?;
            Ok(created)
        };
        let created = created.await;
        audit::finish(entry, &pool, created.as_ref().err()).await;
        pool.close().await;
        let created = created?;
        Ok((created.key.into(), created.token))
    };
    let created = database.explain(created.await);
    // An error here must not hide the token of the new key.
    if let Err(error) = database.close().await {
        eprintln!("warning: the database did not close cleanly: {error:#}");
    }
    created
}

/// The name of the user according to the operating system, not to the environment.
fn user_name() -> String {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}
