//! What this replica knows of the closed generations of idempotency keys: which of them may contain a key.
//!
//! A new key must not be in any closed generation. Looking it up in each of them would take longer than all other work
//! for an event. So each closed generation has a Bloom filter in memory, and a key is looked up only in the generations
//! whose filter may contain it. A filter never misses a key, because a closed generation gets no more keys. If the
//! filter of a generation is not in memory, for example right after the generation was closed, every key is looked up
//! in it, which is slower but just as exact.

use chrono::{DateTime, Utc};
use fastbloom::BloomFilter;
use futures_util::TryStreamExt;
use meterd_store::usage::generations::{self, Generations};
use sqlx::{Acquire, PgPool};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Version of the bytes of a filter. Filters of other versions are not used, and are built again.
pub const FILTER_FORMAT: i16 = 1;
/// Bits for each key. As each key sets [`HASHES`] bits, a filter may contain 0.06 % of the keys that are not in its
/// generation: (1 - e^(-8/16))^8.
const BITS_PER_KEY: usize = 16;
const HASHES: u32 = 8;
/// Part of the format.
const SEED: u128 = 0x6d65_7465_7264_206b_6579_2066_696c_7465;
/// How often this replica looks for generations that another replica has closed, and for new filters.
const REFRESH_EVERY: Duration = Duration::from_secs(5);
/// Timeout of a refresh, because its connection may be dead.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);

/// The filter of one closed generation.
pub struct Filter(BloomFilter);

impl Filter {
    /// Creates an empty filter for this many keys.
    fn for_keys(count: usize) -> Self {
        Self(BloomFilter::with_num_bits(count.max(1) * BITS_PER_KEY).seed(&SEED).hashes(HASHES))
    }

    fn insert(&mut self, client_id: &str, key: &str) {
        self.0.insert(&(client_id, key));
    }

    /// Returns the hash of a key, which is the same for all filters.
    fn hash(&self, client_id: &str, key: &str) -> u64 {
        self.0.source_hash(&(client_id, key))
    }

    /// Returns whether a key with this hash may be in the generation. If `false`, the key is not in it.
    fn may_contain(&self, hash: u64) -> bool {
        self.0.contains_hash(hash)
    }

    fn bytes(&self) -> usize {
        size_of_val(self.0.as_slice())
    }

    fn encode(&self) -> Vec<u8> {
        self.0.as_slice().iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Decodes a filter of [`FILTER_FORMAT`]. `None` if its length is impossible.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        (rest.is_empty() && !words.is_empty()).then(|| Self(BloomFilter::from_vec(words).seed(&SEED).hashes(HASHES)))
    }
}

/// Builds the filter of a closed generation and stores it.
pub async fn build_filter(pool: &PgPool, generation: i32) -> meterd_store::Result<()> {
    let mut conn = pool.acquire().await?;
    // If keys are deleted between the two statements, the filter only has more bits than it needs.
    let mut tx = conn.begin().await?;
    meterd_store::database::connect::allow_long_statements(&mut tx).await?;
    let count = generations::count(&mut tx, generation).await?;
    let mut filter = Filter::for_keys(usize::try_from(count).unwrap_or_default());
    let mut keys = generations::keys(&mut tx, generation);
    while let Some(key) = keys.try_next().await? {
        filter.insert(&key.client_id, &key.idempotency_key);
    }
    drop(keys);
    tx.commit().await?;
    generations::store_filter(&mut conn, generation, count, FILTER_FORMAT, &filter.encode()).await
}

/// The closed generations that this replica knows, at one moment.
#[derive(Default)]
struct Known {
    /// Generations from this number on are not known. It was the current generation when `closed` was read.
    next: i32,
    /// The generations before `next` that exist, each with its filter if it is in memory.
    closed: BTreeMap<i32, Option<Arc<Filter>>>,
}

/// The time at which a generation was closed, and its filter.
type ReadFilter = (DateTime<Utc>, Arc<Filter>);

