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
