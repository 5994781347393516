//! Canonical form of an event's metadata: equal values have equal texts.

use serde_json::{Map, Number, Value as Json};
use std::fmt;

/// Maximum nesting depth of objects and lists in the metadata. gRPC libraries read at most 100 nested messages, and one
/// level of metadata takes up to three, so responses stay well below that limit.
pub const METADATA_LEVELS_MAX: usize = 16;
/// Whole numbers up to this value are written without a fraction. A double cannot represent every larger whole number.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Why metadata is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("numbers must be finite")]
    NotFinite,
    #[error("must not contain the character U+0000")]
    Nul,
    #[error(
        "must be nested at most {METADATA_LEVELS_MAX} levels deep, objects and lists together; flatten it, or send the rest as text"
    )]
    TooDeep,
}

/// Checked metadata: a JSON object with sorted keys, one spelling for equal values. `Display` writes the JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata(Json);

/// A value in the types of a protocol.
pub trait Source: Sized {
    /// The fields of an object.
    type Fields: IntoIterator<Item = (String, Self)>;

    /// Returns what it is.
    fn into_kind(self) -> Kind<Self>;
}

/// The kinds of values that metadata can have.
pub enum Kind<S: Source> {
    Null,
    Bool(bool),
    /// For people. No quantity or amount is read from it.
    Number(f64),
    Text(String),
    List(Vec<S>),
    Object(S::Fields),
}

impl Source for Json {
    type Fields = Map<String, Self>;

    fn into_kind(self) -> Kind<Self> {
        match self {
            Self::Null => Kind::Null,
            Self::Bool(value) => Kind::Bool(value),
            Self::Number(value) => Kind::Number(value.as_f64().unwrap_or(f64::NAN)),
            Self::String(value) => Kind::Text(value),
            Self::Array(values) => Kind::List(values),
            Self::Object(fields) => Kind::Object(fields),
        }
    }
}

impl Metadata {
    /// Checks the fields of an object. Texts are moved, not copied.
    pub fn new<S: Source>(fields: S::Fields) -> Result<Self, MetadataError> {
        object::<S>(fields, METADATA_LEVELS_MAX).map(Self)
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checks an object. `levels` is the number of levels that it may have, itself included.
fn object<S: Source>(fields: S::Fields, levels: usize) -> Result<Json, MetadataError> {
    let below = levels.checked_sub(1).ok_or(MetadataError::TooDeep)?;
    let mut map = Map::new();
    for (key, field) in fields {
        map.insert(text(key)?, value(field, below)?);
    }
    Ok(Json::Object(map))
}

fn list<S: Source>(values: Vec<S>, levels: usize) -> Result<Json, MetadataError> {
    let below = levels.checked_sub(1).ok_or(MetadataError::TooDeep)?;
    Ok(Json::Array(values.into_iter().map(|item| value(item, below)).collect::<Result<_, _>>()?))
}

fn value<S: Source>(value: S, levels: usize) -> Result<Json, MetadataError> {
    Ok(match value.into_kind() {
        Kind::Null => Json::Null,
        Kind::Bool(value) => Json::Bool(value),
        Kind::Number(value) => Json::Number(number(value).ok_or(MetadataError::NotFinite)?),
        Kind::Text(value) => Json::String(text(value)?),
        Kind::List(values) => list(values, levels)?,
        Kind::Object(fields) => object::<S>(fields, levels)?,
    })
}

fn text(text: String) -> Result<String, MetadataError> {
    if text.contains('\0') { Err(MetadataError::Nul) } else { Ok(text) }
}

/// A number in its one spelling. `None` if it is not finite.
fn number(value: f64) -> Option<Number> {
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
    use serde_json::json;

    fn checked(json: Json) -> Result<String, MetadataError> {
        let Json::Object(fields) = json else { panic!("not an object: {json}") };
        Metadata::new::<Json>(fields).map(|metadata| metadata.to_string())
    }

    #[test]
    fn equal_numbers_and_reordered_keys_have_the_same_text() {
        let spellings = [r#"{"b": [1.0, 10000000000000000], "a": 2.50}"#, r#"{"a":2.5,"b":[1,1e16]}"#];
        let [first, second] = spellings.map(|text| canonical(text).unwrap());
        assert_eq!(first, second);
        assert_eq!(canonical("{"), None);
    }

    #[test]
    fn checked_metadata_has_the_canonical_spelling() {
        let json = json!({"b": [1.0, 2.5, null, true], "a": {"c": "x"}});
        assert_eq!(checked(json.clone()).unwrap(), canonical(&json.to_string()).unwrap());
    }

    #[test]
    fn the_character_nul_and_deep_values_are_rejected() {
        assert_eq!(checked(json!({"a": "\0"})), Err(MetadataError::Nul));
        assert_eq!(checked(json!({"\0": 1})), Err(MetadataError::Nul));
        let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({"a": inner}));
        assert!(checked(nested(METADATA_LEVELS_MAX)).is_ok());
        assert_eq!(checked(nested(METADATA_LEVELS_MAX + 1)), Err(MetadataError::TooDeep));
    }
}
