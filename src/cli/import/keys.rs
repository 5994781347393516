//! Idempotency keys that are made from the contents of rows, so that a repeated import counts nothing twice.
//!
//! A key consists of the prefix, the hash of the event's contents, and the number of equal rows in the file so far. It does
//! not depend on the name of the file, the order of rows, the batch size or other rows. Two equal rows are two events.
//! Equal rows are counted per file and not per run, so that the result does not depend on how files are grouped into runs.
//! The same row in two files is therefore one event, unless the files are imported as parts of one file or with different
//! prefixes. The hash covers the original text of the row, with spaces, and interprets a time without a zone as UTC. So the
//! key depends neither on the time zone of the client nor on the rules for trimming.

use std::collections::HashMap;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use sha2::{Digest, Sha256};

use crate::proto::UsageEvent;

/// Half a SHA-256. The probability of a collision among 10^9 rows is 10^-21.
pub type ContentHash = [u8; 16];

/// Version of the canonical form. Keys of different versions never collide.
const FORM: &[u8] = b"meterd import 1";

/// The hash of a row and the number of equal rows so far, including this one.
pub type Occurrence = (ContentHash, u32);

/// Makes the keys of one file, or of files that are parts of one file. Needs about 40 bytes for each distinct row, so tens of
/// millions of rows fit into memory.
#[derive(Debug)]
pub struct KeyMaker {
    prefix: String,
    seen: HashMap<ContentHash, u32>,
}

impl KeyMaker {
    /// Creates the state for a new file.
    pub fn new(prefix: &str) -> KeyMaker {
        KeyMaker { prefix: prefix.to_owned(), seen: HashMap::new() }
    }

    /// Returns the key of the next row and its occurrence. Must be called for each row in order.
    pub fn next_key(&mut self, event: &UsageEvent) -> (String, Occurrence) {
        let hash = content_hash(event);
        let occurrence = self.seen.entry(hash).or_insert(0);
        *occurrence += 1;
        (format!("{}-{}-{occurrence}", self.prefix, hex(&hash)), (hash, *occurrence))
    }
}

/// Rows of all files of a run, to find rows that are in several files.
#[derive(Debug, Default)]
pub struct OtherFiles {
    seen: HashMap<Occurrence, u32>,
}

impl OtherFiles {
    /// Adds a row of a file. Returns the number of an earlier file that contains the same row.
    pub fn earlier_file(&mut self, row: Occurrence, file: u32) -> Option<u32> {
        let first = *self.seen.entry(row).or_insert(file);
        (first != file).then_some(first)
    }
}

/// Hashes all fields of an event except its key.
pub fn content_hash(event: &UsageEvent) -> ContentHash {
    let mut hash = Sha256::new_with_prefix(FORM);
    for text in [
        &event.client_id,
        &event.service,
        &event.operation,
        &event.model,
        &event.units,
        &event.amount,
        &event.subject,
        &event.external_id,
    ] {
        put(&mut hash, text.as_bytes());
    }
    for tokens in [event.input_tokens, event.output_tokens, event.cached_input_tokens] {
        hash.update(tokens.to_be_bytes());
    }
    match &event.event_time {
        Some(time) => {
            hash.update([1]);
            hash.update(time.seconds.to_be_bytes());
            hash.update(time.nanos.to_be_bytes());
        }
        None => hash.update([0]),
    }
    if let Some(metadata) = &event.metadata {
        put_object(&mut hash, metadata);
    }
    // Left out if all are absent, so that such rows have the same keys as before these fields existed.
    let has_newest = !event.reported_cost.is_empty() || !event.labels.is_empty();
    if has_newest || !event.service_tier.is_empty() || !event.measures.is_empty() {
        put(&mut hash, event.service_tier.as_bytes());
        for (name, quantity) in &event.measures {
            put(&mut hash, name.as_bytes());
            put(&mut hash, quantity.as_bytes());
        }
    }
    if has_newest {
        // No name of a measure is empty, so this ends the measures.
        put(&mut hash, b"");
        put(&mut hash, event.reported_cost.as_bytes());
        for text in event.labels.iter().flat_map(|(name, value)| [name, value]) {
            put(&mut hash, text.as_bytes());
        }
    }
    let digest = hash.finalize();
    let mut short = ContentHash::default();
    short.copy_from_slice(&digest[..16]);
    short
}

