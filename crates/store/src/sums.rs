//! Sums as rows have them.

/// The sums of any row that has the seven columns; every query has a row type of its own.
macro_rules! sums_of {
    ($row:expr) => {
        meterd_domain::rollup::Sums {
            request_count: $row.request_count,
            units: $row.units.into(),
            input_tokens: $row.input_tokens,
            output_tokens: $row.output_tokens,
            cached_input_tokens: $row.cached_input_tokens,
            cost: $row.cost.into(),
            unpriced_event_count: $row.unpriced_event_count,
        }
    };
}
pub(super) use sums_of;

#[cfg(test)]
mod tests {
    use meterd_domain::rollup::Sums;
    use std::path::{Path, PathBuf};

    /// The first names of sums in a text, without repetitions such as `units = t.units + excluded.units`.
    fn names(text: &str) -> Vec<&str> {
        let words = text.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
        let mut names: Vec<&str> = vec![];
        for word in words.filter(|word| Sums::NAMES.contains(word)) {
            if names.last() != Some(&word) && names.len() < Sums::NAMES.len() {
                names.push(word);
            }
        }
        names
    }

    /// Checks each list of sums in a file, and returns how many there are.
    fn check(path: &Path) -> usize {
        let text = std::fs::read_to_string(path).unwrap();
        let begins = |rest: &str| [", ", ",\n", " = t."].iter().any(|next| rest.starts_with(next));
        let lists = text.match_indices("request_count").filter(|(at, found)| begins(&text[at + found.len()..]));
        let names = lists.map(|(at, _)| names(&text[at..])).filter(|names| names.len() > 1);
        let names: Vec<Vec<&str>> = names.collect();
        names.iter().for_each(|names| assert_eq!(names, Sums::NAMES, "{}", path.display()));
        names.len()
    }

    #[test]
    fn each_statement_that_lists_sums_has_all_of_them() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let others = |path: &PathBuf| path.is_file() && !path.ends_with("sums.rs");
        let lists: usize = files.filter(others).map(|path| check(&path)).sum();
        assert!(lists >= 10, "only {lists} lists were found");
    }
}
