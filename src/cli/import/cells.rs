//! Values of cells and keys, as text.

use super::mapping::Found;

/// The text of a value.
pub fn text_of(found: Found<'_>) -> Result<String, String> {
    match found {
        Found::Text(text) => Ok(text.to_owned()),
        Found::Json(json) if json.starts_with('"') => serde_json::from_str(&json).map_err(|error| error.to_string()),
        Found::Json(json) if json.starts_with(['{', '[']) => {
            Err("must be a text or a number; a dotted path reaches into an object".to_owned())
        }
        Found::Json(json) => Ok(json.into_owned()),
    }
}

/// White space, and what looks like it or like nothing.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}' | '\u{200c}' | '\u{200d}' | '\u{2060}' | '\u{feff}')
}

/// What programs write for a value that is not there.
pub fn is_missing(text: &str, is_number_or_time: bool) -> bool {
    const ANYWHERE: [&str; 14] = [
        "\\N",
        "NULL",
        "null",
        "(null)",
        "<null>",
        "None",
        "undefined",
        "NaN",
        "nan",
        "N/A",
        "n/a",
        "#N/A",
        "<NA>",
        "<nil>",
    ];
    const NUMBERS_AND_TIMES: [&str; 9] = ["NA", "na", "none", "nil", "Null", "-", "--", "–", "—"];
    text.is_empty() || ANYWHERE.contains(&text) || is_number_or_time && NUMBERS_AND_TIMES.contains(&text)
}

/// The text in ="0012", which keeps a spreadsheet from reading it as a number.
pub fn formula_text(text: &str) -> Option<&str> {
    text.strip_prefix("=\"")?.strip_suffix('"').filter(|inner| !inner.contains('"'))
}

/// What to do about a text that is nearly a number.
pub fn number_hint(text: &str) -> &'static str {
    let text = text.trim_matches(is_blank);
    match text.trim_matches(|c: char| c.is_ascii_digit() || is_blank(c)) {
        _ if text.starts_with('(') && text.ends_with(')') => "; parentheses mean less than zero, which usage cannot be",
        _ if text.starts_with(['−', '–']) => "; it is less than zero, which usage cannot be",
        _ if text.contains(['$', '€', '£', '¥']) => "; remove the currency sign",
        _ if text.ends_with('%') => "; remove the percent sign",
        unit if unit.len() > 1
            && unit.chars().all(char::is_alphabetic)
            && text.starts_with(|c: char| c.is_ascii_digit())
            && text.ends_with(unit) =>
        {
            "; remove what follows the number"
        }
        _ => "",
    }
}

/// Takes off the ' that an export puts before text that a spreadsheet would take for a formula.
pub fn without_formula_guard(text: &str) -> &str {
    match text.strip_prefix('\'') {
        Some(rest) if rest.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']) => rest,
        _ => text,
    }
}

/// An id of many digits as a spreadsheet shows it, such as 4.91762E+11: different ids become the same.
pub fn is_shortened_number(text: &str) -> bool {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once("E+").is_some_and(|(mantissa, exponent)| {
        let (whole, decimals) = mantissa.split_once(['.', ',']).unwrap_or((mantissa, "0"));
        whole.len() == 1 && is_digits(whole) && is_digits(decimals) && exponent.len() == 2 && is_digits(exponent)
    })
}
