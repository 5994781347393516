//! Suggestions for a name that does not exist.

/// Maximum number of suggestions.
const SUGGESTIONS_MAX: usize = 3;
/// Names that are less similar than this are not suggested (Jaro-Winkler similarity in percent).
const SIMILARITY_MIN_PERCENT: u32 = 75;

/// Returns the names that are most similar to `wanted`, the most similar first.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let similarity = |name: &str| {
        let percent = strsim::jaro_winkler(&wanted, &name.to_lowercase()) * 100.0;
        let contains = name.contains(&wanted) || wanted.contains(name);
        if contains { 100 } else { percent as u32 }
    };
    let mut ranked: Vec<(u32, &str)> =
        names.map(|name| (similarity(name), name)).filter(|(percent, _)| *percent >= SIMILARITY_MIN_PERCENT).collect();
    ranked.sort_by(|left, right| right.0.cmp(&left.0).then(left.1.cmp(right.1)));
    ranked.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_name_finds_the_similar_ones() {
        let names = ["openai", "twilio_sms", "twilio_voice", "stripe"];
        assert_eq!(nearest("opnai", names.into_iter()), ["openai"]);
        assert_eq!(nearest("twilio", names.into_iter()), ["twilio_sms", "twilio_voice"]);
        assert!(nearest("zzz", names.into_iter()).is_empty());
    }
}
