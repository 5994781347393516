//! Files and standard input, opened.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::bail;

use super::rows::Format;

/// Opens a file, and says how long it is if it is a regular one.
pub fn open(path: &Path) -> std::io::Result<(Box<dyn BufRead + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(std::io::stdin())), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let bytes = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(BufReader::with_capacity(1 << 16, file)), bytes))
}

/// What to call it in messages.
pub fn name_of(path: &Path) -> String {
    match path == Path::new("-") {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

/// The given format, or the one that the file is named by.
pub fn format_of(path: &Path, given: Option<Format>) -> anyhow::Result<Format> {
    if let Some(format) = given {
        return Ok(format);
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "csv" | "tsv" | "txt" => Ok(Format::Csv),
        "ndjson" | "jsonl" | "json" => Ok(Format::Ndjson),
        _ => bail!("{}: which format is it? give --format csv or --format ndjson", path.display()),
    }
}
