//! Reads files that are compressed with gzip.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::input::Source;

/// The first bytes of a gzip member.
pub const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Decompresses all members of a gzip file.
pub struct GzipReader {
    /// The current member. `None` at the end of the file.
    member: Option<GzDecoder<BufReader<Source>>>,
}

impl GzipReader {
    /// Starts with the first member.
    pub fn new(source: Source) -> GzipReader {
        GzipReader { member: Some(GzDecoder::new(BufReader::new(source))) }
    }
}

impl Read for GzipReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot decompress the file: {error}; it may be truncated"))
            })?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.member = self.member.take().map(GzDecoder::into_inner).map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// Starts the next member. Skips zero bytes, because tapes and block devices add them after the last member.
fn next_member(mut rest: BufReader<Source>) -> io::Result<Option<GzDecoder<BufReader<Source>>>> {
    loop {
        let bytes = rest.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        match (bytes.first(), bytes.get(zeros)) {
            (None, _) => return Ok(None),
            (_, None) => rest.consume(zeros),
            (_, Some(first)) if *first == MAGIC[0] => {
                rest.consume(zeros);
                return Ok(Some(GzDecoder::new(rest)));
            }
            _ => {
                let message = "the file has other bytes after its gzip data; something may have been appended to it";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use std::io::Write;

    fn packed(text: &str) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    }

    fn unpacked(bytes: Vec<u8>) -> io::Result<String> {
        let mut text = String::new();
        GzipReader::new(Box::new(io::Cursor::new(bytes))).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn all_members_are_read_and_zeros_after_them_are_ignored() {
        let two = [packed("a,b\n"), packed("1,2\n")].concat();
        assert_eq!(unpacked(two.clone()).unwrap(), "a,b\n1,2\n");
        assert_eq!(unpacked([two, vec![0; 20_000]].concat()).unwrap(), "a,b\n1,2\n");
    }

    #[test]
    fn a_truncated_file_and_appended_bytes_are_errors() {
        let whole = packed("a,b\n1,2\n");
        let error = |bytes| unpacked(bytes).unwrap_err().to_string();
        assert!(error(whole[..whole.len() - 4].to_vec()).contains("truncated"));
        assert!(error([whole.clone(), whole[..5].to_vec()].concat()).contains("truncated"));
        assert!(error([&whole[..], &b"x,y\n"[..]].concat()).contains("appended"));
    }
}
