//! What an identifier may be made of: two that look alike are the same.

/// Why a text is no identifier. The message says what to send instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    #[error("must not contain the control character U+{:04X}; remove it", *.0 as u32)]
    Control(char),
    #[error("must not contain U+{:04X}, which is invisible or looks like a blank; remove it, or use a plain space", *.0 as u32)]
    Invisible(char),
    #[error("must not begin or end with a blank; trim it")]
    BlankAround,
}

/// Checks a text that may be empty.
pub fn check(text: &str) -> Result<(), IdentifierError> {
    // Almost every one is ASCII.
    if !text.is_ascii() || text.bytes().any(|byte| byte.is_ascii_control()) {
        let control = text.chars().find(|char| char.is_control()).map(IdentifierError::Control);
        let invisible = || text.chars().find(|char| is_invisible(*char)).map(IdentifierError::Invisible);
        if let Some(error) = control.or_else(invisible) {
            return Err(error);
        }
    }
    if text.starts_with(' ') || text.ends_with(' ') { Err(IdentifierError::BlankAround) } else { Ok(()) }
}

/// Whether a character shows nothing, or a blank that is not the space: spaces, line and paragraph separators, and what
/// Unicode calls default ignorable (zero-width and joining characters, marks of direction, variation selectors, tags).
fn is_invisible(char: char) -> bool {
    let listed = matches!(char,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    listed || (char.is_whitespace() && char != ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_nothing_or_a_blank_around_is_no_part_of_an_identifier() {
        for text in ["", "a17", "a 17", "é", "e\u{301}", "客户", "клиент", "👩", "a\u{ffff}"] {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
        for text in [" a17", "a17 ", " ", "  a", " é"] {
            assert_eq!(check(text), Err(IdentifierError::BlankAround), "{text:?}");
        }
        for invisible in [
            '\u{a0}',
            '\u{ad}',
            '\u{1680}',
            '\u{2003}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{202e}',
            '\u{2028}',
            '\u{202f}',
            '\u{2060}',
            '\u{2066}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            for text in [format!("{invisible}a"), format!("a{invisible}b"), format!("a{invisible}")] {
                assert_eq!(check(&text), Err(IdentifierError::Invisible(invisible)), "{text:?}");
            }
        }
        for control in ['\0', '\t', '\n', '\u{7f}', '\u{85}'] {
            assert_eq!(check(&format!("a{control}")), Err(IdentifierError::Control(control)));
        }
    }
}
