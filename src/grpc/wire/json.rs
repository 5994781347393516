//! Metadata: protobuf Struct to checked metadata, and JSON to protobuf Struct.

use meterd_domain::metadata::{self, Metadata, MetadataError};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;
use std::collections::btree_map;
use std::iter::Map;

/// Checks metadata. An empty object is no metadata.
pub fn from_struct(message: Struct) -> Option<Result<Metadata, MetadataError>> {
    (!message.fields.is_empty()).then(|| Metadata::new::<WireValue>(fields(message)))
}

/// A value of a Struct.
struct WireValue(Value);

type WireField = (String, WireValue);
type WireFields = Map<btree_map::IntoIter<String, Value>, fn((String, Value)) -> WireField>;

fn fields(message: Struct) -> WireFields {
    message.fields.into_iter().map(|(key, value)| (key, WireValue(value)))
}

impl metadata::Source for WireValue {
    type Fields = WireFields;

    fn into_kind(self) -> metadata::Kind<Self> {
        match self.0.kind {
            None | Some(Kind::NullValue(_)) => metadata::Kind::Null,
            Some(Kind::BoolValue(value)) => metadata::Kind::Bool(value),
            Some(Kind::NumberValue(value)) => metadata::Kind::Number(value),
            Some(Kind::StringValue(value)) => metadata::Kind::Text(value),
            Some(Kind::StructValue(value)) => metadata::Kind::Object(fields(value)),
            Some(Kind::ListValue(value)) => metadata::Kind::List(value.values.into_iter().map(WireValue).collect()),
        }
    }
}

/// Returns the message of a JSON object, or an empty one for other JSON.
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(message: Struct) -> Option<Result<String, MetadataError>> {
        from_struct(message).map(|checked| checked.map(|metadata| metadata.to_string()))
    }

    #[test]
    fn a_struct_has_one_spelling() {
        let message = to_struct(json!({"b": [1.0, 2.5, 1e300, null, true, []], "a": {"d": "x\"ß", "c": {}}}));
        let text = r#"{"a":{"c":{},"d":"x\"ß"},"b":[1,2.5,1e+300,null,true,[]]}"#;
        assert_eq!(checked(message), Some(Ok(text.into())));
        assert_eq!(checked(Struct::default()), None);
    }

    #[test]
    fn a_number_that_is_not_finite_is_rejected() {
        let value = Value { kind: Some(Kind::NumberValue(f64::NAN)) };
        let message = Struct { fields: [("a".to_string(), value)].into() };
        assert_eq!(checked(message), Some(Err(MetadataError::NotFinite)));
    }
}
