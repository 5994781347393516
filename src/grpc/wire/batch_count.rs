//! Counts the elements of encoded lists, and the values of metadata and measures of encoded events. An event of two bytes takes three
//! hundred bytes after decoding, so a batch of millions must be rejected before it is decoded.

use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{BATCH_EVENTS_MAX, check_batch_size};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Maximum number of values in the metadata and measures of a batch, including nested values.
pub const BATCH_METADATA_VALUES_MAX: usize = 1_000_000;
/// Maximum depth that is counted. The decoder rejects messages that are nested more than 100 levels deep.
const DEPTH_MAX: usize = 110;

/// The kinds of messages in a batch, from the outermost to the innermost.
#[derive(Clone, Copy)]
enum Part {
    Batch,
    Event,
    Struct,
    Entry,
    Value,
    List,
    Measure,
}

impl Part {
    /// Returns the kind of message in a field, or `None` if the field is not counted.
    fn field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::Batch, 1) => Self::Event,
            (Self::Event, 14) => Self::Struct,
            (Self::Event, 16) => Self::Measure,
            (Self::Struct, 1) => Self::Entry,
            (Self::Entry, 2) | (Self::List, 1) => Self::Value,
            (Self::Value, 5) => Self::Struct,
            (Self::Value, 6) => Self::List,
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Counts {
    events: usize,
    values: usize,
}

impl Counts {
    fn add(&mut self, part: Part, mut bytes: &[u8], depth: usize) -> Result<(), DecodeError> {
        while !bytes.is_empty() && depth < DEPTH_MAX {
            let (number, wire_type) = decode_key(&mut bytes)?;
            let inner = part.field(number).filter(|_| wire_type == WireType::LengthDelimited);
            let Some(inner) = inner else {
                skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
                continue;
            };
            match (part, inner) {
                (_, Part::Event) => self.events += 1,
                // An entry has one value, even if the value is missing on the wire.
                (_, Part::Entry | Part::Measure) | (Part::List, _) => self.values += 1,
                _ => {}
            }
            let length = usize::try_from(decode_varint(&mut bytes)?).unwrap_or(usize::MAX);
            // The message is longer than the remaining bytes. The decoder reports the error.
            let Some((message, rest)) = bytes.split_at_checked(length) else { return Ok(()) };
            self.add(inner, message, depth + 1)?;
            bytes = rest;
        }
        Ok(())
    }
}

/// Returns the number of elements of a repeated field with messages.
pub fn count_elements(mut bytes: &[u8], field: u32) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        let Ok((number, wire_type)) = decode_key(&mut bytes) else { break };
        count += usize::from(number == field);
        if skip_field(wire_type, number, &mut bytes, DecodeContext::default()).is_err() {
            break;
        }
    }
    count
}

/// Rejects an encoded batch with too many events, or values of metadata and measures, and returns its number of events. The decoder reports
/// bytes that are not a message.
pub fn check_batch(bytes: &[u8]) -> Result<usize, Refusal> {
    let mut counts = Counts::default();
    drop(counts.add(Part::Batch, bytes, 0));
    if counts.events > BATCH_EVENTS_MAX {
        check_batch_size(counts.events)?;
    }
    if counts.values > BATCH_METADATA_VALUES_MAX {
        let max = BATCH_METADATA_VALUES_MAX;
        let description =
            format!("must have at most {max} values of metadata and measures together, has {}", counts.values);
        return Err(Refusal::field("events", description));
    }
    Ok(counts.events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::wire::json::to_struct;
    use crate::proto::{BatchTrackUsageRequest, EventReference, UsageEvent, VoidUsageRequest};
    use prost::Message;
    use serde_json::json;

    fn counted(bytes: &[u8]) -> (usize, usize) {
        let mut counts = Counts::default();
        drop(counts.add(Part::Batch, bytes, 0));
        (counts.events, counts.values)
    }

    #[test]
    fn events_and_metadata_values_are_counted_at_any_depth() {
        let event =
            |json| UsageEvent { client_id: "a".repeat(200), metadata: Some(to_struct(json)), ..Default::default() };
        let measures = [("pages", "1"), ("images", "2")].map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let events = vec![
            event(json!({"a": 1, "b": [1, "x", [null, {"c": true}]]})),
            UsageEvent { measures, ..UsageEvent::default() },
            event(json!({"d": {"e": {}}})),
        ];
        let bytes = BatchTrackUsageRequest { events, backfill: true, ..Default::default() }.encode_to_vec();
        // In the first event, the values of a, b and c, and five in lists. In the last event, the values of d and e. And two measures.
        assert_eq!(counted(&bytes), (3, 3 + 5 + 2 + 2));
        // A truncated batch is counted up to its end.
        for length in 0..bytes.len() {
            let (events, values) = counted(&bytes[..length]);
            assert!(events <= 3 && values <= 12);
        }
    }

    #[test]
    fn elements_of_a_field_are_counted() {
        let events = vec![EventReference { event_id: "e".into(), ..Default::default() }; 3];
        let request = VoidUsageRequest { client_id: "acme".into(), events, reason: "r".into(), ..Default::default() };
        let bytes = request.encode_to_vec();
        assert_eq!((count_elements(&bytes, 2), count_elements(&bytes, 3), count_elements(&bytes, 4)), (3, 1, 0));
        for length in 0..bytes.len() {
            assert!(count_elements(&bytes[..length], 2) <= 3);
        }
    }

    #[test]
    fn messages_nested_a_million_levels_deep_are_left_to_the_decoder() {
        let list = [[0x0a, 0x7f], [0x32, 0x7f]].concat().repeat(1_000_000);
        counted(&[&[0x0a, 0x7f, 0x72, 0x7f, 0x0a, 0x7f, 0x12, 0x7f][..], &list].concat());
    }
}
