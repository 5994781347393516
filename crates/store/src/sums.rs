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

    /// The names of the sums at the beginning of a list, some of which can have an alias and a type.
    fn listed(text: &str) -> Vec<&str> {
        let mut names = vec![];
        for item in text.split(',').map(str::trim) {
            let first = item.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).next();
            names.extend(first.filter(|first| Sums::NAMES.contains(first)));
            // The last name of a list is followed by something else.
            let is_within = first == Some(item) || first.is_some_and(|first| item[first.len()..].starts_with(" AS \""));
            if !is_within {
                break;
            }
        }
        names
    }

    fn check(path: &Path) -> usize {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lists = 0;
        for (at, _) in text.match_indices("request_count, ") {
            if text[..at].ends_with(|letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '.')) {
                continue;
            }
            let names = listed(&text[at..]);
            assert_eq!(names, Sums::NAMES, "{}: …{}", path.display(), &text[at..(at + 150).min(text.len())]);
            lists += 1;
        }
        for (at, _) in text.match_indices("request_count = t.request_count + excluded.request_count") {
            let added = |item: &str| item.split_once(" = t.").is_some();
            let items = text[at..].split(',').map(str::trim).take_while(|item| added(item));
            let names: Vec<&str> = items.filter_map(|item| Some(item.split_once(" = ")?.0)).collect();
            assert_eq!(names, Sums::NAMES, "{}", path.display());
            lists += 1;
        }
        lists
    }

    #[test]
    fn each_statement_that_lists_sums_has_all_of_them() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let others = |path: &PathBuf| path.extension().is_some() && !path.ends_with("sums.rs");
        let lists: usize = files.filter(others).map(|path| check(&path)).sum();
        assert!(lists >= 10, "only {lists} lists were found");
    }
}
