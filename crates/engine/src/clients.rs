//! Clients: the tenants whose usage is metered.

use crate::engine::Engine;
use crate::fields::Fields;
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal, shown};
use chrono_tz::Tz;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::clients::{self as store, Client};
use meterd_store::locks;

/// Maximum size of a display name.
pub const DISPLAY_NAME_BYTES_MAX: usize = 256;

/// A client to create, unchecked.
#[derive(Debug, Default)]
pub struct NewClient {
    pub client_id: String,
    pub display_name: String,
    /// IANA name. Empty: the default of the deployment.
    pub time_zone: String,
}

/// A change of a client, unchecked.
#[derive(Debug, Default)]
pub struct ClientUpdate {
    pub client_id: String,
    pub display_name: String,
    pub time_zone: String,
    /// Names of the fields to change.
    pub names: Vec<String>,
}

fn check_zone(fields: &mut Fields, field: &str, name: &str) -> Option<Tz> {
    let zone = name.parse().ok();
    if zone.is_none() {
        fields.wrong(field, format!("must be an IANA time zone such as Europe/Berlin, got {}", shown(name)));
    }
    zone
}

/// Returns a client.
///
/// # Errors
/// `CLIENT_NOT_FOUND` if it does not exist.
pub async fn existing(engine: &Engine, client_id: &str) -> Result<Client, Refusal> {
    store::find(&engine.pool, client_id).await?.ok_or_else(|| Refusal::client_not_found(client_id))
}

/// Checks the id and returns the client.
pub async fn get(engine: &Engine, client_id: &str) -> Result<Client, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    existing(engine, client_id).await
}

/// Creates a client.
pub async fn create(
    engine: &Engine,
    client: NewClient,
    idempotency: Idempotency<Client>,
) -> Result<Created<Client>, Refusal> {
    let mut fields = Fields::default();
    fields.required_identifier("client.client_id", &client.client_id, ID_BYTES_MAX);
    fields.text("client.display_name", &client.display_name, DISPLAY_NAME_BYTES_MAX);
    idempotency.check(&mut fields);
    let zone = match client.time_zone.as_str() {
        "" => Some(engine.config.ingest.default_zone),
        name => check_zone(&mut fields, "client.time_zone", name),
    };
    fields.finish()?;
    let zone = zone.unwrap_or(Tz::UTC);
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    let created = store::insert(creation.conn(), &client.client_id, &client.display_name, zone).await?;
    let exists = || Refusal::new(Reason::ClientExists, format!("client {:?} exists", client.client_id));
    let created = created.ok_or_else(exists)?;
    creation.commit(&created).await?;
    Ok(Created::New(created))
}

/// Changes the fields of a client that `names` lists. A new time zone applies to events that are recorded after it.
pub async fn update(engine: &Engine, update: ClientUpdate) -> Result<Client, Refusal> {
    let ClientUpdate { client_id, .. } = &update;
    let mut fields = Fields::default();
    fields.required("client.client_id", client_id, ID_BYTES_MAX);
    if update.names.is_empty() {
        fields.wrong("update_mask", "is required: name \"display_name\", \"time_zone\" or both");
    }
    let (mut display_name, mut time_zone) = (None, None);
    for name in &update.names {
        match name.as_str() {
            "display_name" => {
                fields.text("client.display_name", &update.display_name, DISPLAY_NAME_BYTES_MAX);
                display_name = Some(update.display_name.as_str());
            }
            "time_zone" => time_zone = check_zone(&mut fields, "client.time_zone", &update.time_zone),
            other => {
                let description = format!("cannot change {}, only display_name and time_zone", shown(other));
                fields.wrong("update_mask", description);
            }
        }
    }
    fields.finish()?;
    let mut tx = engine.pool.begin().await?;
    if time_zone.is_some() {
        locks::change_versions(&mut tx).await?;
    }
    let updated = store::update(&mut tx, client_id, display_name, time_zone).await?;
    tx.commit().await?;
    updated.ok_or_else(|| Refusal::client_not_found(client_id))
}

/// Lists clients, ordered by id. The cursor is the id of the last client.
pub async fn list(engine: &Engine, page: PageRequest<String>) -> Result<Page<Client, String>, Refusal> {
    let mut fields = Fields::default();
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?.unwrap_or_default();
    let clients = store::list(&engine.pool, &after, size + 1).await?;
    Ok(Page::of(clients, size, |last| last.client_id.clone()))
}
