//! The clients' own record of acknowledged events. A client writes it before it continues.

use crate::events;
use meterd::proto::UsageResult;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::EventId;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Number, event id and charge, each in little-endian bytes.
const RECORD_BYTES: usize = 8 + 16 + 16;
/// A stream acknowledges accepted events without their id and charge.
const UNNAMED: (u128, i128) = (u128::MAX, i128::MIN);

/// An acknowledged event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Acknowledged {
    pub number: u64,
    named: (u128, i128),
}

impl Acknowledged {
    /// Creates one that has only a number.
    pub fn unnamed(number: u64) -> Self {
        Self { number, named: UNNAMED }
    }

    /// Creates one with the id and charge of a result.
    pub fn new(number: u64, result: &UsageResult) -> Self {
        let id = EventId::parse(&result.event_id).expect("an acknowledged event has an id");
        let charge = result.charge.as_ref().expect("all events of the test have a price");
        let charge = Decimal::parse(&charge.amount).expect("a charge is a decimal").scaled();
        Self { number, named: (id_number(id), charge) }
    }

    /// Returns whether this can be the recorded event.
    pub fn is(&self, id: EventId, charge: Decimal) -> bool {
        self.named == UNNAMED || self.named == (id_number(id), charge.scaled())
    }
}

fn id_number(id: EventId) -> u128 {
    ((id.time.timestamp_micros() as u128) << 64) | id.seq as u128
}

/// The journal. The data is in the kernel before [`Journal::write`] returns.
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    pub fn create(path: &Path) -> Self {
        Self { path: path.into(), file: Mutex::new(File::create(path).unwrap()) }
    }

    /// Appends acknowledged events.
    pub fn write(&self, acknowledged: &[Acknowledged]) {
        let mut bytes = Vec::with_capacity(acknowledged.len() * RECORD_BYTES);
        for Acknowledged { number, named: (id, charge) } in acknowledged {
            bytes.extend(number.to_le_bytes());
            bytes.extend(id.to_le_bytes());
            bytes.extend(charge.to_le_bytes());
        }
        self.file.lock().unwrap().write_all(&bytes).unwrap();
    }

    /// Reads the journal. Returns the first acknowledgement of each number, and how many later acknowledgements differ
    /// from it.
    pub fn read(&self) -> (Vec<Option<Acknowledged>>, usize) {
        let mut file = BufReader::new(File::open(&self.path).unwrap());
        let (mut first, mut disagreeing) = (Vec::new(), 0);
        let mut record = [0; RECORD_BYTES];
        loop {
            match file.read_exact(&mut record) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return (first, disagreeing),
                read => read.unwrap(),
            }
            let number = u64::from_le_bytes(record[..8].try_into().unwrap());
            let id = u128::from_le_bytes(record[8..24].try_into().unwrap());
            let charge = i128::from_le_bytes(record[24..].try_into().unwrap());
            let new = Acknowledged { number, named: (id, charge) };
            let at = number as usize;
            if first.len() <= at {
                first.resize(at + 1, None);
            }
            match first[at] {
                Some(Acknowledged { named, .. }) if named != UNNAMED => {
                    disagreeing += usize::from(new.named != UNNAMED && new.named != named);
                }
                _ => first[at] = Some(new),
            }
        }
    }
}

/// Returns the number of an event's key.
pub fn number_of(key: &str) -> u64 {
    key.strip_prefix(events::KEY_PREFIX).and_then(|number| number.parse().ok()).expect("the key of a numbered event")
}
