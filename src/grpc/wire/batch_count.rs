//! What a batch is about to take, counted on the wire: decoded, an event of two bytes takes three hundred, so a batch of
//! millions must be refused before it is.

use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{BATCH_EVENTS_MAX, check_batch_size};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Most values in the metadata of a batch, those within others too.
pub const BATCH_METADATA_VALUES_MAX: usize = 1_000_000;
/// Deeper messages are left to the decoder, which refuses what is more than 100 deep.
const DEPTH_MAX: usize = 110;

/// Messages of a batch, from the outside.
#[derive(Clone, Copy)]
enum Part {
    Batch,
    Event,
    Struct,
    Entry,
    Value,
    List,
}

impl Part {
    /// What is in a field of this number; none, where it is nothing that grows.
    fn field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::Batch, 1) => Self::Event,
            (Self::Event, 14) => Self::Struct,
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
                // An entry has one value, also where it is not there.
                (_, Part::Entry) | (Part::List, _) => self.values += 1,
                _ => {}
            }
            let length = usize::try_from(decode_varint(&mut bytes)?).unwrap_or(usize::MAX);
            // One that is longer than what there is: the decoder says so.
            let Some((message, rest)) = bytes.split_at_checked(length) else { return Ok(()) };
            self.add(inner, message, depth + 1)?;
            bytes = rest;
        }
        Ok(())
    }
}

/// Refuses a batch of more than may be, given its bytes. What is no message at all is left to the decoder.
pub fn check_batch(bytes: &[u8]) -> Result<usize, Refusal> {
    let mut counts = Counts::default();
    drop(counts.add(Part::Batch, bytes, 0));
    if counts.events > BATCH_EVENTS_MAX {
        check_batch_size(counts.events)?;
    }
    if counts.values > BATCH_METADATA_VALUES_MAX {
        let most = BATCH_METADATA_VALUES_MAX;
        let description = format!("must have at most {most} metadata values together, has {}", counts.values);
        return Err(Refusal::field("events", description));
    }
    Ok(counts.events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::wire::json::to_struct;
    use crate::proto::{BatchTrackUsageRequest, UsageEvent};
    use prost::Message;
    use serde_json::json;

    fn counted(bytes: &[u8]) -> (usize, usize) {
        let mut counts = Counts::default();
        drop(counts.add(Part::Batch, bytes, 0));
        (counts.events, counts.values)
    }

    #[test]
    fn events_and_metadata_are_counted_wherever_they_stand() {
        let event =
            |json| UsageEvent { client_id: "a".repeat(200), metadata: Some(to_struct(json)), ..Default::default() };
        let events = vec![
            event(json!({"a": 1, "b": [1, "x", [null, {"c": true}]]})),
            UsageEvent::default(),
            event(json!({"d": {"e": {}}})),
        ];
        let bytes = BatchTrackUsageRequest { events, backfill: true, ..Default::default() }.encode_to_vec();
        // Of the first, those of a, b and c, and five in lists; of the last, those of d and e.
        assert_eq!(counted(&bytes), (3, 3 + 5 + 2));
        // Cut anywhere, it is counted as far as it goes.
        for length in 0..bytes.len() {
            let (events, values) = counted(&bytes[..length]);
            assert!(events <= 3 && values <= 10);
        }
    }

    #[test]
    fn a_message_in_itself_a_million_times_is_left_to_the_decoder() {
        let list = [[0x0a, 0x7f], [0x32, 0x7f]].concat().repeat(1_000_000);
        counted(&[&[0x0a, 0x7f, 0x72, 0x7f, 0x0a, 0x7f, 0x12, 0x7f][..], &list].concat());
    }
}
