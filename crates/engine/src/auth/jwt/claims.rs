//! The claims of a token: its subject, its times and its grants.

use chrono::{DateTime, Utc};
use meterd_domain::access::{Clients, GRANTED_CLIENTS_MAX, Grants, Scope};
use meterd_domain::event::ID_BYTES_MAX;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const SUBJECT_BYTES_MAX: usize = 256;
/// The prefix of scopes for meterd. Other scopes are ignored.
const SCOPE_PREFIX: &str = "meterd:";
/// The client id that means all clients.
const ALL_CLIENTS: &str = "*";
/// The last second of the year 9999. Later times are cut to it.
const SECONDS_MAX: i64 = 253_402_300_799;

/// The claims of a token whose signature is valid.
#[derive(Deserialize)]
pub struct Claims(Map<String, Value>);

/// Why claims are rejected.
type Wrong = &'static str;

/// Returns the texts of a claim that is one text or a list of texts.
fn texts(claim: Option<&Value>) -> Result<Vec<&str>, Wrong> {
    match claim {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(values)) if values.iter().all(Value::is_string) => {
            Ok(values.iter().filter_map(Value::as_str).collect())
        }
        Some(_) => Err("a claim is neither a text nor a list of texts"),
    }
}

impl Claims {
    /// Returns a time claim. The claim is in seconds since 1970 and may have a fraction, which is dropped.
    pub fn time(&self, claim: &str) -> Result<Option<DateTime<Utc>>, Wrong> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        // A float is precise enough for a time, because fractions of a second are dropped.
        let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
        let seconds = seconds.ok_or("a time is no number")?;
        Ok(DateTime::from_timestamp(seconds.clamp(0, SECONDS_MAX), 0))
    }

    /// Returns the subject.
    pub fn subject(&self) -> Result<String, Wrong> {
        let subject = self.0.get("sub").and_then(Value::as_str).unwrap_or_default();
        let is_valid = (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.chars().any(char::is_control);
        is_valid.then(|| subject.into()).ok_or("its subject is empty, too long, or has control characters")
    }

    /// Returns the grants: every scope for the clients that the token names. If it names none, the scopes cover no client.
    pub fn grants(&self, scope_claim: &str, clients_claim: &str) -> Result<Grants, Wrong> {
        let clients = self.clients(clients_claim)?;
        let mut grants = Grants::default();
        for name in texts(self.0.get(scope_claim))?.into_iter().flat_map(str::split_whitespace) {
            if let Some(scope) = name.strip_prefix(SCOPE_PREFIX).and_then(Scope::parse) {
                grants.set(scope, clients.clone());
            }
        }
        Ok(grants)
    }

    fn clients(&self, claim: &str) -> Result<Clients, Wrong> {
        let ids = texts(self.0.get(claim))?;
        if ids.contains(&ALL_CLIENTS) {
            return Ok(Clients::All);
        }
        let ids: BTreeSet<String> = ids.into_iter().map(String::from).collect();
        if ids.len() > GRANTED_CLIENTS_MAX {
            return Err("it names more than 100 clients");
        }
        if ids.iter().any(|id| !(1..=ID_BYTES_MAX).contains(&id.len())) {
            return Err("it names a client with an empty or very long id");
        }
        Ok(Clients::Only(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn grants(claims: Value) -> Result<Grants, Wrong> {
        let Value::Object(claims) = claims else { panic!("{claims}") };
        Claims(claims).grants("scope", "meterd_clients")
    }

    fn these(ids: &[&str]) -> Clients {
        Clients::Only(ids.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn scopes_are_a_text_or_a_list_and_other_scopes_are_ignored() {
        for scope in [json!("openid meterd:read  meterd:ingest"), json!(["meterd:read", "x", "meterd:ingest"])] {
            let grants = grants(json!({ "scope": scope, "meterd_clients": "acme" })).unwrap();
            let expected = Grants { ingest: Some(these(&["acme"])), read: Some(these(&["acme"])), admin: None };
            assert_eq!(grants, expected);
        }
        for scope in [json!("read admin meterd:Admin meterd: meterd:administrator xmeterd:admin"), json!(null)] {
            assert_eq!(grants(json!({ "scope": scope, "meterd_clients": "*" })).unwrap(), Grants::default());
        }
    }

    #[test]
    fn scopes_cover_only_clients_that_the_token_names() {
        let read = |clients: Value| grants(json!({ "scope": "meterd:read", "meterd_clients": clients })).unwrap().read;
        assert_eq!(read(json!(null)), Some(these(&[])));
        assert_eq!(read(json!([])), Some(these(&[])));
        assert_eq!(read(json!(["b", "a"])), Some(these(&["a", "b"])));
        assert_eq!(read(json!("*")), Some(Clients::All));
        assert_eq!(read(json!(["a", "*"])), Some(Clients::All));
        let none = grants(json!({ "scope": "meterd:admin" })).unwrap();
        assert!(none.has(Scope::Admin) && !none.covers(Scope::Admin, "a") && !none.covers_all(Scope::Admin));
    }

    #[test]
    fn malformed_claims_are_rejected() {
        for clients in [json!(1), json!({}), json!(["a", 1]), json!([["a"]]), json!(true), json!([""]), json!("")] {
            assert!(grants(json!({ "scope": "meterd:read", "meterd_clients": clients })).is_err(), "{clients}");
        }
        assert!(grants(json!({ "scope": { "meterd:admin": true }, "meterd_clients": "*" })).is_err());
        let many: Vec<String> = (0..101).map(|number| number.to_string()).collect();
        assert!(grants(json!({ "scope": "meterd:read", "meterd_clients": many })).is_err());
        assert!(grants(json!({ "scope": "meterd:read", "meterd_clients": "x".repeat(129) })).is_err());
    }

    #[test]
    fn a_subject_is_a_short_text_without_control_characters() {
        let subject = |sub: Value| Claims(Map::from_iter([("sub".to_string(), sub)])).subject();
        assert_eq!(subject(json!("jane")).as_deref(), Ok("jane"));
        for wrong in [json!(""), json!(7), json!("a\u{0}b"), json!("x".repeat(257)), json!(["jane"])] {
            assert!(subject(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_seconds_with_or_without_a_fraction() {
        let time = |value: Value| Claims(Map::from_iter([("exp".to_string(), value)])).time("exp");
        let seconds = |value: Value| time(value).unwrap().unwrap().timestamp();
        assert_eq!(seconds(json!(1_700_000_000)), 1_700_000_000);
        assert_eq!(seconds(json!(1_700_000_000.9)), 1_700_000_000);
        assert_eq!((seconds(json!(-5)), seconds(json!(1e300))), (0, SECONDS_MAX));
        for wrong in [json!("1700000000"), json!(null), json!([1])] {
            assert!(time(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
