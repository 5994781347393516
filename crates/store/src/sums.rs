//! Sums of rows, and a test of the lists of sums in all statements.

/// Converts a row with the seven columns to `Sums`. A macro, because each query has its own row type.
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

    /// Returns the first names of sums in a text, without repetitions such as `units = t.units + excluded.units`.
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

    /// Checks each list of sums in a file and returns the number of lists.
    fn check(path: &Path) -> usize {
        let text = std::fs::read_to_string(path).unwrap();
        let begins =
            |rest: &str| [", ", ",\n", " = t.", " AS \"request_count!\","].iter().any(|next| rest.starts_with(next));
        let lists = text.match_indices("request_count").filter(|(at, found)| begins(&text[at + found.len()..]));
        let names = lists.map(|(at, _)| names(&text[at..])).filter(|names| names.len() > 1);
        let names: Vec<Vec<&str>> = names.collect();
        names.iter().for_each(|names| assert_eq!(names, Sums::NAMES, "{}", path.display()));
        names.len()
    }

    /// Returns all files below a directory.
    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    /// Checks all files below a directory of the crate and returns the number of lists.
    fn check_all(directory: &str) -> usize {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        files(&directory).iter().filter(|path| !path.ends_with("src/sums.rs")).map(|path| check(path)).sum()
    }

    #[test]
    fn each_statement_that_lists_sums_has_all_of_them() {
        let (in_code, in_files) = (check_all("src"), check_all("sql"));
        assert!(in_code >= 5 && in_files >= 25, "only {in_code} lists in src and {in_files} in sql were found");
    }
}
