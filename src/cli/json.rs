//! Converts JSON to `google.protobuf.Struct`.

use std::collections::BTreeMap;
use std::str::FromStr;

use bigdecimal::{BigDecimal, Zero};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::value::RawValue;

use meterd_domain::metadata::METADATA_LEVELS_MAX;

/// The values of an object as text, so that numbers keep all digits.
pub type RawObject = BTreeMap<String, Box<RawValue>>;

/// Maximum size of metadata, as in the API.
pub const METADATA_BYTES_MAX: usize = 8 * 1024;
/// Maximum nesting of metadata, as in the API. The server would reject a whole batch with a much deeper row.
const DEPTH_MAX: usize = METADATA_LEVELS_MAX;

/// Parses a JSON object as metadata.
pub fn metadata(text: &str) -> Result<Struct, String> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    match value(raw)?.kind {
        Some(Kind::StructValue(object)) => Ok(object),
        _ => Err("must be a JSON object".to_owned()),
    }
}

/// Converts a JSON value. A number that a double cannot represent exactly becomes a string, so that it keeps all digits.
pub fn value(raw: &RawValue) -> Result<Value, String> {
    nested(raw, 0)
}

fn nested(raw: &RawValue, depth: usize) -> Result<Value, String> {
    if depth > DEPTH_MAX {
        return Err(format!("must be nested at most {DEPTH_MAX} levels deep"));
    }
    let text = raw.get().trim();
    let wrong = |error: serde_json::Error| error.to_string();
    let kind = match text.as_bytes().first() {
        Some(b'{') => {
            let object: RawObject = serde_json::from_str(text).map_err(wrong)?;
            let fields = object
                .into_iter()
                .map(|(key, raw)| Ok((key, nested(&raw, depth + 1)?)))
                .collect::<Result<_, String>>()?;
            Kind::StructValue(Struct { fields })
        }
        Some(b'[') => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text).map_err(wrong)?;
            let values = items.iter().map(|raw| nested(raw, depth + 1)).collect::<Result<_, String>>()?;
            Kind::ListValue(ListValue { values })
        }
        Some(b'"') => Kind::StringValue(serde_json::from_str(text).map_err(wrong)?),
        Some(b't') => Kind::BoolValue(true),
        Some(b'f') => Kind::BoolValue(false),
        Some(b'n') | None => Kind::NullValue(0),
        Some(_) => number(text)?,
    };
    Ok(Value { kind: Some(kind) })
}

/// Converts a number. `google.protobuf.Value` only has doubles; metadata is never used for a sum or a price.
fn number(text: &str) -> Result<Kind, String> {
    let exact = BigDecimal::from_str(text).map_err(|error| format!("{text}: {error}"))?;
    let nearest = text.parse::<f64>().ok().filter(|double| double.is_finite());
    let is_exact = nearest.is_some_and(|double| match double == 0.0 {
        true => exact.is_zero(),
        false => BigDecimal::from_str(&format!("{double:e}")).is_ok_and(|shown| shown == exact),
    });
    Ok(match nearest {
        // Adding zero converts -0 to 0.
        Some(double) if is_exact => Kind::NumberValue(double + 0.0),
        _ => Kind::StringValue(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Kind {
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        value(raw).unwrap().kind.unwrap()
    }

    #[test]
    fn numbers_without_an_exact_double_become_strings() {
        assert_eq!(kind("0.1"), Kind::NumberValue(0.1));
        assert_eq!(kind("1e3"), Kind::NumberValue(1000.0));
        assert_eq!(kind("-0"), Kind::NumberValue(0.0));
        assert_eq!(kind("9007199254740993"), Kind::StringValue("9007199254740993".into()));
        assert_eq!(kind("1e400"), Kind::StringValue("1e400".into()));
        assert_eq!(kind("1e-400"), Kind::StringValue("1e-400".into()));
    }

    #[test]
    fn objects_can_be_nested() {
        let object = metadata(r#"{"b":[1,true,null,"x"],"a":{"c":"d"}}"#).unwrap();
        assert_eq!(object.fields.keys().collect::<Vec<_>>(), ["a", "b"]);
        let Some(Kind::ListValue(list)) = &object.fields["b"].kind else { panic!() };
        assert_eq!(list.values.len(), 4);
    }

    #[test]
    fn a_text_that_is_not_an_object_is_an_error() {
        assert!(metadata("[1]").unwrap_err().contains("JSON object"));
        assert!(metadata("{").unwrap_err().contains("is not JSON"));
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert!(metadata(&format!("{{\"a\":{deep}}}")).unwrap_err().contains("deep"));
    }

    #[test]
    fn the_deepest_accepted_metadata_can_be_decoded() {
        let text = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
        let deepest = (1..100).map_while(|depth| metadata(&text(depth)).ok()).last();
        let event = crate::proto::UsageEvent { metadata: deepest, ..Default::default() };
        let batch = crate::proto::BatchTrackUsageRequest { events: vec![event], backfill: false, ..Default::default() };
        let bytes = prost::Message::encode_to_vec(&batch);
        assert_eq!(<crate::proto::BatchTrackUsageRequest as prost::Message>::decode(&*bytes), Ok(batch));
    }
}
