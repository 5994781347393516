//! Where JSON values begin and end in a file, byte by byte.

/// What a byte of JSON text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Between values.
    Between,
    /// Of a value.
    Inside,
    /// The last one of a value.
    End,
    /// The first one after a value that has no end of its own, such as a number.
    EndBefore,
}

/// Finds where values begin and end, in an array or one after the other.
#[derive(Debug, Default)]
pub struct JsonScanner {
    /// An array was opened, and not closed.
    pub is_open: bool,
    /// That the file ends too early was told.
    pub has_told_end: bool,
    has_begun: bool,
    /// Objects and arrays in one another.
    depth: u32,
    in_string: bool,
    is_escaped: bool,
    /// In a value that is no object, array or string.
    in_word: bool,
}

impl JsonScanner {
    /// Takes the next byte of the file. One that is [`Step::EndBefore`] has to be given again.
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
