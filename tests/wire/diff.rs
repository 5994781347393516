//! What differs between two texts, line by line.

/// The lines of both: `-` only before, `+` only after. Equal lines are shown, too: an answer is short.
pub fn lines(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // How many lines of the rests from here on are the same.
    let mut same = vec![vec![0_usize; after.len() + 1]; before.len() + 1];
    for old in (0..before.len()).rev() {
        for new in (0..after.len()).rev() {
            same[old][new] = match before[old] == after[new] {
                true => same[old + 1][new + 1] + 1,
                false => same[old + 1][new].max(same[old][new + 1]),
            };
        }
    }
    let (mut old, mut new, mut shown) = (0, 0, String::new());
    while old < before.len() || new < after.len() {
        let (sign, line) = if old < before.len() && new < after.len() && before[old] == after[new] {
            (old, new) = (old + 1, new + 1);
            (' ', before[old - 1])
        } else if new == after.len() || old < before.len() && same[old + 1][new] >= same[old][new + 1] {
            old += 1;
            ('-', before[old - 1])
        } else {
            new += 1;
            ('+', after[new - 1])
        };
        shown.extend([' ', ' ', sign, ' ']);
        shown.push_str(line);
        shown.push('\n');
    }
    shown
}
