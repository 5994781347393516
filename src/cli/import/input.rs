//! Files and standard input, opened: unpacked, decoded, and looked at for what they are.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};

use super::ImportArgs;
use super::encoding::{Decoder, Encoding, detect};
use super::names::is_same;
use super::rows::{Format, Layout, is_frame};
use super::unpack::{self, Unpacked};

/// As far as a first line is looked for.
const FIRST_LINE_BYTES_MAX: usize = 64 * 1024;
/// Enough for a byte order mark, or the mark of a packed file.
const MARK_BYTES: usize = 8;

pub type Source = Box<dyn Read + Send>;

/// A file, ready to be read as UTF-8.
pub struct Input {
    pub reader: BufReader<Source>,
    /// Its length, if that is known for what is read of it.
    pub bytes: Option<u64>,
    /// It is a file that can be read again.
    pub is_file: bool,
    pub layout: Layout,
    /// Its numbers may well have a comma before the decimals.
    pub may_have_comma: bool,
    /// What was found out and not asked for, for people.
    pub notes: Vec<String>,
}

/// Opens a file, or standard input for "-", as the flags and its first bytes say.
pub fn open(path: &Path, args: &ImportArgs) -> anyhow::Result<Input> {
    let (source, length) = source(path).with_context(|| format!("cannot read {}", name_of(path)))?;
    let is_file = length.is_some();
    let mut notes = Vec::new();
    let (mut start, mut source) = peek(source, MARK_BYTES, |_| false)?;
    let mut bytes = length;
    if start.starts_with(&unpack::MARK) {
        (start, source) = peek(Box::new(Unpacked::new(source)), MARK_BYTES, |_| false)?;
        notes.push("unpacked with gzip".to_owned());
        bytes = None;
    }
    check_kind(&start)?;
    let encoding = args.encoding.or_else(|| detect(&start)).unwrap_or(Encoding::Utf8);
    if encoding != Encoding::Utf8 {
        source = Box::new(Decoder::new(BufReader::new(source), encoding));
        bytes = None;
        notes.push(format!("decoded from {}", name_of_encoding(encoding)));
    }
    let (first, source) = peek(source, FIRST_LINE_BYTES_MAX, |bytes| header_line(bytes, args.skip_lines).1)?;
    let layout = layout_of(path, &first, args, &mut notes)?;
    let is_utf_16 = matches!(encoding, Encoding::Utf16Le | Encoding::Utf16Be);
    let may_have_comma =
        layout.format == Format::Csv && (layout.delimiter == b';' || (layout.delimiter == b'\t' && is_utf_16));
    let reader = BufReader::with_capacity(1 << 16, source);
    Ok(Input { reader, bytes, is_file, layout, may_have_comma, notes })
}