/// The filters in the memory of this replica. They are shared by its writers.
pub struct KeyFilters {
    known: RwLock<Arc<Known>>,
    /// The filters that were read. A filter is used only if its generation still has the close time with which the
    /// filter was read: after a failover or a restore, the database can be an older copy, and its generation of this
    /// number has other keys.
    read: Mutex<BTreeMap<i32, ReadFilter>>,
    /// How often [`KeyFilters::forget`] was called.
    forgotten: AtomicU64,
    /// Maximum number of bytes of all filters. Filters of newer generations take precedence.
    bytes_max: usize,
    /// Wakes the task that refreshes.
    wanted: Notify,
}

impl KeyFilters {
    /// Reads which generations there are. The filters are read by [`KeyFilters::start`].
    pub async fn load(pool: &PgPool, bytes_max: usize) -> meterd_store::Result<Arc<Self>> {
        let Generations { current, closed, .. } = generations::list(pool).await?;
        let closed = closed.into_iter().map(|closed| (closed.generation, None)).collect();
        let known = RwLock::new(Arc::new(Known { next: current, closed }));
        Ok(Arc::new(Self::new(known, bytes_max)))
    }

    fn new(known: RwLock<Arc<Known>>, bytes_max: usize) -> Self {
        let (read, forgotten) = (Mutex::default(), AtomicU64::new(0));
        Self { known, read, forgotten, bytes_max, wanted: Notify::new() }
    }

    /// Forgets the generations: until they are read again, every key is looked up in every closed generation. A writer
    /// calls this for each new connection, because the database may be an older copy than that of the last connection.
    pub fn forget(&self) {
        let mut known = self.known.write().expect("no holder of the lock panics");
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        *known = Arc::default();
        self.wanted.notify_one();
    }

    /// Starts the task that keeps the filters up to date, until `stopping` is true.
    pub fn start(self: &Arc<Self>, pool: &PgPool, mut stopping: watch::Receiver<bool>) -> JoinHandle<()> {
        let (filters, pool) = (self.clone(), pool.clone());
        tokio::spawn(async move {
            while !*stopping.borrow() {
                match tokio::time::timeout(REFRESH_TIMEOUT, filters.refresh(&pool)).await {
                    Ok(Ok(())) => {}
                    // The pool is being closed.
                    _ if *stopping.borrow() => return,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the filters of idempotency keys could not be read; retrying")
                    }
                    Err(_) => tracing::warn!("the filters of idempotency keys could not be read in time; retrying"),
                }
                tokio::select! {
                    () = filters.wanted.notified() => {}
                    () = tokio::time::sleep(REFRESH_EVERY) => {}
                    _ = stopping.changed() => {}
                }
            }
        })
    }

    /// Reads the generations and the filters that are not in memory.
    pub async fn refresh(&self, pool: &PgPool) -> meterd_store::Result<()> {
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let Generations { current, closed, .. } = generations::list(pool).await?;
        let mut known = Known { next: current, closed: BTreeMap::new() };
        let mut read = BTreeMap::new();
        let mut bytes = 0;
        for generation in closed.iter().rev() {
            let number = generation.generation;
            let mut filter = self.filter_of(number, generation.close_time);
            if filter.is_none() && generation.filter_format == Some(FILTER_FORMAT) && bytes < self.bytes_max {
                let stored = generations::filter(pool, number, FILTER_FORMAT).await?;
                filter = stored.and_then(|stored| Filter::decode(&stored)).map(Arc::new);
            }
            filter = filter.filter(|filter| bytes + filter.bytes() <= self.bytes_max);
            bytes += filter.as_ref().map_or(0, |filter| filter.bytes());
            if let Some(filter) = &filter {
                read.insert(number, (generation.close_time, filter.clone()));
            }
            known.closed.insert(number, filter);
        }
        metrics::gauge!("meterd_key_generations").set(known.closed.len() as f64 + 1.0);
        metrics::gauge!("meterd_key_filter_bytes").set(bytes as f64);
        *self.read.lock().expect("no holder of the lock panics") = read;
        let mut current = self.known.write().expect("no holder of the lock panics");
        // Otherwise the generations may have been read from the database before a failover.
        if forgotten == self.forgotten.load(Ordering::SeqCst) {
            *current = Arc::new(known);
        }
        Ok(())
    }

    /// Returns the filter in memory of a generation that was closed at this time.
    fn filter_of(&self, generation: i32, close_time: DateTime<Utc>) -> Option<Arc<Filter>> {
        let read = self.read.lock().expect("no holder of the lock panics");
        read.get(&generation).filter(|(of, _)| *of == close_time).map(|(_, filter)| filter.clone())
    }

    /// Returns the bytes of memory that the filters take.
    pub fn memory_bytes(&self) -> usize {
        self.known().closed.values().flatten().map(|filter| filter.bytes()).sum()
    }

    fn known(&self) -> Arc<Known> {
        self.known.read().expect("no holder of the lock panics").clone()
    }

    /// Returns the closed generations that are visible to a transaction whose current generation is `current`.
    pub fn closed_before(&self, current: i32) -> ClosedGenerations {
        let known = self.known();
        if current > known.next {
            self.wanted.notify_one();
        }
        ClosedGenerations { known, current }
    }
}

