//! Parses the filter of the log.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Checks a filter of levels and targets. Rejects a single word that is no level: `EnvFilter` would take it as a target and
/// log nothing else.
pub fn parse_filter(text: &str) -> Result<String, String> {
    const RULE: &str = "must be a level (error, warn, info, debug, trace, off) or a list of levels for targets, such as warn,meterd=debug";
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let suggestion = |word: &str, words: &[&'static str]| {
        let near = words.iter().find(|name| strsim::damerau_levenshtein(&word.to_lowercase(), name) <= 2);
        near.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
    };
    for directive in directives(text) {
        let (target, level) = match directive.rsplit_once('=').filter(|_| !directive.ends_with(']')) {
            Some((target, level)) => (Some(target), level),
            None => (None, directive),
        };
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            let hint = match level {
                "meterd" => "; write meterd=debug".to_owned(),
                _ => suggestion(level, &LEVELS),
            };
            return Err(format!("{RULE}; {level:?} is not a level{hint}"));
        }
        let root = target.unwrap_or("meterd").split([':', '[']).next().unwrap_or_default();
        if root != "meterd" && !suggestion(root, &["meterd"]).is_empty() {
            return Err(format!("{RULE}; no target has the name {root:?}{}", suggestion(root, &["meterd"])));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("{RULE}: {error}"))?;
    Ok(text.to_owned())
}

/// Splits the filter at its commas, except those inside the fields of a span.
fn directives(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let parts = text.split(|character| {
        depth += i32::from(matches!(character, '[' | '{')) - i32::from(matches!(character, ']' | '}'));
        character == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_would_log_nothing_is_rejected() {
        for wrong in
            ["nonsense", "infos", "meterd", "meterd=debgu", "warn,metred=debug", "info,meterd=", "=", "info;debug"]
        {
            let error = parse_filter(wrong).unwrap_err();
            assert!(error.contains("must be a level"), "{wrong}: {error}");
        }
        assert!(parse_filter("infos").unwrap_err().ends_with("did you mean info?"));
        assert!(parse_filter("metred=debug").unwrap_err().ends_with("did you mean meterd?"));
        for right in [
            "info",
            "WARN",
            "off",
            "",
            "warn,meterd=debug",
            "info,sqlx::postgres::notice=warn",
            "meterd[call{method=a}]=trace",
        ] {
            assert_eq!(parse_filter(right).as_deref(), Ok(right), "{right}");
        }
    }
}
