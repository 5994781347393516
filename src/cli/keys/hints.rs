//! Hints for commands about one key, from the list of all keys.

use super::CALL_SECONDS;
use super::show::state;
use crate::cli::connect::{self, ConnectArgs, Connection};
use crate::cli::time::time_text;
use crate::proto::key_service_client::KeyServiceClient;
use crate::proto::{ApiKey, ListApiKeysRequest};
use meterd_domain::names::nearest;
use meterd_engine::clock::Clock;
use tonic::Status;
use tonic_types::StatusExt;

/// Small pages, because a key can cover three hundred clients.
const PAGE_SIZE: i32 = 100;
/// Maximum number of keys in a hint.
const SHOWN_MAX: usize = 5;

/// Returns all keys, the oldest first.
pub async fn all(
    client: &mut KeyServiceClient<Connection>,
    connect: &ConnectArgs,
    live_only: bool,
) -> Result<Vec<ApiKey>, Status> {
    let (mut keys, mut page_token) = (vec![], String::new());
    loop {
        let request = ListApiKeysRequest { live_only, page_size: PAGE_SIZE, page_token };
        let page = client.list_api_keys(connect.request(request, CALL_SECONDS)).await?.into_inner();
        keys.extend(page.api_keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(keys);
        }
    }
}

/// Converts a status to the error of a command. If the key does not exist, the error suggests keys with a similar id or name.
pub async fn error(
    client: &mut KeyServiceClient<Connection>,
    connect: &ConnectArgs,
    status: &Status,
    wanted: &str,
) -> anyhow::Error {
    if status.get_details_error_info().is_none_or(|info| info.reason != "API_KEY_NOT_FOUND") {
        return connect::status_error(status);
    }
    match all(client, connect, false).await {
        Ok(keys) => anyhow::anyhow!("API_KEY_NOT_FOUND: {}; {}", status.message(), hint(wanted, &keys)),
        Err(_) => connect::status_error(status),
    }
}

/// Returns a suggestion for an unknown key id.
fn hint(wanted: &str, keys: &[ApiKey]) -> String {
    let now = Clock::system().now();
    let describe = |key: &ApiKey| format!("{} ({:?}, {})", key.key_id, key.name, state(key, now));
    let named: Vec<_> = keys.iter().rev().filter(|key| key.name == wanted).take(SHOWN_MAX).map(describe).collect();
    if !named.is_empty() {
        return format!("this is the name of a key; use its id: {}", named.join(", "));
    }
    let near = nearest(wanted, keys.iter().flat_map(|key| [key.key_id.as_str(), key.name.as_str()]));
    let near: Vec<_> = keys
        .iter()
        .filter(|key| near.contains(&key.key_id.as_str()) || near.contains(&key.name.as_str()))
        .take(SHOWN_MAX)
        .map(describe)
        .collect();
    match near.is_empty() {
        true => "`meterd keys list` shows all keys".to_owned(),
        false => format!("did you mean {}?", near.join(" or ")),
    }
}

/// Returns a note if the new key expires earlier than the user may expect, because an earlier rotation set the expiry of the
/// old key.
pub async fn early_expiry_note(
    client: &mut KeyServiceClient<Connection>,
    connect: &ConnectArgs,
    new: &ApiKey,
    old: &ApiKey,
) -> Option<String> {
    new.expire_time.as_ref()?;
    let keys = all(client, connect, false).await.ok()?;
    let earlier = keys.iter().rfind(|key| key.rotated_from == old.key_id && key.key_id != new.key_id)?;
    Some(format!(
        "key {} was already rotated to {}, which set its expiry; therefore the new key is only valid until {}. For another \
         expiry, revoke {} and rotate again with --expires, or rotate {}",
        old.key_id,
        earlier.key_id,
        time_text(new.expire_time.as_ref()),
        new.key_id,
        earlier.key_id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_name_instead_of_an_id_suggests_the_id() {
        let key = |key_id: &str, name: &str| ApiKey { key_id: key_id.into(), name: name.into(), ..Default::default() };
        let keys = [key("4e06fd2b69a24c1f", "acme backend"), key("11112222aaaabbbb", "ops")];
        assert_eq!(
            hint("acme backend", &keys),
            "this is the name of a key; use its id: 4e06fd2b69a24c1f (\"acme backend\", live)"
        );
        assert_eq!(hint("4e06fd2b69a24c1e", &keys), "did you mean 4e06fd2b69a24c1f (\"acme backend\", live)?");
        assert_eq!(hint("zzz", &keys), "`meterd keys list` shows all keys");
    }
}
