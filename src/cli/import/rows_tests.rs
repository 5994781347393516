use super::*;

fn layout(format: Format) -> Layout {
    Layout { format, delimiter: b',', skip_lines: 0, quotes: Quotes::Doubled }
}

fn csv(text: &[u8]) -> anyhow::Result<RowReader<&[u8]>> {
    RowReader::new(text, layout(Format::Csv))
}

fn read(text: &str, format: Format) -> Vec<Row> {
    let mut reader = RowReader::new(text.as_bytes(), layout(format)).unwrap();
    let mut rows = Vec::new();
    while let Some(row) = reader.next_row().unwrap() {
        rows.push(row);
    }
    assert_eq!(reader.position().offset, text.len() as u64);
    assert_eq!(reader.position().rows, rows.len() as u64);
    rows
}

fn cells(row: &Row) -> &[String] {
    match row.cells.as_ref().unwrap() {
        Cells::Csv(cells) => cells,
        Cells::Json(_) => panic!(),
    }
}

#[test]
fn line_ends_byte_order_marks_and_empty_lines_are_ignored() {
    for text in [
        "a,b\n1,2\n3,4\n",
        "a,b\r\n1,2\r\n3,4\r\n",
        "\u{feff}a,b\r\n1,2\r\n3,4",
        "\n\na,b\n\n1,2\n  \r\n3,4\n\n\n",
        "\u{feff}\na,b\n1,2\n3,4",
    ] {
        let rows = read(text, Format::Csv);
        assert_eq!(rows.len(), 2, "{text:?}");
        assert_eq!(cells(&rows[0]), ["1", "2"], "{text:?}");
        assert_eq!(cells(&rows[1]), ["3", "4"], "{text:?}");
    }
}

#[test]
fn the_header_is_read_without_byte_order_mark_and_spaces() {
    let reader = csv("\u{feff}a, b \r\n".as_bytes()).unwrap();
    assert_eq!(&*reader.header(), ["a", "b"]);
    assert!(csv("".as_bytes()).is_err());
    assert!(csv("\n \n".as_bytes()).is_err());
}

#[test]
fn quoted_values_can_contain_commas_quotes_and_line_ends() {
    let rows = read("a,b\r\n\"x, \"\"y\"\"\r\nz\",2\r\n5,\"6\"\r\n", Format::Csv);
    assert_eq!(cells(&rows[0]), ["x, \"y\"\r\nz", "2"]);
    assert_eq!(rows[0].line, 2);
    assert_eq!(rows[0].text, "\"x, \"\"y\"\"\r\nz\",2");
    assert_eq!(cells(&rows[1]), ["5", "6"]);
    assert_eq!(rows[1].line, 4);
}

#[test]
fn a_single_quote_character_affects_only_its_row() {
    let rows = read("a,b\n5\" pipe,2\n3,4\n", Format::Csv);
    assert_eq!(cells(&rows[0]), ["5\" pipe", "2"]);
    assert_eq!(cells(&rows[1]), ["3", "4"]);
}

#[test]
fn a_row_with_a_wrong_number_of_columns_is_an_error_and_the_next_row_is_read() {
    let rows = read("a,b\n1\n1,2,3\n1,2", Format::Csv);
    assert_eq!(rows[0].cells.as_ref().unwrap_err(), "has 1 columns, but the header has 2");
    assert_eq!(
        rows[1].cells.as_ref().unwrap_err(),
        "has 3 columns, but the header has 2; a value that contains the delimiter must be in quotes"
    );
    assert_eq!(cells(&rows[2]), ["1", "2"]);
}

#[test]
fn many_columns_and_empty_cells_are_read() {
    let header: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    let rows = read(&format!("{}\n{}1", header.join(","), ",".repeat(99)), Format::Csv);
    assert_eq!(cells(&rows[0]).len(), 100);
    assert!(cells(&rows[0])[..99].iter().all(String::is_empty));
}

#[test]
fn rows_of_delimiters_and_empty_cells_beyond_the_header_are_ignored() {
    let rows = read("a,b\n,\n1,2,,\n\" \",\n,,,,,\n,2\n", Format::Csv);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [3, 6]);
    assert_eq!(cells(&rows[0]), ["1", "2"]);
}

#[test]
fn lines_before_the_header_are_skipped() {
    let mut reader = csv(b"sep=,\r\na,b\r\n1,2\r\n").unwrap();
    assert_eq!(&*reader.header(), ["a", "b"]);
    assert_eq!(reader.next_row().unwrap().unwrap().line, 3);
    let text = "Report of November\n\na,b\n1,2\n";
    let reader = RowReader::new(text.as_bytes(), Layout { skip_lines: 1, ..layout(Format::Csv) }).unwrap();
    assert_eq!(&*reader.header(), ["a", "b"]);
}

