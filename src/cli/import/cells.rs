//! Values of cells and keys as text.

use super::mapping::Found;

/// Returns the text of a value.
pub fn text_of(found: Found<'_>) -> Result<String, String> {
    match found {
        Found::Text(text) => Ok(text.to_owned()),
        Found::Json(json) if json.starts_with('"') => serde_json::from_str(&json).map_err(|error| error.to_string()),
        Found::Json(json) if json.starts_with(['{', '[']) => {
            Err("must be a string or a number; use a dotted path for a value inside an object".to_owned())
        }
        Found::Json(json) => Ok(json.into_owned()),
    }
}

/// Whether a character is white space or invisible.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}' | '\u{200c}' | '\u{200d}' | '\u{2060}' | '\u{feff}')
}

/// Whether a text is a common form of a missing value.
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

/// Returns the text in ="0012". Spreadsheets use this form for text that looks like a number.
pub fn formula_text(text: &str) -> Option<&str> {
    text.strip_prefix("=\"")?.strip_suffix('"').filter(|inner| !inner.contains('"'))
}

/// A hint for a text that is almost a number.
pub fn number_hint(text: &str) -> &'static str {
    let text = text.trim_matches(is_blank);
    match text.trim_matches(|c: char| c.is_ascii_digit() || is_blank(c)) {
        _ if text.starts_with('(') && text.ends_with(')') => {
            "; parentheses mean a negative number, but usage must be zero or more"
        }
        _ if text.starts_with(['−', '–']) => "; the number is negative, but usage must be zero or more",
        _ if text.contains(['$', '€', '£', '¥']) => "; remove the currency sign",
        _ if text.ends_with('%') => "; remove the percent sign",
        unit if unit.len() > 1
            && unit.chars().all(char::is_alphabetic)
            && text.starts_with(|c: char| c.is_ascii_digit())
            && text.ends_with(unit) =>
        {
            "; remove the text after the number"
        }
        _ => "",
    }
}

/// Removes the leading `'` of an exported text that a spreadsheet would evaluate as a formula.
pub fn without_formula_guard(text: &str) -> &str {
    match text.strip_prefix('\'') {
        Some(rest) if rest.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']) => rest,
        _ => text,
    }
}

/// Whether a text is a long number that a spreadsheet has shortened, such as 4.91762E+11. Different ids become equal this way.
pub fn is_shortened_number(text: &str) -> bool {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once("E+").is_some_and(|(mantissa, exponent)| {
        let (whole, decimals) = mantissa.split_once(['.', ',']).unwrap_or((mantissa, "0"));
        whole.len() == 1 && is_digits(whole) && is_digits(decimals) && exponent.len() == 2 && is_digits(exponent)
    })
}
