use super::*;

fn text_of(text: &str, zone: Option<&str>, format: Option<&str>) -> Result<String, String> {
    let rules = TimeRules {
        zone: zone.map(|zone| zone.parse().unwrap()),
        formats: format.into_iter().map(str::to_owned).collect(),
    };
    let time = parse_time(text, &rules)?;
    let time = DateTime::from_timestamp(time.seconds, time.nanos as u32).unwrap();
    Ok(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

#[test]
fn usual_forms_are_utc_unless_they_have_an_offset() {
    for (text, expected) in [
        ("2023-11-16T18:15:46Z", "2023-11-16T18:15:46Z"),
        ("2023-11-16T19:15:46.5+01:00", "2023-11-16T18:15:46.500Z"),
        ("2023-11-16 18:15:46Z", "2023-11-16T18:15:46Z"),
        ("2023-11-16 18:15:46.6805900", "2023-11-16T18:15:46.680590Z"),
        ("2023-11-16 18:15:46", "2023-11-16T18:15:46Z"),
        ("2023-11-16T18:15:46.123456789", "2023-11-16T18:15:46.123456789Z"),
        ("2023-11-16 18:15", "2023-11-16T18:15:00Z"),
        ("2023-11-16", "2023-11-16T00:00:00Z"),
        ("2023/11/16 18:15", "2023-11-16T18:15:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
    ] {
        assert_eq!(text_of(text, None, None).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn times_of_databases_logs_and_mail_are_parsed() {
    for text in [
        "2026-11-20 10:15:00.123+00",
        "2026-11-20 10:15:00.123 UTC",
        "2026-11-20 10:15:00.123 utc",
        "2026-11-20 10:15:00.123 +0000",
        "2026-11-20 10:15:00.123+00:00",
        "2026-11-20 15:45:00.123+0530",
        "2026-11-20 02:15:00.123-08",
        "2026-11-20T10:15:00.123+0000",
        "2026-11-20t10:15:00.123z",
        "2026-11-20 10:15:00,123Z",
        "2026-11-20 10:15:00.123 +0000 UTC",
        "2026-11-20 12:15:00.123 +0200 CEST m=+0.000123",
        "2026-11-20T11:15:00.123+01:00[Europe/Berlin]",
        "2026-11-20 11:15:00.123 Europe/Berlin",
        "20261120T101500.123Z",
        "2026-11-20 10:15:00.123 AM UTC",
        "2026/11/20 10:15:00.123 GMT",
    ] {
        assert_eq!(text_of(text, None, None).as_deref(), Ok("2026-11-20T10:15:00.123Z"), "{text}");
    }
    for text in ["Fri, 20 Nov 2026 10:15:00 GMT", "[20/Nov/2026:11:15:00 +0100]", "20261120T1015Z"] {
        assert_eq!(text_of(text, None, None).as_deref(), Ok("2026-11-20T10:15:00Z"), "{text}");
    }
}

#[test]
fn a_zone_that_is_not_an_offset_is_an_error() {
    for text in
        ["2026-11-20 10:15:00 PST", "2026-11-20 10:15:00 +99:00", "2026-11-20 10:15:00 +1", "2026-11-20 10:15:00 x"]
    {
        let error = text_of(text, None, None).unwrap_err();
        assert!(error.contains("not an offset from UTC") && error.contains("--time-zone"), "{text}: {error}");
    }
}

#[test]
fn unix_times_are_recognized_by_their_length_and_stay_exact() {
    for (text, expected) in [
        ("1700158546", "2023-11-16T18:15:46Z"),
        ("1700158546.680590", "2023-11-16T18:15:46.680590Z"),
        ("1700158546680", "2023-11-16T18:15:46.680Z"),
        ("1700158546680.59", "2023-11-16T18:15:46.680590Z"),
        ("1700158546680590", "2023-11-16T18:15:46.680590Z"),
        ("1700158546680590123", "2023-11-16T18:15:46.680590123Z"),
        ("1.700158546e9", "2023-11-16T18:15:46Z"),
    ] {
        assert_eq!(text_of(text, None, None).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn spreadsheet_dates_and_compact_dates_are_local_times() {
    for (text, expected) in [
        ("46351", "2026-11-25T00:00:00Z"),
        ("46351.5", "2026-11-25T12:00:00Z"),
        ("46351,5", "2026-11-25T12:00:00Z"),
        // 10:15 with the digits that a spreadsheet writes.
        ("46351.4270833333", "2026-11-25T10:15:00Z"),
        ("46351.999999999999", "2026-11-26T00:00:00Z"),
        ("20261125", "2026-11-25T00:00:00Z"),
        ("20261125T101500", "2026-11-25T10:15:00Z"),
        ("20261125 101500", "2026-11-25T10:15:00Z"),
        ("202611251015", "2026-11-25T10:15:00Z"),
        ("20261125101500", "2026-11-25T10:15:00Z"),
        ("20261125101500.5", "2026-11-25T10:15:00.500Z"),
        ("20261125101500123", "2026-11-25T10:15:00.123Z"),
    ] {
        assert_eq!(text_of(text, None, None).as_deref(), Ok(expected), "{text}");
        assert_ne!(text_of(text, Some("Asia/Tokyo"), None).as_deref(), Ok(expected), "{text}");
    }
    assert!(read_time("46351.5", &[]).unwrap().is_serial);
    assert!(!read_time("20261125", &[]).unwrap().is_serial);
}

#[test]
fn the_error_of_an_implausible_number_shows_it_as_unix_seconds() {
    for text in [
        "0",
        "5",
        "46",
        "999",
        "12345",
        "99999",
        "463515",
        "20261345",
        "99991231",
        "123456789",
        "4102444800",
        "20269999999999",
    ] {
        let error = text_of(text, None, None).unwrap_err();
        assert!(error.contains("not a plausible time"), "{text}: {error}");
    }
    for text in ["1.70016E+12", "1.70016E+09", "2.02611E+13"] {
        let error = text_of(text, None, None).unwrap_err();
        assert!(error.contains("a spreadsheet has shortened"), "{text}: {error}");
    }
    let error = text_of("99999", None, None).unwrap_err();
    assert!(error.contains("as Unix seconds it would be 1970-01-02T03:46:39Z"), "{error}");
    let error = text_of("2026112510", None, None).unwrap_err();
    assert!(error.contains("the hour 2026-11-25T10 or Unix seconds"), "{error}");
}

#[test]
fn the_error_of_a_date_with_day_or_month_first_suggests_formats() {
    for (text, format) in [
        ("20.11.2026", "\"%d.%m.%Y\""),
        ("20.11.2026 10:15", "\"%d.%m.%Y %H:%M\""),
        ("11/20/2026 10:15:00 AM", "\"%m/%d/%Y %I:%M:%S %p\""),
        ("11/20/26", "\"%d/%m/%y\""),
        ("20-11-2026", "\"%d-%m-%Y\""),
        ("2026.11.20 10:15", "\"%Y.%m.%d %H:%M\""),
        ("0000-00-00 00:00:00", "its day or time of day is incomplete or does not exist"),
    ] {
        let error = text_of(text, None, None).unwrap_err();
        assert!(error.contains(format), "{text}: {error}");
    }
}

#[test]
fn local_times_are_in_the_zone_of_the_rules() {
    let berlin = Some("Europe/Berlin");
    assert_eq!(text_of("2023-11-16 19:15:46", berlin, None).unwrap(), "2023-11-16T18:15:46Z");
    assert_eq!(text_of("2023-11-16 18:15:46Z", berlin, None).unwrap(), "2023-11-16T18:15:46Z");
    assert_eq!(text_of("2026-11-01", Some("America/Los_Angeles"), None).unwrap(), "2026-11-01T07:00:00Z");
}

#[test]
fn a_day_begins_with_its_first_moment() {
    // Clocks went forward from midnight to one.
    assert_eq!(text_of("2018-11-04", Some("America/Sao_Paulo"), None).unwrap(), "2018-11-04T03:00:00Z");
    // Clocks went back from one to midnight.
    assert_eq!(text_of("2025-11-02", Some("America/Havana"), None).unwrap(), "2025-11-02T04:00:00Z");
    let skipped_day = text_of("2011-12-30", Some("Pacific/Apia"), None).unwrap_err();
    assert!(skipped_day.contains("2011-12-30 does not exist in Pacific/Apia"), "{skipped_day}");
}

#[test]
fn hours_that_a_clock_change_skips_or_repeats_are_errors() {
    let berlin = Some("Europe/Berlin");
    let skipped = text_of("2026-03-29 02:30:00", berlin, None).unwrap_err();
    assert!(skipped.contains("does not exist in Europe/Berlin"), "{skipped}");
    let twice = text_of("2026-10-25 02:30:00", berlin, None).unwrap_err();
    assert!(twice.contains("occurs twice") && twice.contains("2026-10-25T02:30:00+02:00"), "{twice}");
}

#[test]
fn other_forms_need_a_format() {
    let read = |text, format| text_of(text, None, Some(format));
    assert_eq!(read("16/Nov/2023:18:15:46 +0100", "%d/%b/%Y:%H:%M:%S %z").unwrap(), "2023-11-16T17:15:46Z");
    assert_eq!(read("16.11.2023 18:15", "%d.%m.%Y %H:%M").unwrap(), "2023-11-16T18:15:00Z");
    assert_eq!(read("16.11.2023", "%d.%m.%Y").unwrap(), "2023-11-16T00:00:00Z");
    assert_eq!(read("1700158546", "%s").unwrap(), "2023-11-16T18:15:46Z");
    assert_eq!(read("5", "%s").unwrap(), "1970-01-01T00:00:05Z");
    assert!(read("x", "%d.%m.%Y").unwrap_err().contains("--time-format"));
    assert!(check_format("%Y-%Q!").is_err());
    assert!(check_format("%Y").is_ok());
}

#[test]
fn a_text_that_is_not_a_time_is_an_error() {
    for text in [
        "",
        "yesterday",
        "2023-13-01",
        "2023-11-16 25:00:00",
        "12345678901234567890",
        "1e300",
        "1969-12-31",
        "-5",
        "1,234",
    ] {
        assert!(text_of(text, None, None).is_err(), "{text}");
    }
}

proptest::proptest! {
    /// Any text gives a time or an error, and gives the same result again.
    #[test]
    fn any_text_is_parsed_or_is_an_error(text in "\\PC{0,40}|[0-9]{1,20}([.,][0-9]{0,20})?|2026-11-[0-9]{2}[T ][0-9:.,]{0,12} ?[-+A-Za-z0-9:\\[\\]]{0,8}") {
        if let Ok(ParsedTime { value: TimeValue::Exact(time), .. }) = read_time(&text, &[])
            && let Ok(stamp) = timestamp(time)
        {
            let again = time_of(Some(&stamp), SecondsFormat::Nanos).unwrap();
            proptest::prop_assert_eq!(parse_time(&again, &TimeRules::default()), Ok(stamp), "{}", text);
        }
    }
}

#[test]
fn several_formats_are_tried_and_must_agree() {
    let formats = ["%m/%d/%Y", "%d/%m/%Y", "%Y-%m-%dT%H:%M:%S%z"].map(str::to_owned);
    let read = |text: &str| read_time(text, &formats).map(|read| read.value);
    assert_eq!(read("11/20/2026"), Ok(TimeValue::Day("2026-11-20".parse().unwrap())));
    assert_eq!(read("20/11/2026"), Ok(TimeValue::Day("2026-11-20".parse().unwrap())));
    assert!(matches!(read("2026-11-20T10:00:00+0100"), Ok(TimeValue::Exact(_))));
    assert!(read("11/11/2026").is_ok());
    assert!(
        read("05/11/2026")
            .unwrap_err()
            .contains("matches the formats \"%m/%d/%Y\" and \"%d/%m/%Y\" with different times")
    );
    assert!(read("2026-11-20").unwrap_err().contains("does not match any --time-format"));
}