/// What shows that a file was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// Of a file as it is now. None: it is gone, or no file.
    pub fn of(path: &Path) -> Option<Stamp> {
        let metadata = path.metadata().ok().filter(|metadata| metadata.is_file())?;
        Some(Stamp { length: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// What to call it in messages.
pub fn name_of(path: &Path) -> String {
    match path == Path::new("-") {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

fn source(path: &Path) -> io::Result<(Source, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::other("is a folder; name the files in it"));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Reads up to `bytes_max` bytes, or until they are enough, and puts them back.
fn peek(mut source: Source, bytes_max: usize, is_enough: impl Fn(&[u8]) -> bool) -> io::Result<(Vec<u8>, Source)> {
    let mut start = Vec::new();
    let mut buffer = [0; 4096];
    while start.len() < bytes_max && !is_enough(&start) {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => start.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = Box::new(Cursor::new(start.clone()).chain(source));
    Ok((start, whole))
}

/// Refuses what is not a text, with the way to make one of it.
fn check_kind(start: &[u8]) -> anyhow::Result<()> {
    let kinds: [(&[u8], &str); 8] = [
        (b"PK\x03\x04", "is a workbook or a zip archive: save the sheet as \"CSV UTF-8\", or unpack the archive"),
        (b"\xd0\xcf\x11\xe0", "is an old Excel workbook: save the sheet as \"CSV UTF-8\""),
        (b"PAR1", "is a Parquet file: write it as CSV or NDJSON first"),
        (b"\x28\xb5\x2f\xfd", "is packed with zstd: `zstd -dc FILE | meterd import - --format csv`"),
        (b"BZh", "is packed with bzip2: `bzip2 -dc FILE | meterd import - --format csv`"),
        (b"\xfd7zXZ", "is packed with xz: `xz -dc FILE | meterd import - --format csv`"),
        (b"%PDF", "is a PDF"),
        (b"SQLite f", "is an SQLite database: export the table as CSV first"),
    ];
    match kinds.iter().find(|(mark, _)| start.starts_with(mark)) {
        Some((_, what)) => bail!("the file {what}"),
        None => Ok(()),
    }
}

fn name_of_encoding(encoding: Encoding) -> String {
    use clap::ValueEnum;
    encoding.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// The form of a file, by the flags, its name and its first line.
fn layout_of(path: &Path, first: &[u8], args: &ImportArgs, notes: &mut Vec<String>) -> anyhow::Result<Layout> {
    let first = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    if first.contains(&b'\0') {
        bail!("the file is not text: it has bytes of zero");
    }
    if first.trim_ascii_end().contains(&b'\r') && !first.contains(&b'\n') {
        bail!("its lines end with carriage returns alone: `tr '\\r' '\\n' < FILE | meterd import - --format csv`");
    }
    let line = header_line(first, args.skip_lines).0;
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let extension = name.trim_end_matches(".gz").rsplit_once('.').map_or("", |(_, extension)| extension);
    let looks_like_json = matches!(line.first(), Some(b'{' | b'['));
    let is_one_a_line = line.first() == Some(&b'{') && line.len() > 1;
    let format = match (args.format, extension) {
        (Some(Format::Ndjson), _) if looks_like_json && !is_one_a_line => Format::Json,
        (Some(format), _) => format,
        (None, "csv" | "tsv" | "txt" | "tab") if looks_like_json => {
            bail!("the file looks like JSON: give --format ndjson, or --format csv if it is not")
        }
        (None, "csv" | "tsv" | "txt" | "tab") => Format::Csv,
        (None, _) if looks_like_json && !is_one_a_line => Format::Json,
        (None, "ndjson" | "jsonl" | "json") => Format::Ndjson,
        (None, _) if looks_like_json => Format::Ndjson,
        _ => bail!("which format is it? give --format csv, --format ndjson or --format json"),
    };
    let delimiter = match args.delimiter {
        Some(delimiter) => delimiter,
        None if format == Format::Csv => {
            let delimiter = delimiter_of(line, &args.mapping.column_names());
            if delimiter != b',' {
                notes.push(format!("columns are separated by {}", name_of_delimiter(delimiter)));
            }
            delimiter
        }
        None => b',',
    };
    Ok(Layout { format, delimiter, skip_lines: args.skip_lines, quotes: args.quotes })
}

/// The first line that is not empty after those that are skipped, and whether it is there whole.
fn header_line(bytes: &[u8], skip_lines: u64) -> (&[u8], bool) {
    let skip = usize::try_from(skip_lines).unwrap_or(usize::MAX);
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(skip);
    let line = lines.find(|line| !line.trim_ascii().is_empty() && !is_frame(line)).unwrap_or_default();
    (line.trim_ascii(), line.ends_with(b"\n"))
}

/// The one of the usual delimiters that makes most known names of a header line, and of those the one that it has most of
/// outside of quotes. A spreadsheet may name it in a line before the header.
fn delimiter_of(line: &[u8], names: &[&str]) -> u8 {
    if let [b's', b'e', b'p', b'=', delimiter] = line {
        return *delimiter;
    }
    let columns = |delimiter: u8| {
        let mut quoted = false;
        let cells = line.split(move |byte| {
            quoted ^= *byte == b'"';
            !quoted && *byte == delimiter
        });
        let cells: Vec<String> = cells.map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
        let known = cells.iter().filter(|cell| names.iter().any(|name| is_same(cell, name))).count();
        (known, cells.len())
    };
    // Of equal ones the last: the comma.
    b"|\t;,".iter().copied().max_by_key(|delimiter| columns(*delimiter)).unwrap_or(b',')
}

/// A delimiter for people.
pub fn name_of_delimiter(delimiter: u8) -> String {
    match delimiter {
        b'\t' => "tabs".to_owned(),
        other => format!("{:?}", char::from(other)),
    }
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
