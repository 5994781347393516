//! Files that are packed with gzip, as UTF-8 or any other bytes.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::input::Source;

/// What a gzip member begins with.
pub const MARK: [u8; 2] = [0x1f, 0x8b];

/// The bytes in a gzip file, of all its members.
pub struct Unpacked {
    /// None: at the end.
    member: Option<GzDecoder<BufReader<Source>>>,
}

impl Unpacked {
    /// Begins with the first member.
    pub fn new(source: Source) -> Unpacked {
        Unpacked { member: Some(GzDecoder::new(BufReader::new(source))) }
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer).map_err(|error| {
                io::Error::new(error.kind(), format!("the file cannot be unpacked further: {error}. Is it cut off?"))
            })?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.member = self.member.take().map(GzDecoder::into_inner).map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// The member after one that ended. Tapes and block devices add zeros after the last one.
fn next_member(mut rest: BufReader<Source>) -> io::Result<Option<GzDecoder<BufReader<Source>>>> {
    loop {
        let bytes = rest.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        match (bytes.first(), bytes.get(zeros)) {
            (None, _) => return Ok(None),
            (_, None) => rest.consume(zeros),
            (_, Some(first)) if *first == MARK[0] => {
                rest.consume(zeros);
                return Ok(Some(GzDecoder::new(rest)));
            }
            _ => {
                let what = "the file has bytes after its packed data that are not gzip: was something appended to it?";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
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
        Unpacked::new(Box::new(io::Cursor::new(bytes))).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn all_members_are_read_and_zeros_after_them_do_not_matter() {
        let two = [packed("a,b\n"), packed("1,2\n")].concat();
        assert_eq!(unpacked(two.clone()).unwrap(), "a,b\n1,2\n");
        assert_eq!(unpacked([two, vec![0; 20_000]].concat()).unwrap(), "a,b\n1,2\n");
    }

    #[test]
    fn what_is_cut_off_or_appended_is_told_as_that() {
        let whole = packed("a,b\n1,2\n");
        let told = |bytes| unpacked(bytes).unwrap_err().to_string();
        assert!(told(whole[..whole.len() - 4].to_vec()).contains("Is it cut off?"));
        assert!(told([whole.clone(), whole[..5].to_vec()].concat()).contains("Is it cut off?"));
        assert!(told([&whole[..], &b"x,y\n"[..]].concat()).contains("not gzip"));
    }
}
