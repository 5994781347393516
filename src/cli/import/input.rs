//! Opens files and standard input: decompresses and decodes them, and detects their format.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};

use super::ImportArgs;
use super::encoding::{Decoder, Encoding, detect};
use super::gzip::{self, GzipReader};
use super::names::is_same_name;
use super::rows::{Format, Layout, is_table_border};

/// Maximum number of bytes in which the header line is searched.
const FIRST_LINE_BYTES_MAX: usize = 64 * 1024;
/// Number of bytes that identify a byte order mark or a file type.
const MAGIC_BYTES: usize = 8;

pub type Source = Box<dyn Read + Send>;

/// An open file that is read as UTF-8.
pub struct Input {
    pub reader: BufReader<Source>,
    /// Number of bytes to read, if it is known.
    pub bytes: Option<u64>,
    /// Whether it is a file that can be read again.
    pub is_file: bool,
    pub layout: Layout,
    /// Whether files of this kind often have a decimal comma.
    pub may_have_comma: bool,
    /// Detected properties, for the user.
    pub notes: Vec<String>,
}

/// Opens a file, or standard input for "-". The flags and the first bytes determine the format.
pub fn open(path: &Path, args: &ImportArgs) -> anyhow::Result<Input> {
    let (source, length) = source(path).context("cannot read the file")?;
    let is_file = length.is_some();
    let mut notes = Vec::new();
    let (mut start, mut source) = peek(source, MAGIC_BYTES, |_| false)?;
    let mut bytes = length;
    if start.starts_with(&gzip::MAGIC) {
        (start, source) = peek(Box::new(GzipReader::new(source)), MAGIC_BYTES, |_| false)?;
        notes.push("decompressed with gzip".to_owned());
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

/// Length and modification time of a file, to detect changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    length: u64,
    modified: Option<SystemTime>,
}

impl FileVersion {
    /// Returns the current version of a file. `None` if it does not exist or is not a regular file.
    pub fn of(path: &Path) -> Option<FileVersion> {
        let metadata = path.metadata().ok().filter(|metadata| metadata.is_file())?;
        Some(FileVersion { length: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// The name of a file in messages.
pub fn display_name(path: &Path) -> String {
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
        return Err(io::Error::other("it is a directory; name the files in it"));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Reads at most `bytes_max` bytes, or until `is_enough`. Returns them, and a source that starts with them again.
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

/// Rejects known binary files. The error says how to convert them.
fn check_kind(start: &[u8]) -> anyhow::Result<()> {
    let kinds: [(&[u8], &str); 8] = [
        (
            b"PK\x03\x04",
            "is an Excel workbook or a zip archive: save the sheet as \"CSV UTF-8\", or extract the archive",
        ),
        (b"\xd0\xcf\x11\xe0", "is an old Excel workbook: save the sheet as \"CSV UTF-8\""),
        (b"PAR1", "is a Parquet file: convert it to CSV or NDJSON first"),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd: `zstd -dc FILE | meterd import - --format csv`"),
        (b"BZh", "is compressed with bzip2: `bzip2 -dc FILE | meterd import - --format csv`"),
        (b"\xfd7zXZ", "is compressed with xz: `xz -dc FILE | meterd import - --format csv`"),
        (b"%PDF", "is a PDF document: use a CSV or JSON file"),
        (b"SQLite f", "is an SQLite database: export the table as CSV first"),
    ];
    match kinds.iter().find(|(mark, _)| start.starts_with(mark)) {
        Some((_, description)) => bail!("the file {description}"),
        None => Ok(()),
    }
}

fn name_of_encoding(encoding: Encoding) -> String {
    use clap::ValueEnum;
    encoding.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Determines the layout of a file from the flags, its name and its first line.
fn layout_of(path: &Path, first: &[u8], args: &ImportArgs, notes: &mut Vec<String>) -> anyhow::Result<Layout> {
    let first = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    if first.contains(&b'\0') {
        bail!("the file is not text: it contains zero bytes");
    }
    if first.trim_ascii_end().contains(&b'\r') && !first.contains(&b'\n') {
        bail!(
            "the lines of the file end with carriage returns only: convert it with `tr '\\r' '\\n' < FILE | meterd import - --format csv`"
        );
    }
    let line = header_line(first, args.skip_lines).0;
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let extension = name.trim_end_matches(".gz").rsplit_once('.').map_or("", |(_, extension)| extension);
    let looks_like_json = matches!(line.first(), Some(b'{' | b'['));
    let has_object_per_line = line.first() == Some(&b'{') && line.len() > 1;
    let format = match (args.format, extension) {
        (Some(Format::Ndjson), _) if looks_like_json && !has_object_per_line => Format::Json,
        (Some(format), _) => format,
        (None, "csv" | "tsv" | "txt" | "tab") if looks_like_json => {
            bail!("the file looks like JSON: add --format ndjson, or --format csv if it is CSV")
        }
        (None, "csv" | "tsv" | "txt" | "tab") => Format::Csv,
        (None, _) if looks_like_json && !has_object_per_line => Format::Json,
        (None, "ndjson" | "jsonl" | "json") => Format::Ndjson,
        (None, _) if looks_like_json => Format::Ndjson,
        _ => bail!("the format of the file is unknown: add --format csv, --format ndjson or --format json"),
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

/// Returns the first non-empty line after the skipped lines, and whether the line is complete.
fn header_line(bytes: &[u8], skip_lines: u64) -> (&[u8], bool) {
    let skip = usize::try_from(skip_lines).unwrap_or(usize::MAX);
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(skip);
    let line = lines.find(|line| !line.trim_ascii().is_empty() && !is_table_border(line)).unwrap_or_default();
    (line.trim_ascii(), line.ends_with(b"\n"))
}

/// Returns the delimiter that gives the most known names in the header line; of those, the most frequent one outside of quotes.
/// A spreadsheet can name the delimiter in a line before the header.
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
        let known = cells.iter().filter(|cell| names.iter().any(|name| is_same_name(cell, name))).count();
        (known, cells.len())
    };
    // If several are equal, `max_by_key` returns the last one, the comma.
    b"|\t;,".iter().copied().max_by_key(|delimiter| columns(*delimiter)).unwrap_or(b',')
}

/// The name of a delimiter in messages.
pub fn name_of_delimiter(delimiter: u8) -> String {
    match delimiter {
        b'\t' => "tabs".to_owned(),
        other => format!("{:?}", char::from(other)),
    }
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
