//! Generates random requests.

use crate::bad_requests::valid_request;
use crate::bad_test_data::{FieldPath, TestData, cases_of_field, field_paths, parent, path_text};
use crate::bad_values::Case;
use crate::contract::*;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MethodDescriptor, ReflectMessage, Value};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, RngExt};
use std::collections::HashMap;
use std::sync::Mutex;

/// Relative frequency of an RPC; others have 10. Some RPCs take long, and some record the data that the others need.
const WEIGHTS: [(&str, u32); 9] = [
    ("TrackUsage", 60),
    ("BatchTrackUsage", 40),
    ("StreamUsage", 40),
    ("RunJob", 1),
    ("RebuildRollups", 3),
    ("CheckAlerts", 3),
    ("UpdateMonthlySummaries", 3),
    ("CreateApiKey", 2),
    ("RotateApiKey", 2),
];
/// Other tests send larger values.
const VALUE_BYTES_MAX: usize = 4_000;
/// Maximum number of remembered ids and tokens per name.
const KNOWN_MAX: usize = 100;
/// Months of random times. Each month creates a partition.
const TIMES: [i64; 8] =
    [0, 1, 1_700_000_000, 1_790_000_000, 1_795_262_399, 1_795_262_400, 1_795_262_700, 253_402_300_799];

/// Ids and tokens that the server returned, by the name of the field that takes them.
pub struct Known(Mutex<HashMap<String, Vec<String>>>);

impl Known {
    /// Starts with the ids that exist at the beginning.
    pub fn new(data: &TestData) -> Self {
        let clients = ["acme", "beta", "gamma", "client-1", "client-2"].map(String::from).to_vec();
        let known = [
            ("client_id", clients),
            ("event_id", vec![data.event_id.clone()]),
            ("alert_id", vec![data.alert_id.clone()]),
            ("notification_id", vec!["sent".into()]),
            ("key_id", vec!["0123456789abcdef".into()]),
            ("job", meterd_engine::jobs::names()),
            ("service", ["sms", "openai", "stripe", "api_call", "service-1"].map(String::from).to_vec()),
        ];
        Self(Mutex::new(known.into_iter().map(|(name, values)| (name.to_string(), values)).collect()))
    }

    /// Remembers ids and tokens of a response.
    pub fn learn(&self, answer: &Answer) {
        for message in &answer.messages {
            self.learn_from(message);
        }
    }

    fn learn_from(&self, message: &DynamicMessage) {
        for (field, value) in message.fields() {
            match (field.name(), value) {
                ("event_id" | "alert_id" | "notification_id" | "key_id" | "resume_token", Value::String(text)) => {
                    self.keep(field.name(), text);
                }
                ("next_page_token", Value::String(text)) => self.keep("page_token", text),
                (_, Value::Message(inner)) => self.learn_from(inner),
                (_, Value::List(values)) => {
                    values.iter().filter_map(Value::as_message).for_each(|inner| self.learn_from(inner))
                }
                _ => {}
            }
        }
    }

    fn keep(&self, name: &str, text: &str) {
        let mut known = self.0.lock().unwrap();
        let values = known.entry(name.into()).or_default();
        if values.len() < KNOWN_MAX {
            values.push(text.into());
        } else {
            let at = text.bytes().map(usize::from).sum::<usize>() % KNOWN_MAX;
            values[at] = text.into();
        }
    }

    fn any(&self, name: &str, random: &mut StdRng) -> Option<String> {
        self.0.lock().unwrap().get(name)?.choose(random).cloned()
    }
}

/// An RPC with its valid request and the values for its fields.
struct Prepared {
    rpc: MethodDescriptor,
    valid: String,
    field_paths: Vec<(FieldPath, Vec<Case>)>,
    weight: u32,
}

/// A generated request.
pub struct Made {
    pub rpc: MethodDescriptor,
    pub messages: Vec<Vec<u8>>,
    /// Whether these are valid messages of the method.
    pub is_message: bool,
}

/// Generates requests.
pub struct Requests(Vec<Prepared>);

