//! Decides which events of a batch claim their keys: one for each client and key.

use super::date::{Clients, Dated};

/// The claims of a batch: one for each client and key, sorted by client and key. Events and claims have numbers from 0.
pub struct Claims {
    /// For each claim, the event that makes it. If several events have the same key, one that may be new makes the claim rather
    /// than one that can only be a repeat.
    pub event_of: Vec<usize>,
    /// For each event, the claim of its key.
    pub claim_of: Vec<usize>,
}

impl Claims {
    /// Decides the claims of these events.
    pub fn of(dated: &[Dated<'_>], clients: &Clients<'_>) -> Self {
        let key = |index: usize| (clients.of[index], dated[index].submission.event.idempotency_key.as_bytes());
        let keys: Vec<_> = (0..dated.len()).map(|index| (key(index), dated[index].refusal.is_some())).collect();
        let (mut event_of, mut claim_of): (Vec<usize>, _) = (Vec::with_capacity(dated.len()), vec![0; dated.len()]);
        for index in in_order(&keys) {
            if event_of.last().is_none_or(|&event| key(event) != key(index)) {
                event_of.push(index);
            }
            claim_of[index] = event_of.len() - 1;
        }
        Self { event_of, claim_of }
    }
}

/// The index of a client, and a key.
type ClientKey<'a> = (usize, &'a [u8]);

/// Returns the indexes of the keys, sorted by client, key, and whether the event is refused.
///
/// Keys often have a common prefix. The eight bytes after it are compared as a number, and almost never the rest.
fn in_order(keys: &[(ClientKey<'_>, bool)]) -> Vec<usize> {
    let text = |index: usize| keys[index].0.1;
    let prefix = (1..keys.len()).fold(usize::MAX, |prefix, index| prefix.min(common(text(index - 1), text(index))));
    let number = |index| number_of(text(index).get(prefix..).unwrap_or_default());
    let mut sorted: Vec<_> = (0..keys.len()).map(|index| (keys[index].0.0, number(index), index)).collect();
    sorted.sort_unstable_by(|left, right| {
        let rest = |index: usize| (text(index), keys[index].1, index);
        (left.0, left.1).cmp(&(right.0, right.1)).then_with(|| rest(left.2).cmp(&rest(right.2)))
    });
    sorted.into_iter().map(|(.., index)| index).collect()
}

/// Returns the length of the common prefix.
fn common(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// Returns the first eight bytes as a number that sorts as they do.
fn number_of(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    let count = bytes.len().min(first.len());
    first[..count].copy_from_slice(&bytes[..count]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_are_in_the_order_of_their_bytes(
            start in "[a-z\\x00]{0,12}",
            rows in proptest::collection::vec((0usize..3, "[ab\\x00]{0,12}|[0-9]{1,3}", proptest::bool::ANY), 0..60)
        ) {
            let texts: Vec<String> = rows.iter().map(|row| format!("{start}{}", row.1)).collect();
            let keys: Vec<_> = rows.iter().zip(&texts).map(|(row, text)| ((row.0, text.as_bytes()), row.2)).collect();
            let mut sorted: Vec<usize> = (0..keys.len()).collect();
            sorted.sort_by_key(|&index| keys[index]);
            proptest::prop_assert_eq!(in_order(&keys), sorted);
        }
    }
}