#[test]
fn a_last_row_without_a_line_end_is_detected() {
    for (text, open) in [("a,b\n1,2\n", false), ("a,b\n1,2", true), ("a,b\n1,2\n\n", false)] {
        let mut reader = csv(text.as_bytes()).unwrap();
        reader.next_row().unwrap().unwrap();
        assert_eq!(reader.lacks_line_end(), open, "{text:?}");
    }
}

#[test]
fn an_array_is_read_value_by_value_with_any_line_ends() {
    let compact = r#"[{"a":"],{"},{"a":[1,{"b":"\""}]},3,"x",{"a":2}]"#;
    let pretty = compact.replace(',', ",\n ");
    for text in
        [compact.to_owned(), format!("\u{feff} {compact}\n"), compact[1..compact.len() - 1].replace("},", "}\n")]
    {
        let rows = read(&text, Format::Json);
        let good: Vec<bool> = rows.iter().map(|row| row.cells.is_ok()).collect();
        assert_eq!(good, [true, true, false, false, true], "{text}");
    }
    let rows = read(&pretty.replace("],\n {", "],{"), Format::Json);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    assert!(rows[2].cells.as_ref().unwrap_err().contains("is not a JSON object"));
}

#[test]
fn a_truncated_array_is_an_error() {
    for (text, good) in [("[{\"a\":1},", 1), ("[{\"a\":1},{\"a\":", 1), ("[{\"a\":1}", 1), ("[", 0)] {
        let rows = read(text, Format::Json);
        assert_eq!(rows.len(), good + 1, "{text}");
        assert!(rows[good].cells.as_ref().unwrap_err().contains("truncated"), "{text}");
    }
    assert!(read("[]", Format::Json).is_empty());
    assert!(read("", Format::Json).is_empty());
}

#[test]
fn an_open_quote_is_an_error() {
    let rows = read("a,b\n1,\"2\n3,4", Format::Csv);
    assert_eq!(rows.len(), 1);
    assert!(rows[0].cells.as_ref().unwrap_err().contains("not closed"));
    let endless = format!("a\n\"{}", "x\n".repeat(ROW_BYTES_MAX));
    let mut reader = csv(endless.as_bytes()).unwrap();
    assert!(reader.next_row().unwrap_err().to_string().contains("quote"));
}

#[test]
fn bytes_that_are_not_utf_8_are_an_error() {
    let mut reader = csv(&b"a\n\xff\nb\n"[..]).unwrap();
    let error = reader.next_row().unwrap().unwrap().cells.unwrap_err();
    assert!(error.contains("is not UTF-8 at byte 1") && error.contains("--encoding"), "{error}");
    assert!(reader.next_row().unwrap().unwrap().cells.is_ok());
}

#[test]
fn json_lines_are_read_and_other_lines_are_errors() {
    let rows = read("\u{feff}{\"a\":1}\r\n\n[1]\n{\"a\":\n{\"a\":0.10}", Format::Ndjson);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 3, 4, 5]);
    assert!(rows[0].cells.is_ok());
    assert!(rows[1].cells.as_ref().unwrap_err().contains("is not a JSON object"));
    assert!(rows[2].cells.is_err());
    let Cells::Json(object) = rows[3].cells.as_ref().unwrap() else { panic!() };
    assert_eq!(object["a"].get(), "0.10");
}

#[test]
fn another_delimiter_can_be_set() {
    let mut reader =
        RowReader::new("a;b\n1;2,5\n".as_bytes(), Layout { delimiter: b';', ..layout(Format::Csv) }).unwrap();
    let row = reader.next_row().unwrap().unwrap();
    assert_eq!(cells(&row), ["1", "2,5"]);
}

#[test]
fn the_error_of_a_misplaced_quote_names_the_lines() {
    let rows = read("a,b\n1,\"say hi\n2,ok\n3,\"bye\"\n4,ok\n5,\"a \"b\" c\"\n", Format::Csv);
    let error = |row: &Row| row.cells.as_ref().unwrap_err().clone();
    assert_eq!(rows.len(), 3);
    assert!(error(&rows[0]).starts_with("extends from line 2 to line 4"), "{}", error(&rows[0]));
    assert_eq!(cells(&rows[1]), ["4", "ok"]);
    assert!(error(&rows[2]).starts_with("has text after a closing quote") && error(&rows[2]).contains("--quotes none"));
}

