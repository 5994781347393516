//! Hints about other keys of the deployment in commands about one key.

use super::{CALL_SECONDS, state};
use crate::cli::connect::{self, ConnectArgs, Connection};
use crate::cli::time::time_text;
use crate::proto::key_service_client::KeyServiceClient;
use crate::proto::{ApiKey, ListApiKeysRequest};
use meterd_domain::names::nearest;
use meterd_engine::clock::Clock;
use tonic::Status;
use tonic_types::StatusExt;

/// Few, as a key may name three hundred clients.
const PAGE_SIZE: i32 = 100;
/// Keys that a hint names.
const SHOWN_MAX: usize = 5;

/// All keys, the oldest first.
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

/// The error of a command about a key: if there is none with this id, with the ids of those that have it as their name.
pub async fn error(
    client: &mut KeyServiceClient<Connection>,
    connect: &ConnectArgs,
    status: &Status,
    wanted: &str,
) -> anyhow::Error {
    let error = connect::status_error(status);
    if status.get_details_error_info().is_none_or(|info| info.reason != "API_KEY_NOT_FOUND") {
        return error;
    }
    match all(client, connect, false).await {
        Ok(keys) => anyhow::anyhow!("{error}; {}", hint(wanted, &keys)),
        Err(_) => error,
    }
}

/// Which id to give instead of this.
fn hint(wanted: &str, keys: &[ApiKey]) -> String {
    let now = Clock::system().now();
    let describe = |key: &ApiKey| format!("{} ({:?}, {})", key.key_id, key.name, state(key, now));
    let named: Vec<_> = keys.iter().rev().filter(|key| key.name == wanted).take(SHOWN_MAX).map(describe).collect();
    if !named.is_empty() {
        return format!("that is a name, and the command takes an id: {}", named.join(", "));
    }
    let near = nearest(wanted, keys.iter().flat_map(|key| [key.key_id.as_str(), key.name.as_str()]));
    let near: Vec<_> = keys
        .iter()
        .filter(|key| near.contains(&key.key_id.as_str()) || near.contains(&key.name.as_str()))
        .take(SHOWN_MAX)
        .map(describe)
        .collect();
    match near.is_empty() {
        true => "`meterd keys list` shows those that there are".to_owned(),
        false => format!("did you mean {}?", near.join(" or ")),
    }
}

/// What is to be said of a new key that ends sooner than its user may expect: the old one had got its end from an earlier
/// rotation.
pub async fn shortened(
    client: &mut KeyServiceClient<Connection>,
    connect: &ConnectArgs,
    new: &ApiKey,
    old: &ApiKey,
) -> Option<String> {
    new.expire_time.as_ref()?;
    let keys = all(client, connect, false).await.ok()?;
    let earlier = keys.iter().rfind(|key| key.rotated_from == old.key_id && key.key_id != new.key_id)?;
    Some(format!(
        "key {} was rotated before, to {}, which gave it an end; so the new key is good until {} only. To have another end, \
         revoke {} and rotate again with --expires, or rotate {}",
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
    fn a_name_in_the_place_of_an_id_is_answered_with_the_id() {
        let key = |key_id: &str, name: &str| ApiKey { key_id: key_id.into(), name: name.into(), ..Default::default() };
        let keys = [key("4e06fd2b69a24c1f", "acme backend"), key("11112222aaaabbbb", "ops")];
        assert_eq!(
            hint("acme backend", &keys),
            "that is a name, and the command takes an id: 4e06fd2b69a24c1f (\"acme backend\", live)"
        );
        assert_eq!(hint("4e06fd2b69a24c1e", &keys), "did you mean 4e06fd2b69a24c1f (\"acme backend\", live)?");
        assert_eq!(hint("zzz", &keys), "`meterd keys list` shows those that there are");
    }
}
