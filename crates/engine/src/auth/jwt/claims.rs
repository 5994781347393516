//! What a token says about its holder.

use chrono::{DateTime, Utc};
use meterd_domain::access::{Clients, GRANTED_CLIENTS_MAX, Grants, Scope};
use meterd_domain::event::ID_BYTES_MAX;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const SUBJECT_BYTES_MAX: usize = 256;
/// What scopes of ours begin with; those of others are none of ours.
const SCOPE_PREFIX: &str = "meterd:";
/// Stands for all clients.
const ALL_CLIENTS: &str = "*";
/// Last second of the year 9999: what is later never comes.
const SECONDS_MAX: i64 = 253_402_300_799;

/// The claims of a token whose signature was good.
#[derive(Deserialize)]
pub struct Claims(Map<String, Value>);

/// Why claims are not taken.
type Wrong = &'static str;

/// Texts of a claim: one, or a list.
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
    /// A time, in seconds since 1970 with or without a fraction.
    pub fn time(&self, claim: &str) -> Result<Option<DateTime<Utc>>, Wrong> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        // A time is no amount: the fraction of a second that a float loses is none to us.
        let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
        let seconds = seconds.ok_or("a time is no number")?;
        Ok(DateTime::from_timestamp(seconds.clamp(0, SECONDS_MAX), 0))
    }

    /// Who holds it.
    pub fn subject(&self) -> Result<String, Wrong> {
        let subject = self.0.get("sub").and_then(Value::as_str).unwrap_or_default();
        let fine = (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.chars().any(char::is_control);
        fine.then(|| subject.into()).ok_or("its subject is empty, too long, or has control characters")
    }

    /// What the holder may do: each scope for the same clients, and for none where none are named.
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
        Ok(Clients::These(ids))
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
        Clients::These(ids.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn scopes_are_a_text_or_a_list_and_those_of_others_are_passed_over() {
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
    fn clients_that_are_not_named_are_none() {
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
    fn claims_of_another_form_are_refused() {
        for clients in [json!(1), json!({}), json!(["a", 1]), json!([["a"]]), json!(true), json!([""]), json!("")] {
            assert!(grants(json!({ "scope": "meterd:read", "meterd_clients": clients })).is_err(), "{clients}");
        }
        assert!(grants(json!({ "scope": { "meterd:admin": true }, "meterd_clients": "*" })).is_err());
        let many: Vec<String> = (0..101).map(|number| number.to_string()).collect();
        assert!(grants(json!({ "scope": "meterd:read", "meterd_clients": many })).is_err());
        assert!(grants(json!({ "scope": "meterd:read", "meterd_clients": "x".repeat(129) })).is_err());
    }

    #[test]
    fn a_subject_is_short_and_plain() {
        let subject = |sub: Value| Claims(Map::from_iter([("sub".to_string(), sub)])).subject();
        assert_eq!(subject(json!("jane")).as_deref(), Ok("jane"));
        for wrong in [json!(""), json!(7), json!("a\u{0}b"), json!("x".repeat(257)), json!(["jane"])] {
            assert!(subject(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_whole_or_broken_seconds() {
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
