//! Splits a batch that could not be written, to separate the events that fail from the others.

use super::queue::Item;
use meterd_domain::period::Month;

/// Maximum number of failed attempts for a batch and its parts. After that, every part that fails is given up as a whole. 64 attempts
/// find five failing events among 1,000, and limit the cost of a damaged database, in which every attempt fails.
pub(super) const FAILED_ATTEMPTS_MAX: usize = 64;

/// Returns the sort key of an event: its month, which decides its partition, and then its client.
fn sort_key(item: &Item) -> (Month, &str) {
    let event = &item.submission.event;
    (Month::of(event.event_time.date_naive()), &event.client_id)
}

/// Splits a batch of at least two events into two parts: between months if it has several, otherwise between clients, otherwise in
/// the middle.
pub(super) fn split(mut items: Vec<Item>) -> [Vec<Item>; 2] {
    // Stable: events with the same key stay in their order.
    items.sort_by(|left, right| sort_key(left).cmp(&sort_key(right)));
    let keys: Vec<_> = items.iter().map(sort_key).collect();
    let at = nearest_to_middle(&keys, |(month, _)| month)
        .or_else(|| nearest_to_middle(&keys, |key| key))
        .unwrap_or(keys.len() / 2);
    let second = items.split_off(at);
    [items, second]
}

/// Returns the index nearest to the middle whose value differs from the value before it.
fn nearest_to_middle<T, V: PartialEq>(sorted: &[T], value: impl Fn(&T) -> &V) -> Option<usize> {
    let changes = (1..sorted.len()).filter(|&at| value(&sorted[at - 1]) != value(&sorted[at]));
    changes.min_by_key(|at| at.abs_diff(sorted.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_split_at_the_change_nearest_to_its_middle() {
        let at = |sorted: &[u8]| nearest_to_middle(sorted, |value| value);
        assert_eq!(at(&[1, 1, 1, 1]), None);
        assert_eq!(at(&[1, 2, 2, 2, 2]), Some(1));
        assert_eq!(at(&[1, 2, 2, 2, 3, 3]), Some(4));
        assert_eq!(at(&[1, 1, 2, 2, 3, 3]), Some(2));
    }
}
