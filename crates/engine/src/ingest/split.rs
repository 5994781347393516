//! Splits a batch that could not be written, so that the events that fail are soon separate from the others.

use super::queue::Item;
use meterd_domain::period::Month;

/// Maximum number of failed attempts for a batch and its parts. After that, every part that fails is given up as a whole. 64 attempts
/// find five failing events among 1,000, and limit the cost of a damaged database, in which every attempt fails.
pub(super) const FAILED_TRIES_MAX: usize = 64;

/// Sorts events by month, and so by partition, and then by client.
fn place(item: &Item) -> (Month, &str) {
    let event = &item.submission.event;
    (Month::of(event.event_time.date_naive()), &event.client_id)
}

/// Two parts of a batch, of more than one event: by month if it has several, or else by client, or else halves.
pub(super) fn split(mut items: Vec<Item>) -> [Vec<Item>; 2] {
    // Stable: events with the same key stay in their order.
    items.sort_by(|left, right| place(left).cmp(&place(right)));
    let places: Vec<_> = items.iter().map(place).collect();
    let at = nearest_to_middle(&places, |(month, _)| month)
        .or_else(|| nearest_to_middle(&places, |place| place))
        .unwrap_or(places.len() / 2);
    let second = items.split_off(at);
    [items, second]
}

/// The position nearest to the middle that has another value than the one before it.
fn nearest_to_middle<T, V: PartialEq>(sorted: &[T], value: impl Fn(&T) -> &V) -> Option<usize> {
    let changes = (1..sorted.len()).filter(|&at| value(&sorted[at - 1]) != value(&sorted[at]));
    changes.min_by_key(|at| at.abs_diff(sorted.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_divided_where_something_changes_nearest_to_its_middle() {
        let at = |sorted: &[u8]| nearest_to_middle(sorted, |value| value);
        assert_eq!(at(&[1, 1, 1, 1]), None);
        assert_eq!(at(&[1, 2, 2, 2, 2]), Some(1));
        assert_eq!(at(&[1, 2, 2, 2, 3, 3]), Some(4));
        assert_eq!(at(&[1, 1, 2, 2, 3, 3]), Some(2));
    }
}
