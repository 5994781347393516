//! Pauses of the ways to write a batch that a taken key undoes.

/// Maximum number of batches of a pause.
const BATCHES_MAX: u32 = 64;

/// The pause of a way to write a batch. A taken key undoes such a write, and the batch is then written again in another way. As repeated
/// events come in groups, the next batches are not written in this way either: at first one, and twice as many after each further
/// taken key, until a batch has only free keys.
pub struct Pause {
    /// The number of batches that are left of the pause.
    left: u32,
    /// The length of the next pause.
    next: u32,
}

impl Default for Pause {
    fn default() -> Self {
        Self { left: 0, next: 1 }
    }
}

impl Pause {
    /// Returns whether the pause is over for the next batch.
    pub fn is_over(&mut self) -> bool {
        let is_over = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_over
    }

    /// Begins a pause, because a key was taken.
    pub fn begin(&mut self) {
        self.left = self.next;
        self.next = (self.next * 2).min(BATCHES_MAX);
    }

    /// Makes the next pause a short one, because all keys were free.
    pub fn shorten(&mut self) {
        self.next = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the length of a pause.
    fn length(pause: &mut Pause) -> usize {
        (0..).take_while(|_| !pause.is_over()).count()
    }

    #[test]
    fn a_pause_is_longer_after_each_taken_key_until_all_keys_are_free() {
        let mut pause = Pause::default();
        assert_eq!(length(&mut pause), 0);
        let lengths = (0..8).map(|_| {
            pause.begin();
            length(&mut pause)
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 64]);
        assert_eq!(length(&mut pause), 0);
        pause.shorten();
        pause.begin();
        assert_eq!(length(&mut pause), 1);
    }
}
