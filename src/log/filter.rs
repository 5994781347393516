//! What is logged, as people write it.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Accepts a filter that logs what it says: levels, and levels of targets. A word alone would turn everything else off.
pub fn parse_filter(text: &str) -> Result<String, String> {
    const RULE: &str =
        "must be a level (error, warn, info, debug, trace, off) or levels of targets, such as warn,meterd=debug";
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let meant = |word: &str, words: &[&'static str]| {
        let near = words.iter().find(|name| strsim::damerau_levenshtein(&word.to_lowercase(), name) <= 2);
        near.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
    };
    for directive in directives(text) {
        let (target, level) = match directive.rsplit_once('=').filter(|_| !directive.ends_with(']')) {
            Some((target, level)) => (Some(target), level),
            None => (None, directive),
        };
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            let level_meant = meant(level, &LEVELS);
            let as_target = if level == "meterd" { "; write meterd=debug".to_owned() } else { level_meant };
            return Err(format!("{RULE}; {level:?} is no level{as_target}"));
        }
        let root = target.unwrap_or("meterd").split([':', '[']).next().unwrap_or_default();
        if root != "meterd" && !meant(root, &["meterd"]).is_empty() {
            return Err(format!("{RULE}; nothing logs as {root:?}{}", meant(root, &["meterd"])));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("{RULE}: {error}"))?;
    Ok(text.to_owned())
}

/// The parts between the commas that are not inside of a span's fields.
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
    fn a_filter_that_would_log_nothing_is_refused() {
        for wrong in
            ["nonsense", "infos", "meterd", "meterd=debgu", "warn,metred=debug", "info,meterd=", "=", "info;debug"]
        {
            let refused = parse_filter(wrong).unwrap_err();
            assert!(refused.contains("must be a level"), "{wrong}: {refused}");
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