#[test]
fn quotes_are_read_in_the_style_of_the_flag() {
    let text = "a,b\n\"x \\\"y\\\"\",2\n";
    let mut reader =
        RowReader::new(text.as_bytes(), Layout { quotes: Quotes::Backslash, ..layout(Format::Csv) }).unwrap();
    assert_eq!(cells(&reader.next_row().unwrap().unwrap()), ["x \"y\"", "2"]);
    let text = "a,b\n\"x,2\n";
    let mut reader = RowReader::new(text.as_bytes(), Layout { quotes: Quotes::None, ..layout(Format::Csv) }).unwrap();
    assert_eq!(cells(&reader.next_row().unwrap().unwrap()), ["\"x", "2"]);
    let rows = read("\"a\", \"b\"\n\"1\", \"2\"\n", Format::Csv);
    assert_eq!(cells(&rows[0]), ["1", "2"]);
}

#[test]
fn lines_inside_a_value_with_the_columns_of_a_row_are_detected() {
    let rows = read("a,b\n\"hello\nmy, friend\nbye\",2\n3,4\n", Format::Csv);
    assert_eq!(rows[0].inner.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4]);
    assert!(rows[1].inner.is_empty());
}

#[test]
fn a_repeated_header_is_skipped_and_a_header_in_another_order_is_an_error() {
    let mut reader = csv("a,b\n1,2\n\u{feff}a, b\r\n3,4\n".as_bytes()).unwrap();
    assert_eq!(cells(&reader.next_row().unwrap().unwrap()), ["1", "2"]);
    assert_eq!(cells(&reader.next_row().unwrap().unwrap()), ["3", "4"]);
    assert_eq!((reader.take_repeated_headers(), reader.position().rows), (1, 2));
    let mut reader = csv(b"a,b\n1,2\nb,a\n3,4\n").unwrap();
    reader.next_row().unwrap().unwrap();
    let error = reader.next_row().unwrap_err().to_string();
    assert!(error.contains("line 3 is a header line with the columns in another order"), "{error}");
}

#[test]
fn a_value_in_a_column_without_a_name_is_an_error() {
    let rows = read("a,b,\n1,234,5\n1,2,\n", Format::Csv);
    let error = rows[0].cells.as_ref().unwrap_err();
    assert!(error.starts_with("has \"5\" in column 3, which has no name"), "{error}");
    assert_eq!(cells(&rows[1]), ["1", "2", ""]);
}

#[test]
fn the_border_of_a_table_is_not_a_row() {
    let rows = read(" a , b \n---+----\n 1 , 2 \n---,---\n(1 row)\n(12 rows)\n", Format::Csv);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [3, 4]);
    let mysql = "+---+---+\n| a | b |\n+---+---+\n| 1 | 2 |\n+---+---+\n";
    let mut reader = RowReader::new(mysql.as_bytes(), Layout { delimiter: b'|', ..layout(Format::Csv) }).unwrap();
    assert_eq!(&*reader.header(), ["", "a", "b", ""]);
    assert_eq!(cells(&reader.next_row().unwrap().unwrap())[1..3], [" 1 ", " 2 "]);
    assert!(reader.next_row().unwrap().is_none());
}

#[test]
fn the_end_mark_of_a_dos_file_is_not_a_row() {
    assert_eq!(read("a,b\n1,2\n\u{1a}", Format::Csv).len(), 1);
}

proptest::proptest! {
    /// Any file is read to its end, or to a second header with other columns, and each valid row has a cell for each column.
    #[test]
    fn any_file_is_read_to_its_end(
        bytes in proptest::collection::vec(proptest::sample::select(&b"ab1,,\"\"\n\n\r{}[]:\\ \xef\xbb\xbf\xff\0"[..]), 0..80),
    ) {
        for format in [Format::Csv, Format::Ndjson, Format::Json] {
            let Ok(mut reader) = RowReader::new(&*bytes, layout(format)) else { continue };
            let (columns, mut line) = (reader.header().len(), 0);
            let error = loop {
                match reader.next_row() {
                    Ok(Some(row)) => {
                        proptest::prop_assert!(row.line > line || format == Format::Json && row.line == line);
                        line = row.line;
                        if let Ok(Cells::Csv(cells)) = row.cells {
                            proptest::prop_assert_eq!(cells.len(), columns);
                        }
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error.to_string()),
                }
            };
            match error {
                None => proptest::prop_assert_eq!(reader.position().offset, bytes.len() as u64),
                Some(error) => proptest::prop_assert!(error.contains("is a header line with the columns in another order")),
            }
        }
    }
}
