//! A usage event that cannot be wrong any more, its identity and its payload's fingerprint.

use crate::decimal::Decimal;
use crate::metadata;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// Longest client id, service, operation, model, subject and idempotency key.
pub const ID_BYTES_MAX: usize = 128;
/// Longest external id.
pub const EXTERNAL_ID_BYTES_MAX: usize = 256;
/// Longest metadata, as JSON.
pub const METADATA_BYTES_MAX: usize = 8 * 1024;
/// Most levels of metadata, objects and lists in one another: answers stay well below the 100 messages that gRPC libraries
/// read in one another, of which a level takes up to three.
pub const METADATA_LEVELS_MAX: usize = 16;
/// Most tokens of one kind in one event. With it, a 64-bit sum holds nine million such events of a client and month.
pub const TOKENS_MAX: i64 = 1_000_000_000_000;
/// Most seconds that an event may be allowed to lie ahead of the server's clock.
pub const ACCEPT_FUTURE_SECONDS_MAX: u32 = 86_400;
/// An event lies at most so far after the time at which its key was claimed: the most that may be accepted.
pub const KEY_LEAD: TimeDelta = TimeDelta::seconds(ACCEPT_FUTURE_SECONDS_MAX as i64);
/// First byte of a payload hash: goes up when the canonical form changes, so that old hashes stay comparable.
const PAYLOAD_HASH_VERSION: u8 = 1;

/// Fingerprint of what a caller sent.
pub type PayloadHash = [u8; 17];

/// An event's id: its time and a random number, so that the events' one index finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    /// When the event happened, to the microsecond.
    pub time: DateTime<Utc>,
    /// Random, zero or more.
    pub seq: i64,
}

/// What was used, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageEvent {
    /// The tenant.
    pub client_id: Arc<str>,
    /// The service; in the catalogue when the event was checked, unless unknown ones are kept.
    pub service: Arc<str>,
    /// The operation, or empty.
    pub operation: Arc<str>,
    /// The model, or empty.
    pub model: Arc<str>,
    /// What can be charged.
    pub measures: Measures,
    /// When it happened, to the microsecond.
    pub event_time: DateTime<Utc>,
    /// The caller's key, or one made by the server.
    pub idempotency_key: Arc<str>,
    /// The user inside the client, or empty.
    pub subject: String,
    /// The caller's reference, or empty.
    pub external_id: String,
    /// JSON object with sorted keys, or nothing.
    pub metadata: Option<String>,
}

/// What an event can be charged for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// How many units.
    pub units: Decimal,
    /// Input tokens, cached ones included.
    pub input_tokens: i64,
    /// Output tokens.
    pub output_tokens: i64,
    /// Cached ones of the input tokens: never more than those.
    pub cached_input_tokens: i64,
    /// What a percentage applies to.
    pub amount: Option<Decimal>,
}

impl Measures {
    /// Whether something was used, and no tokens are reported. On the wire none and zero are the same; zero units say that
    /// nothing was used.
    pub fn reports_no_tokens(&self) -> bool {
        self.input_tokens == 0 && self.output_tokens == 0 && self.units != Decimal::ZERO
    }
}

/// What an event was charged and by which price, or why it has no charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// Exact to 12 decimals, by the price of this id.
    Priced { charge: Decimal, price_id: i64 },
    /// Kept, and priced when a price covers it.
    Unpriced(UnpricedReason),
}

/// Why an event has no charge. The numbers are those of the proto enum, and stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum UnpricedReason {
    NoPrice = 1,
    TokensNotCovered = 2,
    AmountMissing = 3,
    UnknownService = 4,
    TokensMissing = 5,
}

impl UnpricedReason {
    /// From its number in the database.
    pub fn from_number(number: i16) -> Self {
        match number {
            2 => Self::TokensNotCovered,
            3 => Self::AmountMissing,
            4 => Self::UnknownService,
            5 => Self::TokensMissing,
            _ => Self::NoPrice,
        }
    }

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPrice => "NO_PRICE",
            Self::TokensNotCovered => "TOKENS_NOT_COVERED",
            Self::AmountMissing => "AMOUNT_MISSING",
            Self::UnknownService => "UNKNOWN_SERVICE",
            Self::TokensMissing => "TOKENS_MISSING",
        }
    }
}

impl Charge {
    /// Charge, price and reason, as they are stored.
    pub fn columns(self) -> (Option<Decimal>, Option<i64>, Option<i16>) {
        match self {
            Self::Priced { charge, price_id } => (Some(charge), Some(price_id), None),
            Self::Unpriced(reason) => (None, None, Some(reason as i16)),
        }
    }
}

/// An event with the day that it counts in and its charge: what is stored.
#[derive(Clone, Debug)]
pub struct PricedEvent<'a> {
    pub event: &'a UsageEvent,
    pub id: EventId,
    /// The client's own day.
    pub day: NaiveDate,
    pub charge: Charge,
}

