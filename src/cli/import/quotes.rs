//! Quotes in CSV: detects the style of a file and misplaced quotes.

use clap::ValueEnum;

/// How a file writes a quote inside a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Quotes {
    /// Doubled inside a quoted value: "say ""hi"""
    #[default]
    Doubled,
    /// With a backslash before it, or doubled: "say \"hi\""
    Backslash,
    /// Values are never quoted, and contain no line ends and no delimiters
    None,
}

/// Finds the first closing quote that is followed by text. Returns the offset of its line from the first line of the record.
pub fn misplaced(record: &[u8], delimiter: u8, quotes: Quotes) -> Option<u64> {
    if quotes == Quotes::None {
        return None;
    }
    let mut line = 0;
    let mut bytes = record.iter().copied().peekable();
    let (mut is_quoted, mut at_start) = (false, true);
    while let Some(byte) = bytes.next() {
        line += u64::from(byte == b'\n');
        match byte {
            b'"' if is_quoted && bytes.next_if_eq(&b'"').is_none() => {
                is_quoted = false;
                while bytes.next_if(|byte| matches!(byte, b' ' | b'\t' | b'\r') && *byte != delimiter).is_some() {}
                if bytes.peek().is_some_and(|byte| *byte != delimiter && *byte != b'\n') {
                    return Some(line);
                }
            }
            b'\\' if is_quoted && quotes == Quotes::Backslash => drop(bytes.next()),
            b'"' if at_start => is_quoted = true,
            _ => {}
        }
        at_start = !is_quoted && byte == delimiter;
    }
    None
}

/// Removes the quotes of a value that follows spaces, as in `a, "b"`.
pub fn unquoted(cell: &str) -> Option<String> {
    let inner = cell.trim().strip_prefix('"')?.strip_suffix('"')?;
    (cell.starts_with([' ', '\t']) && !inner.replace("\"\"", "").contains('"')).then(|| inner.replace("\"\"", "\""))
}

/// The error for a record with a misplaced quote. `first` and `last` are lines of the file.
pub fn misplaced_text(first: u64, last: u64) -> String {
    let fix = "double each quote inside a quoted value, or add --quotes backslash if the file writes \\\" instead, or \
               --quotes none if quotes are part of the values";
    match first == last {
        true => format!("has text after a closing quote: {fix}"),
        false => format!(
            "extends from line {first} to line {last} because of an open quote, and has text after a closing quote in line \
             {last}. None of these lines is recorded; close the quote, or {fix}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misplaced_closing_quote_is_found_with_its_line() {
        for (record, doubled, backslash) in [
            ("a,\"b\",c\n", None, None),
            ("\"a \"\"b\"\" c\",\"d\"\r\n", None, None),
            ("\"a\" ,b\n", None, None),
            ("\"a\nb\",c", None, None),
            ("5\" pipe,6\",x\n", None, None),
            ("\"\",\"\"\"\",\"\"\n", None, None),
            ("\"a \"b\" c\",d\n", Some(0), Some(0)),
            ("x,\"a\nb,\"c\",d\n", Some(1), Some(1)),
            ("\"a \\\"b\\\"\",d\n", Some(0), None),
            ("\"a\\\\\",d\n", None, None),
        ] {
            assert_eq!(misplaced(record.as_bytes(), b',', Quotes::Doubled), doubled, "{record}");
            assert_eq!(misplaced(record.as_bytes(), b',', Quotes::Backslash), backslash, "{record}");
            assert_eq!(misplaced(record.as_bytes(), b',', Quotes::None), None, "{record}");
        }
    }

    #[test]
    fn quotes_after_a_space_are_removed() {
        for (cell, expected) in
            [(" \"b\"", Some("b")), (" \"b \"\"c\"\"\" ", Some("b \"c\"")), ("\"b\"", None), (" 5\"", None)]
        {
            assert_eq!(unquoted(cell).as_deref(), expected, "{cell}");
        }
        assert_eq!(unquoted(" \"a\" and \"b\""), None);
    }
}