impl Requests {
    /// Prepares requests to every RPC.
    pub async fn new(data: &mut TestData) -> Self {
        let mut prepared = vec![];
        for rpc in rpcs() {
            let mut found = vec![];
            field_paths(&rpc.input(), &[], &mut found);
            let mut valid = data.valid(&rpc).await;
            let tokens = ["QUFBQUFBQUFBQUFBQUFBQUFBQQ".into(), "QkJCQkJCQkJCQkJCQkJCQkJCQkI".into()];
            let cases = |path: FieldPath| {
                let unique = format!("{}-{}", rpc.name(), path_text(&path).len());
                let mut cases = cases_of_field(&rpc, &path, &mut valid, &tokens, &unique);
                cases.retain(|case| case.value.as_ref().is_none_or(|value| bytes_of(value) <= VALUE_BYTES_MAX));
                (path, cases)
            };
            let field_paths = found.into_iter().map(cases).collect();
            let weight = WEIGHTS.iter().find(|(name, _)| *name == rpc.name()).map_or(10, |(_, weight)| *weight);
            prepared.push(Prepared { valid: valid_request(rpc.name()), field_paths, weight, rpc });
        }
        Self(prepared)
    }

    /// Returns a random request.
    pub fn make(&self, random: &mut StdRng, known: &Known) -> Made {
        let prepared = self.0.choose_weighted(random, |prepared| prepared.weight).unwrap();
        let count = if prepared.rpc.is_client_streaming() { random.random_range(0..6) } else { 1 };
        let how = random.random_range(0..100);
        let mut one = || match how {
            0..5 => any_bytes(random),
            5..20 => any_message(prepared, random).encode_to_vec(),
            20..85 => prepared.plausible(random, known).encode_to_vec(),
            _ => {
                let message =
                    if random.random() { any_message(prepared, random) } else { prepared.plausible(random, known) };
                let other = self.0.choose(random).unwrap().plausible(random, known).encode_to_vec();
                corrupted(message.encode_to_vec(), &other, random)
            }
        };
        let messages = (0..count).map(|_| one()).collect();
        Made { rpc: prepared.rpc.clone(), messages, is_message: (5..85).contains(&how) }
    }
}

impl Prepared {
    /// Returns the valid request with some fields changed.
    fn plausible(&self, random: &mut StdRng, known: &Known) -> DynamicMessage {
        // Small numbers repeat keys and ids with other contents. Large numbers are new.
        let few = random.random_bool(0.4);
        let number = if few { random.random_range(0..40) } else { random.random::<u32>() };
        let mut text = self.valid.replace("$N", &number.to_string());
        for (sign, name) in [("$KEY", "key_id"), ("$EVENT", "event_id"), ("$ALERT", "alert_id")] {
            if text.contains(sign) {
                text = text.replace(sign, &known.any(name, random).unwrap_or_default());
            }
        }
        let mut message = from_json(self.rpc.input(), &text);
        if let Some(Value::List(events)) = message.get_field_by_name_mut("events") {
            for _ in 0..random.random_range(0..12) {
                let mut event = events[0].as_message().unwrap().clone();
                event.set_field_by_name(
                    "idempotency_key",
                    Value::String(format!("k-{}", random.random_range(0..10_000))),
                );
                event.set_field_by_name("client_id", Value::String(known.any("client_id", random).unwrap()));
                events.push(Value::Message(event));
            }
        }
        let changes = *[0, 0, 1, 1, 1, 2, 3, 5].choose(random).unwrap();
        for _ in 0..changes {
            if let Some((path, cases)) = self.field_paths.choose(random) {
                change(&mut message, path, cases, random, known);
            }
        }
        message
    }
}

/// Sets a field to another value.
fn change(message: &mut DynamicMessage, path: &FieldPath, cases: &[Case], random: &mut StdRng, known: &Known) {
    let field = path.last().unwrap();
    let Some(message) = parent(message, path) else { return };
    let is_text = field.kind() == Kind::String && !field.is_list();
    let known = if is_text { known.any(field.name(), random) } else { None };
    match (random.random_range(0..100), known, cases.choose(random)) {
        (0..40, Some(text), _) => message.set_field(field, Value::String(text)),
        (0..85, _, Some(case)) => {
            match &case.value {
                Some(value) => message.set_field(field, value.clone()),
                None => message.clear_field(field),
            }
            if let Some((name, value)) = &case.sibling {
                message.set_field_by_name(name, value.clone());
            }
        }
        _ => message.set_field(field, any_value(field, random, 4)),
    }
}

/// Returns a message with arbitrary values.
fn any_message(prepared: &Prepared, random: &mut StdRng) -> DynamicMessage {
    let mut message = DynamicMessage::new(prepared.rpc.input());
    fill(&mut message, random, 4);
    message
}

