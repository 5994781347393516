//! Decodes files of other encodings to UTF-8 while they are read.

use std::io::{self, BufRead, Read};

use clap::ValueEnum;

/// The encoding of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Encoding {
    /// UTF-8
    #[value(name = "utf-8")]
    Utf8,
    /// UTF-16, little endian
    #[value(name = "utf-16le", alias = "utf-16")]
    Utf16Le,
    /// UTF-16, big endian
    #[value(name = "utf-16be")]
    Utf16Be,
    /// Windows-1252 ("ANSI" in western Europe); includes ISO 8859-1
    #[value(name = "windows-1252", aliases = ["latin1", "iso-8859-1"])]
    Windows1252,
}

/// Bytes 0x80 to 0x9f of Windows-1252. Five of them are undefined.
const WINDOWS_1252_HIGH: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Detects UTF-16 from the first bytes of a file: a byte order mark, or ASCII characters of two bytes. `None` for UTF-8 and for
/// encodings that cannot be distinguished from it.
pub fn detect(start: &[u8]) -> Option<Encoding> {
    match start {
        [0xff, 0xfe, ..] => Some(Encoding::Utf16Le),
        [0xfe, 0xff, ..] => Some(Encoding::Utf16Be),
        [first, 0, second, 0, ..] if *first != 0 && *second != 0 => Some(Encoding::Utf16Le),
        [0, first, 0, second, ..] if *first != 0 && *second != 0 => Some(Encoding::Utf16Be),
        _ => None,
    }
}

/// Reads a file of another encoding as UTF-8.
pub struct Decoder<R> {
    input: R,
    encoding: Encoding,
    /// A high surrogate without its low surrogate.
    surrogate: Option<u16>,
    /// Decoded bytes, and how many of them were read.
    ready: Vec<u8>,
    consumed: usize,
}

impl<R: BufRead> Decoder<R> {
    /// Creates a decoder at the start of a file.
    pub fn new(input: R, encoding: Encoding) -> Decoder<R> {
        Decoder { input, encoding, surrogate: None, ready: Vec::new(), consumed: 0 }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.ready.clear();
        self.consumed = 0;
        let is_utf_16 = matches!(self.encoding, Encoding::Utf16Le | Encoding::Utf16Be);
        while self.ready.is_empty() {
            let bytes = match self.input.fill_buf()? {
                [] if self.surrogate.is_some() => return Err(not_utf_16("ends in the middle of a character")),
                [] => return Ok(()),
                [byte] if is_utf_16 => {
                    let mut pair = [*byte, 0];
                    self.input.consume(1);
                    if self.input.read(&mut pair[1..])? == 0 {
                        return Err(not_utf_16("has an odd number of bytes"));
                    }
                    self.decode(&pair)?;
                    continue;
                }
                bytes if is_utf_16 => bytes[..bytes.len() / 2 * 2].to_vec(),
                bytes => bytes.to_vec(),
            };
            self.input.consume(bytes.len());
            self.decode(&bytes)?;
        }
        Ok(())
    }

    fn decode(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.encoding {
            Encoding::Utf8 => self.ready.extend_from_slice(bytes),
            Encoding::Windows1252 => bytes.iter().for_each(|byte| match byte {
                0x80..=0x9f => self.put(WINDOWS_1252_HIGH[usize::from(*byte - 0x80)]),
                _ => self.put(char::from(*byte)),
            }),
            Encoding::Utf16Le | Encoding::Utf16Be => {
                for pair in bytes.chunks_exact(2) {
                    let unit = match self.encoding {
                        Encoding::Utf16Le => u16::from_le_bytes([pair[0], pair[1]]),
                        _ => u16::from_be_bytes([pair[0], pair[1]]),
                    };
                    self.unit(unit)?;
                }
            }
        }
        Ok(())
    }

    fn unit(&mut self, unit: u16) -> io::Result<()> {
        let units = match self.surrogate.take() {
            Some(high) => vec![high, unit],
            None if (0xd800..0xdc00).contains(&unit) => {
                self.surrogate = Some(unit);
                return Ok(());
            }
            None => vec![unit],
        };
        for decoded in char::decode_utf16(units) {
            self.put(decoded.map_err(|_| not_utf_16("contains an incomplete character"))?);
        }
        Ok(())
    }

    fn put(&mut self, character: char) {
        self.ready.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

fn not_utf_16(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file is not UTF-16: it {what}"))
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.consumed == self.ready.len() {
            self.fill()?;
        }
        let count = buffer.len().min(self.ready.len() - self.consumed);
        buffer[..count].copy_from_slice(&self.ready[self.consumed..self.consumed + count]);
        self.consumed += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn decoded(bytes: &[u8], encoding: Encoding, room: usize) -> io::Result<String> {
        let mut text = String::new();
        Decoder::new(BufReader::with_capacity(room, bytes), encoding).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn utf_16_is_decoded_in_both_byte_orders_and_in_pieces_of_any_size() {
        let text = "client_id;ü;😀\r\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!((detect(&little), detect(&big)), (Some(Encoding::Utf16Le), Some(Encoding::Utf16Be)));
        for room in [1, 2, 3, 4, 5, 100] {
            assert_eq!(decoded(&little, Encoding::Utf16Le, room).unwrap(), text);
            assert_eq!(decoded(&big, Encoding::Utf16Be, room).unwrap(), text);
        }
        assert!(decoded(&little[..little.len() - 1], Encoding::Utf16Le, 4).is_err());
        assert!(decoded(&[0x00, 0xdc, 0x41, 0x00], Encoding::Utf16Le, 4).is_err());
    }

    #[test]
    fn windows_1252_is_decoded_but_not_detected() {
        assert_eq!(decoded(b"M\xfcller \x80 5", Encoding::Windows1252, 3).unwrap(), "Müller € 5");
        assert_eq!(detect(b"M\xfcller"), None);
        assert_eq!(detect(b"a,b"), None);
    }
}
