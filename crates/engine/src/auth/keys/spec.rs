//! Checks what a new key may do.

use crate::fields::{Fields, UnixTime};
use crate::refusal::Refusal;
use chrono::{DateTime, Utc};
use meterd_domain::access::{Clients, GRANTED_CLIENTS_MAX, Grants, Scope};
use meterd_domain::event::ID_BYTES_MAX;
use std::collections::BTreeSet;

const NAME_BYTES_MAX: usize = 256;
const REQUESTS_PER_SECOND_MAX: i64 = 1_000_000;
/// A key has at most one grant for each scope.
const GRANTS_MAX: usize = Scope::ALL.len();

/// A key to create, unchecked.
#[derive(Debug, Default)]
pub struct NewKey {
    pub name: String,
    pub grants: Vec<GrantInput>,
    /// 0: the default of the replica.
    pub requests_per_second: i32,
    /// `None`: the key does not expire.
    pub expire_time: Option<UnixTime>,
}

/// A grant of a key, unchecked.
#[derive(Debug)]
pub struct GrantInput {
    /// `None` if the caller sent no known scope.
    pub scope: Option<Scope>,
    pub client_ids: Vec<String>,
    pub all_clients: bool,
}

/// A key to create.
pub struct KeySpec {
    pub name: String,
    pub grants: Grants,
    /// 0: the default of the replica.
    pub requests_per_second: i32,
    pub expire_time: Option<DateTime<Utc>>,
}

impl NewKey {
    /// Checks the key.
    pub fn check(self, now: DateTime<Utc>) -> Result<KeySpec, Refusal> {
        self.check_with(now, |_| {})
    }

    /// Checks the key and `others` after it, and reports all wrong fields together.
    pub(super) fn check_with(self, now: DateTime<Utc>, others: impl FnOnce(&mut Fields)) -> Result<KeySpec, Refusal> {
        let Self { name, grants, requests_per_second, expire_time } = self;
        let mut fields = Fields::default();
        fields.required("api_key.name", &name, NAME_BYTES_MAX);
        let grants = check_grants(&mut fields, &grants);
        fields.count("api_key.requests_per_second", requests_per_second.into(), REQUESTS_PER_SECOND_MAX);
        let expire_time = check_expire_time(&mut fields, "api_key.expire_time", expire_time, now);
        others(&mut fields);
        fields.finish()?;
        Ok(KeySpec { name, grants, requests_per_second, expire_time })
    }
}

fn check_grants(fields: &mut Fields, inputs: &[GrantInput]) -> Grants {
    let mut grants = Grants::default();
    if !(1..=GRANTS_MAX).contains(&inputs.len()) {
        fields.wrong("api_key.grants", format!("must be 1 to {GRANTS_MAX} grants, one a scope"));
    }
    let clients: BTreeSet<&String> = inputs.iter().flat_map(|grant| &grant.client_ids).collect();
    if clients.len() > GRANTED_CLIENTS_MAX {
        let description = format!("must name at most {GRANTED_CLIENTS_MAX} clients in all, name {}", clients.len());
        fields.wrong("api_key.grants", description);
    }
    for (index, grant) in inputs.iter().take(GRANTS_MAX).enumerate() {
        let path = format!("api_key.grants[{index}]");
        let ids = &grant.client_ids;
        fields.at_most(&format!("{path}.client_ids"), ids.len(), GRANTED_CLIENTS_MAX);
        for (index, client_id) in ids.iter().take(GRANTED_CLIENTS_MAX).enumerate() {
            fields.required_identifier(&format!("{path}.client_ids[{index}]"), client_id, ID_BYTES_MAX);
        }
        if grant.all_clients != ids.is_empty() {
            fields.wrong(&path, "must have either client_ids or all_clients: whom the scope is for");
        }
        let clients = if grant.all_clients { Clients::All } else { Clients::Only(ids.iter().cloned().collect()) };
        match grant.scope {
            None => fields.wrong(format!("{path}.scope"), "must be SCOPE_INGEST, SCOPE_READ or SCOPE_ADMIN"),
            Some(scope) if grants.get(scope).is_some() => {
                fields.wrong(format!("{path}.scope"), "is there already: name a scope once");
            }
            Some(scope) => grants.set(scope, clients),
        }
    }
    grants
}

/// Checks that a time is in the future.
pub(super) fn check_expire_time(
    fields: &mut Fields,
    field: &str,
    time: Option<UnixTime>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let time = fields.time(field, time?)?;
    if time <= now {
        fields.wrong(field, "must be in the future");
    }
    Some(time)
}