/// The closed generations of a transaction. They do not change until its commit, because it shares the versions lock.
pub struct ClosedGenerations {
    known: Arc<Known>,
    /// The generation in which the transaction claims keys.
    pub current: i32,
}

impl ClosedGenerations {
    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.closed.is_empty() && self.known.next >= self.current
    }

    /// Returns the generations that may have the key, newest first.
    pub fn that_may_have(&self, client_id: &str, key: &str) -> impl Iterator<Item = i32> {
        let unknown = (self.known.next..self.current).rev();
        let mut hash = None;
        let may_have = move |(generation, filter): (&i32, &Option<Arc<Filter>>)| {
            let may_contain = filter
                .as_ref()
                .is_none_or(|filter| filter.may_contain(*hash.get_or_insert_with(|| filter.hash(client_id, key))));
            (may_contain && *generation < self.current).then_some(*generation)
        };
        unknown.chain(self.known.closed.iter().rev().filter_map(may_have))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(count: usize) -> Filter {
        let mut filter = Filter::for_keys(count);
        (0..count).for_each(|number| filter.insert("acme", &format!("key-{number}")));
        filter
    }

    #[test]
    fn a_filter_has_all_its_keys_and_few_others() {
        let count = 100_000;
        let filter = Filter::decode(&filter(count).encode()).unwrap();
        let may_contain = |client_id, number| filter.may_contain(filter.hash(client_id, &format!("key-{number}")));
        assert!((0..count).all(|number| may_contain("acme", number)));
        let others = (0..count).filter(|number| may_contain("beta", *number)).count();
        assert!(others < count / 500, "{others} of {count} other keys");
        assert!(filter.bytes() <= 2 * count + 64, "{} bytes", filter.bytes());
    }

    /// Databases contain filters. If this test fails, a release of `fastbloom` has another format: increase
    /// [`FILTER_FORMAT`].
    #[test]
    fn the_bytes_of_a_filter_never_change() {
        let mut filter = Filter::for_keys(4);
        for (client_id, key) in [("acme", "k-1"), ("acme", "k-2"), ("beta", "k-1"), ("\u{e9}", "")] {
            filter.insert(client_id, key);
        }
        let hex: String = filter.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "7a951f1548039592");
    }

    #[test]
    fn a_generation_without_a_filter_may_have_every_key() {
        let known = Known {
            next: 4,
            closed: [(1, Some(Arc::new(filter(10)))), (2, None), (3, Some(Arc::new(Filter::for_keys(1))))].into(),
        };
        let filters = KeyFilters::new(RwLock::new(Arc::new(known)), usize::MAX);
        let of = |current, key| filters.closed_before(current).that_may_have("acme", key).collect::<Vec<_>>();
        assert_eq!(of(4, "key-3"), [2, 1]);
        assert_eq!(of(4, "other"), [2]);
        // Generations 4 and 5 were closed after the others were read.
        assert_eq!(of(6, "key-3"), [5, 4, 2, 1]);
        // A transaction whose current generation is 2 needs no lookup in it: a repeated key conflicts there.
        assert_eq!(of(2, "key-3"), [1]);
        assert!(!filters.closed_before(4).is_empty());
        filters.forget();
        assert_eq!(of(4, "other"), [3, 2, 1, 0]);
        let none = KeyFilters::new(RwLock::default(), 0);
        assert!(none.closed_before(0).is_empty() && !none.closed_before(1).is_empty());
    }
}
