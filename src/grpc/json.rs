//! Metadata: protobuf Struct to JSON and back.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::{Map, Number, Value as Json};

/// Whole numbers up to here are written without a fraction: beyond, a double does not hold every one of them.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Why metadata is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("numbers must be finite")]
    NotFinite,
    #[error("must not contain the character U+0000")]
    Nul,
}

/// JSON with sorted keys, one spelling for equal values.
pub fn from_struct(message: &Struct) -> Result<Json, MetadataError> {
    let mut map = Map::new();
    for (key, value) in &message.fields {
        map.insert(text(key)?, from_value(value)?);
    }
    Ok(Json::Object(map))
}

fn text(text: &str) -> Result<String, MetadataError> {
    if text.contains('\0') { Err(MetadataError::Nul) } else { Ok(text.into()) }
}

fn from_value(value: &Value) -> Result<Json, MetadataError> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::StringValue(value)) => Json::String(text(value)?),
        Some(Kind::StructValue(value)) => from_struct(value)?,
        Some(Kind::ListValue(list)) => Json::Array(list.values.iter().map(from_value).collect::<Result<_, _>>()?),
        // Struct has no other number. It is the caller's remark: no quantity or amount is ever read from it.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() <= WHOLE_MAX => Json::from(*value as i64),
        Some(Kind::NumberValue(value)) => Json::Number(Number::from_f64(*value).ok_or(MetadataError::NotFinite)?),
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