impl EventId {
    /// A new id for an event of this time.
    pub fn new(time: DateTime<Utc>) -> Self {
        let seq = (rand::random::<u64>() >> 1) as i64;
        Self { time, seq }
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = plain.then(|| u128::from_str_radix(text, 16).ok())??;
        let micros = i64::try_from((number >> 64) as u64).ok()?;
        let seq = i64::try_from(number as u64).ok()?;
        let time = DateTime::from_timestamp_micros(micros)?;
        Some(Self { time, seq })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = (self.time.timestamp_micros() as u128) << 64 | self.seq as u64 as u128;
        let digits: [u8; 32] = std::array::from_fn(|at| b"0123456789abcdef"[(number >> (124 - 4 * at)) as usize & 0xf]);
        f.write_str(std::str::from_utf8(&digits).expect("digits are ASCII"))
    }
}

/// Fingerprint of an event as the caller sent it, in canonical form: decimals by value, metadata keys sorted. The event
/// time counts only where the caller gave it, and the key not at all.
pub fn payload_hash(event: &UsageEvent, time_was_given: bool) -> PayloadHash {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u32).to_le_bytes());
        hash.update(bytes);
    };
    for text in [&event.service, &event.operation, &event.model] {
        field(text.as_bytes());
    }
    let measures = &event.measures;
    field(&measures.units.scaled().to_le_bytes());
    for tokens in [measures.input_tokens, measures.output_tokens, measures.cached_input_tokens] {
        field(&tokens.to_le_bytes());
    }
    field(&measures.amount.map_or(Vec::new(), |amount| amount.scaled().to_le_bytes().to_vec()));
    let time = time_was_given.then(|| event.event_time.timestamp_micros().to_le_bytes());
    field(time.as_ref().map_or(&[], |bytes| &bytes[..]));
    field(event.subject.as_bytes());
    field(event.external_id.as_bytes());
    field(event.metadata.as_deref().unwrap_or_default().as_bytes());
    let mut versioned = [PAYLOAD_HASH_VERSION; 17];
    versioned[1..].copy_from_slice(&hash.finalize()[..16]);
    versioned
}

/// Whether an event with this payload repeats the one whose key has this hash, recorded at this time.
///
/// A recorded event may come back as it was exported. Then it has the time that the server filled in when the caller gave
/// none: that is the same payload, too.
pub fn repeats(
    (sent, sent_hash): (&UsageEvent, &PayloadHash),
    (recorded_time, recorded_hash): (DateTime<Utc>, &PayloadHash),
) -> bool {
    sent_hash == recorded_hash || (sent.event_time == recorded_time && payload_hash(sent, false) == *recorded_hash)
}

/// Names the fields in which a payload differs from the recorded one.
pub fn differing_fields(
    (sent, sent_hash): (&UsageEvent, &PayloadHash),
    (recorded, recorded_hash): (&UsageEvent, &PayloadHash),
) -> Vec<&'static str> {
    // The database may spell it in another way.
    let recorded_metadata = recorded.metadata.as_deref().and_then(metadata::canonical);
    let recorded = &UsageEvent { metadata: recorded_metadata, ..recorded.clone() };
    let time_was_given = |event, hash: &PayloadHash| payload_hash(event, false) != *hash;
    let same_time = match time_was_given(sent, sent_hash) {
        true => sent.event_time == recorded.event_time,
        false => !time_was_given(recorded, recorded_hash),
    };
    let (measures, other) = (&sent.measures, &recorded.measures);
    let fields = [
        ("service", sent.service == recorded.service),
        ("operation", sent.operation == recorded.operation),
        ("model", sent.model == recorded.model),
        ("units", measures.units == other.units),
        ("input_tokens", measures.input_tokens == other.input_tokens),
        ("output_tokens", measures.output_tokens == other.output_tokens),
        ("cached_input_tokens", measures.cached_input_tokens == other.cached_input_tokens),
        ("amount", measures.amount == other.amount),
        ("event_time", same_time),
        ("subject", sent.subject == recorded.subject),
        ("external_id", sent.external_id == recorded.external_id),
        ("metadata", sent.metadata == recorded.metadata),
    ];
    fields.into_iter().filter(|(_, equal)| !equal).map(|(field, _)| field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_text_is_an_id_that_writes_itself_so_or_none(text in "\\PC*|[0-7][0-9a-f]{15}[0-7][0-9a-f]{15}|[0-9a-f]{31,33}") {
            if let Some(id) = EventId::parse(&text) {
                proptest::prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn an_id_reads_as_written(micros in 0i64..253_402_300_800_000_000) {
            let id = EventId::new(DateTime::from_timestamp_micros(micros).unwrap());
            proptest::prop_assert_eq!(EventId::parse(&id.to_string()), Some(id));
        }
    }

    #[test]
    fn what_is_no_id_is_none() {
        for text in ["", "x", &"f".repeat(32), &"0".repeat(31), &"+".repeat(32)] {
            assert_eq!(EventId::parse(text), None, "{text}");
        }
    }
}
