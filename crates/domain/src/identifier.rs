//! Which characters an identifier may contain. Two identifiers that look the same are the same.

/// Why a text is not a valid identifier. The message says what to send instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    #[error("must not contain the control character U+{:04X}; remove it", *.0 as u32)]
    Control(char),
    #[error("must not contain U+{:04X}, which is invisible or looks like a blank; remove it, or use a plain space", *.0 as u32)]
    Invisible(char),
    #[error("must not begin or end with a blank; trim it")]
    BlankAround,
}

/// Checks an identifier. An empty text is valid.
pub fn check(text: &str) -> Result<(), IdentifierError> {
    // Almost every identifier is ASCII.
    if !text.is_ascii() || text.bytes().any(|byte| byte.is_ascii_control()) {
        let control = text.chars().find(|char| char.is_control()).map(IdentifierError::Control);
        let invisible = || text.chars().find(|char| is_invisible(*char)).map(IdentifierError::Invisible);
        if let Some(error) = control.or_else(invisible) {
            return Err(error);
        }
    }
    if text.starts_with(' ') || text.ends_with(' ') { Err(IdentifierError::BlankAround) } else { Ok(()) }
}

/// Returns whether a character is invisible, or is a blank other than the space. This covers line and paragraph
/// separators and the characters that Unicode calls default ignorable: zero-width and joining characters, direction
/// marks, variation selectors and tags.
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
    fn invisible_characters_and_surrounding_blanks_are_rejected() {
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
