//! Model aliases: second names of models.

use super::check_service;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::refusal::{Reason, Refusal};
use meterd_domain::catalog::Catalog;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::catalog::pricing;
use meterd_store::catalog::{self as store, ModelAlias};
use meterd_store::locks;

/// Lists all aliases, ordered by service and alias.
pub async fn list(engine: &Engine) -> Result<Vec<ModelAlias>, Refusal> {
    let mut conn = engine.pool.acquire().await?;
    Ok(store::aliases(&mut conn).await?)
}

/// Creates an alias, and prices recorded events that have a price because of it.
pub async fn create(
    engine: &Engine,
    alias: ModelAlias,
    idempotency: Idempotency<ModelAlias>,
) -> Result<Created<ModelAlias>, Refusal> {
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("model_alias.service", &alias.service, ID_BYTES_MAX);
    fields.required_identifier("model_alias.alias", &alias.alias, ID_BYTES_MAX);
    fields.required_identifier("model_alias.model", &alias.model, ID_BYTES_MAX);
    check_service(&mut fields, &catalog, "model_alias.service", &alias.service);
    check_chain(&mut fields, &catalog, &alias);
    idempotency.check(&mut fields);
    fields.finish()?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    locks::change_versions(creation.conn()).await?;
    // Checked again under the lock, because another alias may have been created meanwhile.
    let mut fields = Fields::default();
    check_chain(&mut fields, &store::load(creation.conn(), false).await?, &alias);
    fields.finish()?;
    if !store::insert_alias(creation.conn(), &alias).await? {
        let message = format!("alias {:?} of service {:?} exists", alias.alias, alias.service);
        return Err(Refusal::new(Reason::ModelAliasExists, message));
    }
    store::bump_version(creation.conn()).await?;
    pricing::insert_task(creation.conn(), &alias.service).await?;
    creation.commit(&alias).await?;
    engine.pricing_wanted.notify_one();
    Ok(Created::New(alias))
}

/// Rejects aliases of aliases.
fn check_chain(fields: &mut Fields, catalog: &Catalog, new: &ModelAlias) {
    if !new.model.is_empty() && (new.model == new.alias || catalog.is_alias(&new.service, &new.model)) {
        fields.wrong("model_alias.model", "must be a model that prices name, not an alias");
    }
    let is_aliased = catalog.is_aliased(&new.service, &new.alias);
    if is_aliased && !catalog.is_alias(&new.service, &new.alias) {
        fields.wrong("model_alias.alias", "must be no model that has an alias itself");
    }
}
