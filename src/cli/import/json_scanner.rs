//! Finds the start and the end of JSON values in a stream of bytes.

/// The role of a byte of JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Between values.
    Between,
    /// Part of a value.
    Inside,
    /// The last byte of a value.
    End,
    /// The first byte after a value without an end mark, such as a number.
    EndBefore,
}

/// Finds the start and the end of values in an array or in a sequence.
#[derive(Debug, Default)]
pub struct JsonScanner {
    /// Whether an array is not closed yet.
    pub is_open: bool,
    /// Whether the unexpected end of the file was reported.
    pub has_reported_end: bool,
    has_begun: bool,
    /// Nesting of objects and arrays.
    depth: u32,
    in_string: bool,
    is_escaped: bool,
    /// Inside a value that is not an object, an array or a string.
    in_word: bool,
}

impl JsonScanner {
    /// Processes the next byte of the file. After [`Step::EndBefore`], the same byte must be passed again.
    pub fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return if self.in_string || self.depth > 0 { Step::Inside } else { Step::End };
        }
        let is_between = matches!(byte, b',' | b' ' | b'\t' | b'\r' | b'\n');
        if self.depth == 0 {
            if self.in_word {
                self.in_word = !is_between && byte != b']';
                return if self.in_word { Step::Inside } else { Step::EndBefore };
            }
            match byte {
                b'[' if !self.has_begun => {
                    (self.has_begun, self.is_open) = (true, true);
                    return Step::Between;
                }
                b']' if self.is_open => {
                    self.is_open = false;
                    return Step::Between;
                }
                // A byte order mark.
                0xef | 0xbb | 0xbf if !self.has_begun => return Step::Between,
                _ if is_between => return Step::Between,
                _ => self.has_begun = true,
            }
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return if self.depth == 0 { Step::End } else { Step::Inside };
            }
            _ if self.depth == 0 => self.in_word = true,
            _ => {}
        }
        Step::Inside
    }
}
