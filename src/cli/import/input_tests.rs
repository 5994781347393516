use super::*;
use crate::cli::import::rows::{Cells, RowReader};
use clap::Parser;
use std::io::Write;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: ImportArgs,
}

/// Opens a file with these bytes and returns the cells of its first row.
fn first_row(name: &str, bytes: &[u8], flags: &[&str]) -> anyhow::Result<(Vec<String>, bool, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let args = Command::try_parse_from([&["test", "x"], flags].concat()).unwrap().args;
    let input = open(&path, &args)?;
    let mut reader = RowReader::new(input.reader, input.layout)?;
    let row = reader.next_row()?.map(|row| row.cells.map_err(anyhow::Error::msg)).transpose()?;
    let cells = match row {
        Some(Cells::Csv(cells)) => cells,
        Some(Cells::Json(object)) => object.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
        None => vec![],
    };
    Ok((cells, input.may_have_comma, input.notes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn utf_16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn the_delimiter_is_detected_from_the_header_line() {
    for (text, may_have_comma) in [
        ("a,b\n1,x\n", false),
        ("a;b\n1;x\n", true),
        ("a\tb\n1\tx\n", false),
        ("a|b\n1|x\n", false),
        ("sep=;\r\na;b\r\n1;x\r\n", true),
        ("\n\n\"a,1\";b\n1;x\n", true),
        ("\u{feff}a;b\n1;x", true),
    ] {
        let (cells, comma, _) = first_row("f.csv", text.as_bytes(), &[]).unwrap();
        assert_eq!((cells, comma), (vec!["1".to_owned(), "x".to_owned()], may_have_comma), "{text:?}");
    }
    let (cells, ..) = first_row("f.csv", b"note, in all, and so on;client_id\n1;x\n", &[]).unwrap();
    assert_eq!(cells, ["1", "x"]);
    let (cells, ..) = first_row("f.csv", b"title, of\na;b\n1;x\n", &["--skip-lines", "1"]).unwrap();
    assert_eq!(cells, ["1", "x"]);
    let (cells, ..) = first_row("f.csv", b"a,b;c\n1,x;y\n", &["--delimiter", ","]).unwrap();
    assert_eq!(cells, ["1", "x;y"]);
}

#[test]
fn files_are_decompressed_and_decoded() {
    let text = "a;b\r\n1;ü\r\n";
    let with_mark = format!("\u{feff}{text}");
    for bytes in [gzip(text.as_bytes()), utf_16(&with_mark), utf_16(text), gzip(&utf_16(&with_mark))] {
        for name in ["f.csv.gz", "f.csv"] {
            let (cells, ..) = first_row(name, &bytes, &[]).unwrap();
            assert_eq!(cells, ["1", "ü"]);
        }
    }
    let (.., notes) = first_row("f.csv", &gzip(&utf_16(text)), &[]).unwrap();
    assert_eq!(notes, ["decompressed with gzip", "decoded from utf-16le", "columns are separated by ';'"]);
    let latin = b"a;b\n1;\xfc\n";
    assert!(first_row("f.csv", latin, &[]).unwrap_err().to_string().contains("--encoding"));
    assert_eq!(first_row("f.csv", latin, &["--encoding", "windows-1252"]).unwrap().0, ["1", "ü"]);
    let (_, comma, _) = first_row("f.txt", &utf_16("a\tb\n1\tx\n"), &[]).unwrap();
    assert!(comma, "a spreadsheet saved as Unicode text");
}

#[test]
fn json_can_be_lines_an_array_or_objects_over_several_lines() {
    for (name, text) in [
        ("f.ndjson", "{\"a\":1}\n{\"a\":2}\n"),
        ("f.json", "{\"a\":1}\n"),
        ("f.json", "[{\"a\":1}]"),
        ("f.jsonl", "\u{feff}[\n  {\n    \"a\": 1\n  }\n]\n"),
        ("f.json", "{\n  \"a\": 1\n}\n{\n  \"a\": 2\n}\n"),
        ("f.log", "{\"a\":1}\n"),
        ("f", "[{\"a\":1}]"),
        ("f.json.gz", "[{\"a\":1}]"),
    ] {
        assert_eq!(first_row(name, text.as_bytes(), &[]).unwrap().0, ["a=1"], "{name} {text}");
    }
}

#[test]
fn the_error_of_an_unsupported_file_says_how_to_convert_it() {
    for (name, bytes, expected) in [
        ("f.xlsx", &b"PK\x03\x04..."[..], "save the sheet as \"CSV UTF-8\""),
        ("f.csv", b"\xd0\xcf\x11\xe0....", "old Excel"),
        ("f.csv", b"a,b\r1,2\r3,4\r", "carriage returns"),
        ("f.csv", b"\x01\x00\x00\x00\x02\x03", "not text"),
        ("f.csv.zst", b"\x28\xb5\x2f\xfd....", "zstd -dc"),
        ("f.csv", b"[{\"a\":1}]", "looks like JSON"),
        ("f.dat", b"a,b\n1,2\n", "--format csv"),
    ] {
        let error = format!("{:#}", first_row(name, bytes, &[]).unwrap_err());
        assert!(error.contains(expected), "{name}: {error}");
    }
    let cut = gzip(&b"a,b\n1,2\n".repeat(100));
    assert!(first_row("f.csv.gz", &cut[..15], &[]).is_err());
}
