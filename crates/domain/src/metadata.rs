//! Canonical form of an event's metadata: equal values have equal texts.

use serde_json::{Number, Value as Json};

/// Whole numbers up to this value are written without a fraction. A double cannot represent every larger whole number.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Converts a number to its canonical form. Returns `None` if it is not finite.
pub fn number(value: f64) -> Option<Number> {
    if value.fract() == 0.0 && value.abs() <= WHOLE_MAX {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

/// Returns the canonical text of metadata, which the database may have formatted differently. Returns `None` if the
/// text is not JSON.
pub fn canonical(text: &str) -> Option<String> {
    Some(canonical_json(serde_json::from_str(text).ok()?).to_string())
}

fn canonical_json(json: Json) -> Json {
    match json {
        Json::Number(value) => value.as_f64().and_then(number).map_or(Json::Null, Json::Number),
        Json::Array(values) => values.into_iter().map(canonical_json).collect(),
        Json::Object(map) => map.into_iter().map(|(key, value)| (key, canonical_json(value))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_and_reordered_keys_have_the_same_text() {
        let spellings = [r#"{"b": [1.0, 10000000000000000], "a": 2.50}"#, r#"{"a":2.5,"b":[1,1e16]}"#];
        let [first, second] = spellings.map(|text| canonical(text).unwrap());
        assert_eq!(first, second);
        assert_eq!(canonical("{"), None);
    }
}
