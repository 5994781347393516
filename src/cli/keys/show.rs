//! Shows keys as text, as a table and as JSON.

use super::args::OutputArgs;
use crate::cli::chart::table;
use crate::cli::time::time_text;
use crate::config::{self, DatabaseSettings};
use crate::print;
use crate::proto::{ApiKey, Grant, Scope};
use chrono::{DateTime, Utc};
use serde_json::json;

/// Prints a new key with its token. For a key that was created directly in a database, also prints how to start the server.
pub fn print_new(output: &OutputArgs, key: &ApiKey, token: &str, direct: Option<&DatabaseSettings>) {
    if output.quiet {
        println!("{token}");
    } else if output.json {
        let mut json = to_json(key);
        json["token"] = token.into();
        println!("{json}");
    } else {
        println!("key      {} {:?}", key.key_id, key.name);
        println!("grants   {}", grants_text(key));
        println!("expires  {}", expiry_text(key));
        println!("token    {token}");
        println!("The token is shown only once. Callers send it as `authorization: Bearer {token}`.");
        println!("Commands of meterd read it from METERD_API_KEY:");
        println!("  export METERD_API_KEY={token}");
        if let Some(database) = direct {
            println!("Start the server with --auth keys, so that it checks API keys:");
            println!("  {} serve --auth keys{}", config::hints::program(), config::hints::database_flags(database));
        }
    }
    if print::has_failed() {
        let (program, key_id) = (config::hints::program(), &key.key_id);
        eprintln!(
            "warning: the key {key_id} was created, but its token could not be printed: revoke it with \
             `{program} keys revoke {key_id}`"
        );
    }
}

fn scope_name(scope: i32) -> String {
    Scope::try_from(scope).map_or("?", |scope| scope.as_str_name()).trim_start_matches("SCOPE_").to_lowercase()
}

fn grants_text(key: &ApiKey) -> String {
    let grant = |grant: &Grant| {
        let clients = if grant.all_clients { "all clients".into() } else { grant.client_ids.join(", ") };
        format!("{} for {clients}", scope_name(grant.scope))
    };
    key.grants.iter().map(grant).collect::<Vec<_>>().join("; ")
}

fn expiry_text(key: &ApiKey) -> String {
    if key.expire_time.is_none() { "never".into() } else { time_text(key.expire_time.as_ref()) }
}

/// Returns whether a key is live, revoked or expired.
pub fn state(key: &ApiKey, now: DateTime<Utc>) -> &'static str {
    let expired = key.expire_time.as_ref().is_some_and(|time| time.seconds <= now.timestamp());
    match (key.revoke_time.is_some(), expired) {
        (true, _) => "revoked",
        (false, true) => "expired",
        (false, false) => "live",
    }
}

/// Returns the lines of a table of keys.
pub fn to_table(keys: &[ApiKey], now: DateTime<Utc>) -> Vec<String> {
    let mut rows = vec![["KEY", "NAME", "GRANTS", "STATE", "EXPIRES", "LAST USED"].map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        vec![
            key.key_id.clone(),
            key.name.clone(),
            grants_text(key),
            state(key, now).to_owned(),
            expiry_text(key),
            time_text(key.last_used_time.as_ref()),
        ]
    }));
    table(&rows, &[false; 6])
}

/// Returns a key as JSON, without its token.
pub fn to_json(key: &ApiKey) -> serde_json::Value {
    let grant = |grant: &Grant| json!({"scope": scope_name(grant.scope), "clientIds": grant.client_ids, "allClients": grant.all_clients});
    json!({
        "keyId": key.key_id,
        "name": key.name,
        "grants": key.grants.iter().map(grant).collect::<Vec<_>>(),
        "requestsPerSecond": key.requests_per_second,
        "createTime": time_text(key.create_time.as_ref()),
        "expireTime": time_text(key.expire_time.as_ref()),
        "revokeTime": time_text(key.revoke_time.as_ref()),
        "lastUsedTime": time_text(key.last_used_time.as_ref()),
        "rotatedFrom": key.rotated_from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;

    #[test]
    fn a_key_is_shown_as_a_line_with_its_state() {
        let now = DateTime::from_timestamp(1_795_220_400, 0).unwrap();
        let key = ApiKey {
            key_id: "0123456789abcdef".into(),
            name: "billing".into(),
            grants: vec![
                Grant { scope: Scope::Ingest.into(), client_ids: vec![], all_clients: true },
                Grant { scope: Scope::Read.into(), client_ids: vec!["acme".into(), "beta".into()], all_clients: false },
            ],
            ..Default::default()
        };
        let expected = "0123456789abcdef  billing  ingest for all clients; read for acme, beta  live   never";
        assert_eq!(to_table(std::slice::from_ref(&key), now)[1].trim_end(), expected);
        let revoked = ApiKey { revoke_time: Some(Timestamp::default()), ..key };
        assert_eq!(state(&revoked, now), "revoked");
    }
}
