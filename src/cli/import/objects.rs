//! JSON rows: detects duplicate keys, and files whose events are in a nested list.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::names::similar_field;
use crate::cli::import::fields::Field;
use crate::cli::json::RawObject;

/// Maximum depth of the search. Fields are never deeper.
const LEVELS_MAX: u32 = 16;

/// The keys and values of an object in the order of the text, including duplicate keys.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

/// Parses the object of a row. A duplicate key is an error, because it is unclear which value to use.
pub fn object_of(text: &str) -> Result<RawObject, String> {
    let Pairs(pairs) = serde_json::from_str(text).map_err(|error| {
        let hint = match error {
            _ if error.is_eof() => "; it may be truncated, or it extends over several lines, which needs --format json",
            _ if error.to_string().starts_with("trailing characters") => {
                "; objects that follow each other on one line need --format json"
            }
            _ if text.starts_with("{'") => "; JSON strings must be in double quotes",
            _ if text.contains("NaN") => "; JSON has no NaN: write null",
            _ => "",
        };
        format!("is not a JSON object: {error}{hint}")
    })?;
    match repeated(&pairs, LEVELS_MAX) {
        Some(key) => Err(format!(
            "has the key {key:?} twice: remove one of them; `jq -c . FILE` keeps the last value of each key"
        )),
        None => Ok(pairs.into_iter().map(|(key, raw)| (key, raw.to_owned())).collect()),
    }
}

/// Returns the path of the first duplicate key.
fn repeated(pairs: &[(String, &RawValue)], levels: u32) -> Option<String> {
    let mut seen = HashSet::new();
    if let Some((key, _)) = pairs.iter().find(|(key, _)| !seen.insert(key)) {
        return Some(key.clone());
    }
    let within = |(key, raw): &(String, &RawValue)| Some(format!("{key}.{}", repeated_within(raw, levels)?));
    pairs.iter().find_map(within)
}

fn repeated_within(raw: &RawValue, levels: u32) -> Option<String> {
    let levels = levels.checked_sub(1)?;
    match raw.get().as_bytes().first() {
        Some(b'{') => repeated(&serde_json::from_str::<Pairs<'_>>(raw.get()).ok()?.0, levels),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
            items.into_iter().find_map(|item| repeated_within(item, levels))
        }
        _ => None,
    }
}

/// Returns the key of a list of objects, such as `data` in the response of an API.
pub fn list_key(object: &RawObject) -> Option<&str> {
    let is_list = |raw: &RawValue| {
        let items: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
        items.first().is_some_and(|item| item.get().starts_with('{'))
    };
    object.iter().find(|(_, raw)| is_list(raw)).map(|(key, _)| key.as_str())
}

/// Returns the paths of values in the object at `path` whose keys resemble one of the fields, such as `usage.prompt_tokens`.
pub fn similar_paths(path: &str, raw: &RawValue, fields: &[Field]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(object) = serde_json::from_str::<RawObject>(raw.get()) else { return found };
    for (key, raw) in &object {
        let path = format!("{path}.{key}");
        match raw.get().starts_with(['{', '[']) {
            true if path.matches('.').count() < 4 => found.extend(similar_paths(&path, raw, fields)),
            true => {}
            false if similar_field(key, fields).is_some() => found.push(path),
            false => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_key_is_an_error_at_any_level() {
        for (text, key) in [
            (r#"{"units":1,"units":2}"#, "\"units\""),
            (r#"{"usage":{"prompt_tokens":1,"x":[{"a":1,"a":1}]}}"#, "\"usage.x.a\""),
            (r#"{"a":1,"\u0061":1}"#, "\"a\""),
        ] {
            let error = object_of(text).unwrap_err();
            assert!(error.contains(key) && error.contains("twice"), "{error}");
        }
        let object = object_of(r#"{"a":1e999,"b":{"a":0.10}}"#).unwrap();
        assert_eq!(object["b"].get(), r#"{"a":0.10}"#);
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(object_of(&deep).is_ok());
    }

    #[test]
    fn the_error_of_a_row_that_is_not_an_object_has_a_hint() {
        assert!(object_of(r#"{"a":1}{"a":2}"#).unwrap_err().contains("--format json"));
        assert!(object_of(r#"{"a":"#).unwrap_err().contains("it may be truncated"));
        assert!(object_of("{'a':1}").unwrap_err().contains("double quotes"));
        assert!(object_of(r#"{"a":NaN}"#).unwrap_err().contains("write null"));
        assert!(!object_of("[1]").unwrap_err().contains("--format"));
    }

    #[test]
    fn lists_of_objects_are_detected() {
        let key = |text| list_key(&object_of(text).unwrap()).map(str::to_owned);
        assert_eq!(key(r#"{"object":"page","tags":["x"],"data":[{"a":1}]}"#).as_deref(), Some("data"));
        assert_eq!(key(r#"{"data":[],"tags":["x"]}"#), None);
    }
}
