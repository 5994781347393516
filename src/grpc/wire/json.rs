//! Metadata: protobuf Struct to JSON and back.

use meterd_domain::event::METADATA_LEVELS_MAX;
use meterd_domain::metadata::number;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::{Map, Value as Json};

/// Why metadata is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
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

/// JSON with sorted keys, one spelling for equal values.
pub fn from_struct(message: &Struct) -> Result<Json, MetadataError> {
    object(message, METADATA_LEVELS_MAX)
}

/// `levels` are those that this one may still have, its own among them.
fn object(message: &Struct, levels: usize) -> Result<Json, MetadataError> {
    let below = levels.checked_sub(1).ok_or(MetadataError::TooDeep)?;
    let mut map = Map::new();
    for (key, value) in &message.fields {
        map.insert(text(key)?, from_value(value, below)?);
    }
    Ok(Json::Object(map))
}

fn list(message: &ListValue, levels: usize) -> Result<Json, MetadataError> {
    let below = levels.checked_sub(1).ok_or(MetadataError::TooDeep)?;
    Ok(Json::Array(message.values.iter().map(|value| from_value(value, below)).collect::<Result<_, _>>()?))
}

fn text(text: &str) -> Result<String, MetadataError> {
    if text.contains('\0') { Err(MetadataError::Nul) } else { Ok(text.into()) }
}

fn from_value(value: &Value, levels: usize) -> Result<Json, MetadataError> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::StringValue(value)) => Json::String(text(value)?),
        Some(Kind::StructValue(value)) => object(value, levels)?,
        Some(Kind::ListValue(value)) => list(value, levels)?,
        // Struct has no other number. It is the caller's remark: no quantity or amount is ever read from it.
        Some(Kind::NumberValue(value)) => Json::Number(number(*value).ok_or(MetadataError::NotFinite)?),
    })
}

/// The message of a JSON object; anything else is empty.
pub fn to_struct(json: Json) -> Struct {
    match json {
        Json::Object(map) => Struct { fields: map.into_iter().map(|(key, value)| (key, to_value(value))).collect() },
        _ => Struct::default(),
    }
}

fn to_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(to_value).collect() }),
        map @ Json::Object(_) => Kind::StructValue(to_struct(map)),
    };
    Value { kind: Some(kind) }
}