fn fill(message: &mut DynamicMessage, random: &mut StdRng, depth: u32) {
    for field in message.descriptor().fields() {
        if random.random_bool(0.6) {
            message.set_field(&field, any_value(&field, random, depth));
        }
    }
}

fn any_value(field: &FieldDescriptor, random: &mut StdRng, depth: u32) -> Value {
    let count = if random.random_bool(0.01) { 150 } else { random.random_range(0..4) };
    if field.is_list() {
        return Value::List((0..count).map(|_| any_single(&field.kind(), random, depth)).collect());
    }
    if let Kind::Message(entry) = field.kind()
        && entry.is_map_entry()
    {
        let mut one = || {
            let key = MapKey::String(any_text(random));
            (key, any_single(&entry.map_entry_value_field().kind(), random, depth))
        };
        return Value::Map((0..count).map(|_| one()).collect());
    }
    any_single(&field.kind(), random, depth)
}

fn any_single(kind: &Kind, random: &mut StdRng, depth: u32) -> Value {
    let whole = |random: &mut StdRng| match random.random_range(0..4) {
        0 => *[0, 1, -1, 100, 1_000, 10_001, i64::MAX, i64::MIN].choose(random).unwrap(),
        1 => *TIMES.choose(random).unwrap(),
        2 => random.random_range(-3..40),
        _ => random.random(),
    };
    match kind {
        Kind::String => Value::String(any_text(random)),
        Kind::Bool => Value::Bool(random.random()),
        Kind::Double => Value::F64(f64::from_bits(random.random())),
        Kind::Int32 => Value::I32(whole(random) as i32),
        Kind::Int64 => Value::I64(whole(random)),
        Kind::Enum(_) => {
            Value::EnumNumber(if random.random_bool(0.9) { random.random_range(0..8) } else { random.random() })
        }
        Kind::Message(descriptor) => {
            let mut message = DynamicMessage::new(descriptor.clone());
            if depth > 0 {
                fill(&mut message, random, depth - 1);
            }
            Value::Message(message)
        }
        other => panic!("the proto files have no {other:?}"),
    }
}

/// Returns a text that may have a meaning or not.
fn any_text(random: &mut StdRng) -> String {
    const MEANINGFUL: [&str; 24] = [
        "acme",
        "beta",
        "sms",
        "openai",
        "chat_completion",
        "gpt-4o-mini",
        "1",
        "0",
        "-1",
        "0.000000000001",
        "1e5",
        "NaN",
        "999999999999999.999999999999",
        "2026-11-21",
        "2026-11-01",
        "2026-11",
        "2026-02-29",
        "0001-01-01",
        "9999-12-31",
        "UTC",
        "Europe/Berlin",
        "https://hooks.invalid/",
        "display_name",
        "monthly_warning",
    ];
    const LETTERS: [char; 20] = [
        'a', 'B', '0', '9', '.', '-', '_', '/', ' ', '\0', '\n', '"', '\\', '\'', '%', 'é', '\u{301}', '\u{202e}',
        '🚀', '\u{85}',
    ];
    match random.random_range(0..10) {
        0..6 => MEANINGFUL.choose(random).unwrap().to_string(),
        6..9 => {
            let length = random.random_range(0..12);
            (0..length).map(|_| *LETTERS.choose(random).unwrap()).collect()
        }
        _ => LETTERS.choose(random).unwrap().to_string().repeat(random.random_range(0..300)),
    }
}

fn any_bytes(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..200)];
    random.fill_bytes(&mut bytes);
    // Use existing field numbers, so that decoding does not fail at once.
    if random.random()
        && let Some(first) = bytes.first_mut()
    {
        *first = 1 << 3 | (*first & 7);
    }
    bytes
}

/// Returns the bytes with some of them changed.
fn corrupted(mut bytes: Vec<u8>, other: &[u8], random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len().min(at + 20));
        match random.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            5 => bytes.extend((0..other.len()).choose(random).map_or(&[][..], |from| &other[from..])),
            _ => drop(bytes.splice(at..end, any_bytes(random))),
        }
    }
    bytes
}

/// Returns the approximate size of a value in bytes.
fn bytes_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::List(values) => values.iter().map(bytes_of).sum(),
        Value::Message(message) => message.encoded_len(),
        _ => 8,
    }
}