/// Adds bytes with their length, so that the boundary between two fields is unambiguous.
fn put(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn put_object(hash: &mut Sha256, object: &Struct) {
    hash.update([b'{']);
    hash.update((object.fields.len() as u64).to_be_bytes());
    for (key, value) in &object.fields {
        put(hash, key.as_bytes());
        put_value(hash, value);
    }
}

fn put_value(hash: &mut Sha256, value: &Value) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => hash.update([b'n']),
        Some(Kind::BoolValue(is)) => hash.update([b'b', u8::from(*is)]),
        Some(Kind::NumberValue(number)) => {
            hash.update([b'd']);
            hash.update(number.to_bits().to_be_bytes());
        }
        Some(Kind::StringValue(text)) => {
            hash.update([b's']);
            put(hash, text.as_bytes());
        }
        Some(Kind::StructValue(object)) => put_object(hash, object),
        Some(Kind::ListValue(list)) => {
            hash.update([b'[']);
            hash.update((list.values.len() as u64).to_be_bytes());
            list.values.iter().for_each(|value| put_value(hash, value));
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(units: &str) -> UsageEvent {
        UsageEvent { client_id: "acme".into(), service: "openai".into(), units: units.into(), ..Default::default() }
    }

    fn keys(events: &[UsageEvent]) -> Vec<String> {
        let mut maker = KeyMaker::new("import");
        events.iter().map(|event| maker.next_key(event).0).collect()
    }

    #[test]
    fn equal_rows_are_two_events_and_have_the_same_keys_again() {
        let file = [event("1"), event("1"), event("2")];
        let first = keys(&file);
        assert_eq!(first, keys(&file));
        assert_ne!(first[0], first[1]);
        assert!(first[0].starts_with("import-") && first[0].ends_with("-1"));
        assert!(first[1].ends_with("-2"));
        assert!(first[2].ends_with("-1"));
    }

    #[test]
    fn other_rows_and_another_order_change_no_key() {
        let mut before = keys(&[event("1"), event("2"), event("1")]);
        let mut after = keys(&[event("3"), event("1"), event("1"), event("2")]);
        after.remove(0);
        before.sort();
        after.sort();
        assert_eq!(before, after);
    }

    #[test]
    fn different_prefixes_make_different_keys() {
        assert_ne!(KeyMaker::new("a").next_key(&event("1")), KeyMaker::new("b").next_key(&event("1")));
    }

    #[test]
    fn the_hash_depends_on_every_field_and_on_the_boundaries_between_them() {
        let base = UsageEvent::default();
        let variants = [
            UsageEvent { client_id: "x".into(), ..base.clone() },
            UsageEvent { service: "x".into(), ..base.clone() },
            UsageEvent { operation: "x".into(), ..base.clone() },
            UsageEvent { model: "x".into(), ..base.clone() },
            UsageEvent { units: "1".into(), ..base.clone() },
            UsageEvent { amount: "1".into(), ..base.clone() },
            UsageEvent { subject: "x".into(), ..base.clone() },
            UsageEvent { external_id: "x".into(), ..base.clone() },
            UsageEvent { input_tokens: 1, ..base.clone() },
            UsageEvent { output_tokens: 1, ..base.clone() },
            UsageEvent { cached_input_tokens: 1, ..base.clone() },
            UsageEvent { event_time: Some(Default::default()), ..base.clone() },
            UsageEvent { metadata: Some(Default::default()), ..base.clone() },
            UsageEvent { operation: "a".into(), model: "b".into(), ..base.clone() },
            UsageEvent { operation: "ab".into(), ..base.clone() },
            base,
        ];
        let hashes: std::collections::HashSet<_> = variants.iter().map(content_hash).collect();
        assert_eq!(hashes.len(), variants.len());
    }

    #[test]
    fn the_canonical_form_does_not_change() {
        // If this hash changes, a repeated import counts again: increase FORM and mention it in the release notes.
        let event = UsageEvent {
            input_tokens: 374,
            event_time: Some(prost_types::Timestamp { seconds: 1_700_158_546, nanos: 680_590_000 }),
            metadata: Some(crate::cli::json::metadata(r#"{"b":[1,"x",null],"a":{"c":true}}"#).unwrap()),
            ..event("2.5")
        };
        assert_eq!(hex(&content_hash(&event)), "cff981e0f4bc4d5fc95b7aff48745ef5");
    }
}
