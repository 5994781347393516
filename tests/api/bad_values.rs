//! Bad values for each rule of a field, with the expected result. Some values only look bad; they must be accepted.

use crate::bad_composites::*;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};
use prost_types::Timestamp;

/// The expected result of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The value is accepted.
    Valid,
    /// INVALID_FIELD with this field.
    Invalid,
    /// INVALID_FIELD with another field of the same message, which has this name.
    InvalidSibling(&'static str),
    /// INVALID_ARGUMENT with this reason and this field.
    InvalidReason(&'static str),
    /// An error with this reason and no field.
    Refused(&'static str),
}

use Expected::{Invalid, InvalidReason, InvalidSibling, Refused, Valid};

/// The rule for the values of a field.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Any value is accepted, because the field is output only.
    OutputOnly,
    /// No value is accepted, because the request has the field for all messages of a list.
    Absent,
    /// A text. Has the expected results of an empty and of an unknown text.
    Text {
        bytes_max: usize,
        empty: Expected,
        other: Expected,
    },
    /// A name that identifies something. Texts that look like another text are rejected.
    Name {
        bytes_max: usize,
        empty: Expected,
    },
    /// The name of a service in the catalogue.
    ServiceName,
    /// Any number is accepted, because the request does not use the field.
    AnyEnum,
    /// At most 100 names of services in the catalogue.
    ServiceNames,
    /// At most 20 percents from 1 to 1,000.
    Percents,
    /// At most 100 texts with at most 128 bytes each.
    Texts {
        empty: Expected,
    },
    /// At most 100 names with at most 128 bytes each.
    Names {
        empty: Expected,
    },
    Decimal {
        integer_digits: usize,
        decimals: usize,
        zero: Expected,
        empty: Expected,
    },
    /// A quantity of an event: below 10^15, rounded to 12 decimals.
    Quantity,
    /// Quantities of an event, or rates of a price, by the name of a measure.
    Measures {
        most: usize,
    },
    /// What a rate with tiers is for.
    Component,
    /// A decimal of at least 1.
    PackageSize,
    /// A decimal that is 0.
    FirstTier,
    /// At most eight labels.
    Labels,
    /// At most eight different names of labels.
    LabelNames,
    /// The name of a client, which must exist if it is not empty.
    ClientName,
    /// A whole number from 0 to 10^12.
    Tokens,
    Count {
        from: i64,
        to: i64,
    },
    /// A page token or a resume token.
    Token {
        reason: &'static str,
    },
    /// A time. Has the expected results of the first second of 1970 and the last second of 9999.
    Time {
        first: Expected,
        last: Expected,
    },
    /// A duration of 0 to 90 days.
    Duration,
    Day {
        empty: Expected,
    },
    Month,
    /// A month that must be set.
    RequiredMonth,
    /// The id of an event. Its key is absent in the valid request.
    EventId,
    /// The key of an event, which must not be set together with its id.
    EventKey,
    Zone {
        empty: Expected,
    },
    Enum {
        unspecified: Expected,
        last: i32,
    },
    /// At most 100 numbers of an enum.
    Enums {
        last: i32,
        once: bool,
    },
    Mask,
    Metadata,
    /// The target of a webhook.
    Target,
    Secrets,
    Messages {
        most: usize,
        least: usize,
    },
    Grants,
    Channels,
    /// A boolean that must not be true if the other field is set.
    Flag {
        with: Option<&'static str>,
    },
    /// A boolean that must not be true, because other fields of the valid request are set.
    ExcludedFlag,
    AllClients,
}

/// A value of a field and the expected result.
pub struct Case {
    pub kind: String,
    /// `None`: the field is not set.
    pub value: Option<Value>,
    /// Another field of the message that is set to this value.
    pub sibling: Option<(&'static str, Value)>,
    pub expected: Expected,
    /// The fields in the error, if it is not only the field itself.
    pub fields: Option<Vec<String>>,
}

impl Case {
    pub fn new(kind: impl Into<String>, value: Value, expected: Expected) -> Self {
        Self { kind: kind.into(), value: Some(value), sibling: None, expected, fields: None }
    }

    pub fn with_fields(mut self, fields: impl IntoIterator<Item = String>) -> Self {
        self.fields = Some(fields.into_iter().collect());
        self
    }
}

/// What the cases of a field are built from.
pub struct Field<'a> {
    pub descriptor: &'a FieldDescriptor,
    /// The name of the field in errors, such as "event.units".
    pub path_text: &'a str,
    /// The value in the valid request.
    pub valid: &'a Value,
    /// Valid tokens that cases modify: one of this request, and one of another RPC.
    pub tokens: &'a [String; 2],
    /// Text that makes values unique.
    pub unique: &'a str,
}

pub fn string(text: impl Into<String>) -> Value {
    Value::String(text.into())
}

/// Returns texts that no field accepts.
fn invalid_texts() -> Vec<(&'static str, String)> {
    vec![
        ("text with U+0000", "a\0b".into()),
        ("text of U+0000", "\0".into()),
        ("text with a line feed", "a\nb".into()),
        ("text with a tab at its end", "a\t".into()),
        ("text with an escape", "\u{1b}[31m".into()),
        ("text with DEL", "a\u{7f}".into()),
        ("text with U+0085", "a\u{85}b".into()),
    ]
}

/// Returns unusual texts that are valid if they are short enough. All are different.
fn unusual_texts(unique: &str, bytes_max: usize) -> Vec<(&'static str, String)> {
    let wide = unique.bytes().rev().map(|byte| char::from_u32(0x1f000 + u32::from(byte)).unwrap());
    let widest = wide.chain(std::iter::repeat('🜁')).take(bytes_max / 4).collect();
    let mut longest = unique.to_string();
    longest += &"x".repeat(bytes_max - unique.len());
    let with = |text: &str| format!("{text}{unique}");
    vec![
        ("text of one combining mark", with("\u{301}")),
        ("text with spaces inside", with("a  b")),
        ("text with no character of Unicode", with("\u{ffff}")),
        ("text like SQL", with("'; DROP TABLE clients; --")),
        ("text like a format", with("%s%n{}$1")),
        ("text like a path", with("../../etc/passwd")),
        ("longest text", longest),
        ("longest text of four-byte characters", widest),
    ]
}

/// Returns texts that look like another text. Names must not contain them.
fn deceptive_texts(unique: &str) -> Vec<(&'static str, String)> {
    let with = |text: &str| format!("{text}{unique}");
    vec![
        ("text that is turned around", with("\u{202e}abc")),
        ("text with spaces around", format!(" {unique} ")),
        ("text with a space before it", format!(" {unique}")),
        ("text with a space behind it", format!("{unique} ")),
        ("text with a no-break space", with("a\u{a0}b")),
        ("text with a zero-width joiner", with("👩\u{200d}🚀")),
        ("text with a zero-width space", with("a\u{200b}")),
        ("text with a byte order mark", with("\u{feff}")),
        ("text with a tag", with("a\u{e0041}")),
    ]
}

/// Returns the cases of a name.
fn name_cases(bytes_max: usize, empty: Expected, other: Expected, unique: &str) -> Vec<Case> {
    let mut cases = text_cases(bytes_max, empty, other, unique);
    for case in &mut cases {
        if deceptive_texts(unique).iter().any(|(kind, _)| *kind == case.kind) {
            case.expected = Invalid;
        }
    }
    cases
}

pub fn text_cases(bytes_max: usize, empty: Expected, other: Expected, unique: &str) -> Vec<Case> {
    let mut cases = vec![
        Case::new("empty text", string(""), empty),
        Case::new("text one byte too long", string("x".repeat(bytes_max + 1)), Invalid),
        Case::new("text too long by its last character", string("é".repeat(bytes_max / 2) + "é"), Invalid),
        Case::new("text of 100,000 bytes", string("x".repeat(100_000)), Invalid),
    ];
    cases.extend(invalid_texts().into_iter().map(|(kind, text)| Case::new(kind, string(text), Invalid)));
    let odd = unusual_texts(unique, bytes_max).into_iter().chain(deceptive_texts(unique));
    cases.extend(odd.map(|(kind, text)| Case::new(kind, string(text), other)));
    cases
}

fn decimal_cases(integer_digits: usize, decimals: usize, zero: Expected, empty: Expected) -> Vec<Case> {
    let mut cases = vec![
        Case::new("empty decimal", string(""), empty),
        Case::new("decimal 0", string("0"), zero),
        Case::new("decimal -0", string("-0"), zero),
        Case::new("decimal with zeros around", string("007.500"), Valid),
        Case::new("largest decimal", string(format!("{}.{}", "9".repeat(integer_digits), "9".repeat(decimals))), Valid),
        Case::new("decimal one digit too large", string(format!("1{}", "0".repeat(integer_digits))), Invalid),
        Case::new("one decimal too many", string(format!("0.{}1", "0".repeat(decimals))), Invalid),
        Case::new("decimal just below zero", string(format!("-0.{}1", "0".repeat(decimals - 1))), Invalid),
        Case::new("decimal of 1,000 digits", string("1".repeat(1_000)), Invalid),
        Case::new("decimal behind 1,000 zeros", string("0".repeat(1_000) + "1"), Invalid),
        Case::new("decimal and 100,000 letters", string("x".repeat(100_000)), Invalid),
    ];
    let never = [
        "NaN", "nan", "inf", "Infinity", "-inf", "1e5", "1E-5", "1e400", "0x10", "+1", "-1", "--1", "1-", " 1", "1 ",
        "1,5", "1.", ".5", ".", "-", "1.2.3", "1_000", "1 000", "١", "１", "½", "1\0", "\u{0}1", "1\n", "$1", "1%",
        "one", "0b1", "1f",
    ];
    cases.extend(never.map(|text| Case::new(format!("decimal {text:?}"), string(text), Invalid)));
    cases
}

fn quantity_cases() -> Vec<Case> {
    let mut cases = decimal_cases(15, 12, Valid, Valid);
    cases.retain(|case| case.kind != "one decimal too many");
    let largest = "9".repeat(15);
    cases.extend([
        Case::new("decimal of a double", string("0.30000000000000004"), Valid),
        Case::new("decimal that rounds to zero", string("0.0000000000001"), Valid),
        Case::new("longest decimal", string(format!("1.{}", "3".repeat(98))), Valid),
        Case::new("decimal one character too long", string(format!("1.{}", "3".repeat(99))), Invalid),
        Case::new("decimal that rounds up to too large", string(format!("{largest}.9999999999995")), Invalid),
        Case::new("decimal a digit below zero", string("-0.0000000000001"), Invalid),
    ]);
    cases
}

/// Returns the cases of a map of measures: the numbers of one of them, and names.
fn measures_cases(field: &Field<'_>, most: usize, numbers: Vec<Case>) -> Vec<Case> {
    let map = |names: Vec<String>, text: &str| {
        Value::Map(names.into_iter().map(|name| (MapKey::String(name), string(text))).collect())
    };
    let mut cases = vec![];
    for case in numbers {
        let Some(Value::String(text)) = &case.value else { panic!("{} is no text", case.kind) };
        let expected = if text.is_empty() { Invalid } else { case.expected };
        let with_map = Case::new(format!("measure of {}", case.kind), map(vec!["pages".into()], text), expected);
        cases.push(with_map.with_fields([format!("{}[\"pages\"]", field.path_text)]));
    }
    for name in ["", "Pages", "pages ", "2pages", "p\0", "p\u{e4}ges", "units", "input_tokens", "other_tokens"] {
        cases.push(Case::new(format!("measure {name:?}"), map(vec![name.into()], "1"), Invalid));
    }
    cases.push(Case::new("measure with a name too long", map(vec!["m".repeat(65)], "1"), Invalid));
    cases.push(Case::new("longest name of a measure", map(vec!["m".repeat(64)], "1"), Valid));
    let many = |count: usize| map((0..count).map(|number| format!("m{number}")).collect(), "1");
    cases.push(Case::new("most measures", many(most), Valid));
    cases.push(Case::new("one measure too many", many(most + 1), Invalid));
    cases
}

fn labels_cases(field: &Field<'_>) -> Vec<Case> {
    let map = |labels: Vec<(String, String)>| {
        Value::Map(labels.into_iter().map(|(name, value)| (MapKey::String(name), string(value))).collect())
    };
    let one = |name: &str, value: &str| map(vec![(name.into(), value.into())]);
    let many = |count: usize| map((0..count).map(|number| (format!("l{number}"), "x".into())).collect());
    let mut cases = vec![
        Case::new("most labels", many(8), Valid),
        Case::new("one label too many", many(9), Invalid),
        Case::new("longest label", one(&"n".repeat(32), &"v".repeat(128)), Valid),
        Case::new("label with a name too long", one(&"n".repeat(33), "v"), Invalid),
    ];
    for name in ["", "n ", " n", "n\0", "n\u{200b}"] {
        cases.push(Case::new(format!("label {name:?}"), one(name, "v"), Invalid));
    }
    for value in ["", "v ", " v", "v\0", "v\u{200b}", &"v".repeat(129)] {
        let case = Case::new(format!("label with the value {value:?}"), one("n", value), Invalid);
        cases.push(case.with_fields([format!("{}[\"n\"]", field.path_text)]));
    }
    cases
}

fn label_names_cases(field: &Field<'_>) -> Vec<Case> {
    let list = |names: &[&str]| Value::List(names.iter().copied().map(string).collect());
    let many: Vec<String> = (0..9).map(|number| format!("l{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut cases = vec![
        Case::new("no name", list(&[]), Valid),
        Case::new("most names", list(&many[..8]), Valid),
        Case::new("one name too many", list(&many), Invalid),
    ];
    for name in ["", "n ", "n\0", "l0", &"n".repeat(33)] {
        let case = Case::new(format!("second name {name:?}"), list(&["l0", name]), Invalid);
        cases.push(case.with_fields([format!("{}[1]", field.path_text)]));
    }
    cases
}

fn day_cases(empty: Expected) -> Vec<Case> {
    let never = [
        "2026-2-01",
        "2026-02-30",
        "2026-02-29",
        "2026-13-01",
        "2026-00-01",
        "2026-01-00",
        "20261101",
        "2026/11/01",
        "01-11-2026",
        "2026-11-01T00:00:00Z",
        "+2026-11-1",
        "-001-11-01",
        "0000-01-01",
        "10000-01-01",
        "２０２６-11-01",
        " 2026-11-01",
        "2026-11-01 ",
        "2026-11-01\0",
        "2026-11",
        "today",
        "2026-11-0１",
        "99999999999999999999-01-01",
    ];
    let never = never.map(|text| Case::new(format!("day {text:?}"), string(text), Invalid));
    never.into_iter().chain([Case::new("day \"\"", string(""), empty)]).collect()
}

fn month_cases() -> Vec<Case> {
    let never = [
        "2026",
        "2026-00",
        "2026-13",
        "2026-1",
        "2026-11-01",
        "202611",
        "2026/11",
        "0000-01",
        "10000-01",
        "+026-11",
        " 2026-11",
        "2026-11 ",
        "2026-11\0",
        "２０２６-11",
        "november",
        "2026-11-",
        "-2026-11",
    ];
    let mut cases = vec![
        Case::new("empty month", string(""), Valid),
        Case::new("first month", string("0001-01"), Valid),
        Case::new("last month", string("9999-12"), Valid),
    ];
    cases.extend(never.map(|text| Case::new(format!("month {text:?}"), string(text), Invalid)));
    cases
}

fn zone_cases(empty: Expected) -> Vec<Case> {
    let never = [
        "Mars/Olympus",
        "+02:00",
        "UTC+2",
        "europe/berlin",
        "Europe/Berlin ",
        " UTC",
        "Europe/Berlin\0",
        "Europe\\Berlin",
        "../etc/localtime",
        "Europe/Berlin/",
        "Europe",
        "CET-1CEST",
        "\u{202e}UTC",
    ];
    let mut cases = vec![
        Case::new("empty zone", string(""), empty),
        Case::new("zone of 100,000 bytes", string("Z".repeat(100_000)), Invalid),
    ];
    cases.extend(never.map(|text| Case::new(format!("zone {text:?}"), string(text), Invalid)));
    cases
}

pub fn number(field: &Field<'_>, number: i64) -> Value {
    match field.descriptor.kind() {
        Kind::Int32 => Value::I32(number as i32),
        _ => Value::I64(number),
    }
}

/// Cases of a list of services: each bad name after a good one.
fn service_names_cases(field: &Field<'_>) -> Vec<Case> {
    let list = |texts: Vec<&str>| Value::List(texts.into_iter().map(string).collect());
    let mut cases = vec![
        Case::new("service twice in a list", list(vec!["sms"; 2]), Valid),
        Case::new("one service too many in a list", list(vec!["sms"; 101]), Invalid),
        Case::new("no service in a list", list(vec![]), Valid),
    ];
    for mut case in name_cases(128, Invalid, InvalidReason("UNKNOWN_SERVICE"), field.unique) {
        case.value = Some(Value::List(vec![string("sms"), case.value.unwrap()]));
        case.kind = format!("{} in a list of services", case.kind);
        cases.push(case.with_fields([format!("{}[1]", field.path_text)]));
    }
    cases
}

fn percents_cases(field: &Field<'_>) -> Vec<Case> {
    let list = |numbers: Vec<i32>| Value::List(numbers.into_iter().map(Value::I32).collect());
    let mut cases = vec![
        Case::new("no percent", list(vec![]), Valid),
        Case::new("percents twice and not sorted", list(vec![1_000, 1, 1_000]), Valid),
        Case::new("most percents", list((1..=20).collect()), Valid),
        Case::new("one percent too many", list(vec![1; 21]), Invalid),
    ];
    for wrong in [0, -1, 1_001, 65_537, i32::MIN, i32::MAX] {
        let case = Case::new(format!("percent {wrong}"), list(vec![80, wrong]), Invalid);
        cases.push(case.with_fields([format!("{}[1]", field.path_text)]));
    }
    cases
}

fn count_cases(field: &Field<'_>, from: i64, to: i64) -> Vec<Case> {
    let (least, most) = match field.descriptor.kind() {
        Kind::Int32 => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    };
    let case = |kind: &str, value, expected| Case::new(kind, number(field, value), expected);
    vec![
        case("least count", from, Valid),
        case("most count", to, Valid),
        case("count one too low", from - 1, Invalid),
        case("count one too high", to + 1, Invalid),
        case("lowest number", least, Invalid),
        case("highest number", most, Invalid),
    ]
}

pub fn enum_cases(unspecified: Expected, last: i32) -> Vec<Case> {
    let case = |kind: &str, number, expected| Case::new(kind, Value::EnumNumber(number), expected);
    vec![
        case("unspecified enum", 0, unspecified),
        case("enum one too high", last + 1, Invalid),
        case("enum -1", -1, Invalid),
        case("enum that is good in 8 bits", 256 + 1, Invalid),
        case("enum that is good in 16 bits", 65_536 + 1, Invalid),
        case("lowest enum", i32::MIN, Invalid),
        case("highest enum", i32::MAX, Invalid),
    ]
}

/// Wraps a message of a well-known type.
pub fn well_known(field: &Field<'_>, message: &impl prost::Message) -> Value {
    let Kind::Message(descriptor) = field.descriptor.kind() else { panic!("{} is not a message", field.path_text) };
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).unwrap();
    Value::Message(dynamic)
}

pub fn absent(kind: &str, expected: Expected) -> Case {
    Case { kind: kind.into(), value: None, sibling: None, expected, fields: None }
}

fn time_cases(field: &Field<'_>, first: Expected, last: Expected, wrong: Expected) -> Vec<Case> {
    let case = |kind: &str, seconds, nanos, expected| {
        Case::new(kind, well_known(field, &Timestamp { seconds, nanos }), expected)
    };
    let now = 1_795_262_400;
    vec![
        absent("no time", Valid),
        case("first second of 1970", 0, 0, first),
        case("last nanosecond of 9999", 253_402_300_799, 999_999_999, last),
        case("time before 1970", -1, 0, wrong),
        case("year 10000", 253_402_300_800, 0, wrong),
        case("earliest time", i64::MIN, i32::MIN, wrong),
        case("latest time", i64::MAX, i32::MAX, wrong),
        case("time in milliseconds", now * 1_000, 0, wrong),
        case("nanos -1", now, -1, wrong),
        case("nanos of a second", now, 1_000_000_000, wrong),
        case("highest nanos", now, i32::MAX, wrong),
        case("lowest nanos", now, i32::MIN, wrong),
    ]
}

fn duration_cases(field: &Field<'_>) -> Vec<Case> {
    let case = |kind: &str, seconds, nanos, expected| {
        Case::new(kind, well_known(field, &prost_types::Duration { seconds, nanos }), expected)
    };
    let most = 90 * 24 * 60 * 60;
    vec![
        absent("no duration", Valid),
        case("duration 0", 0, 0, Valid),
        case("longest duration", most, 0, Valid),
        case("duration a nanosecond too long", most, 1, Invalid),
        case("duration below 0", -1, 0, Invalid),
        case("duration of less than 0 nanos", 0, -1, Invalid),
        case("duration of two signs", 1, -1, Invalid),
        case("duration with a second of nanos", 1, 1_000_000_000, Invalid),
        case("longest duration of the type", i64::MAX, i32::MAX, Invalid),
        case("shortest duration of the type", i64::MIN, i32::MIN, Invalid),
    ]
}

fn token_cases(field: &Field<'_>, reason: &'static str) -> Vec<Case> {
    let [own, foreign] = field.tokens;
    assert!(!own.is_empty() && !foreign.is_empty(), "{} needs tokens to modify", field.path_text);
    let changed = |at: usize| {
        let mut bytes = own.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    let never = [
        ("token x", "x".to_string()),
        ("token that is no base64", "!!!".into()),
        ("token of U+0000", "\0".into()),
        ("token of another RPC", foreign.clone()),
        ("token cut at its begin", own[1..].into()),
        ("token cut at its end", own[..own.len() - 4].into()),
        ("token cut to its signature", own[..22].into()),
        ("token with another signature", changed(3)),
        ("token with another cursor", changed(22)),
        ("token twice", own.repeat(2)),
        ("token padded", format!("{own}==")),
        ("token and a space", format!("{own} ")),
        ("token of 100,000 bytes", "A".repeat(100_000)),
        ("token of 16 zero bytes", "A".repeat(22)),
    ];
    never.map(|(kind, text)| Case::new(kind, string(text), InvalidReason(reason))).into()
}

/// Returns all cases of a field with this rule.
pub fn cases(rule: Rule, field: &Field<'_>) -> Vec<Case> {
    let parent = || field.path_text.rsplit_once('.').map_or("", |(parent, _)| parent).to_string();
    match rule {
        Rule::OutputOnly => match field.descriptor.kind() {
            Kind::String => {
                invalid_texts().into_iter().map(|(kind, text)| Case::new(kind, string(text), Valid)).collect()
            }
            Kind::Int32 => vec![Case::new("lowest number", Value::I32(i32::MIN), Valid)],
            Kind::Bool => vec![Case::new("true", Value::Bool(true), Valid)],
            Kind::Message(message) if message.name() == "FieldMask" => valid_mask_cases(field),
            _ => time_cases(field, Valid, Valid, Valid),
        },
        Rule::Absent => match field.descriptor.kind() {
            Kind::String => vec![Case::new("text that must be absent", string("x"), Invalid)],
            _ => {
                let time = well_known(field, &Timestamp { seconds: 1_795_262_401, nanos: 0 });
                vec![Case::new("time that must be absent", time, Invalid)]
            }
        },
        Rule::Text { bytes_max, empty, other } => text_cases(bytes_max, empty, other, field.unique),
        Rule::Texts { empty } => texts_cases(field, text_cases(128, empty, Valid, field.unique)),
        Rule::Name { bytes_max, empty } => name_cases(bytes_max, empty, Valid, field.unique),
        Rule::ServiceName => name_cases(128, Invalid, InvalidReason("UNKNOWN_SERVICE"), field.unique),
        Rule::AnyEnum => enum_cases(Valid, 1)
            .into_iter()
            .map(|case| Case { expected: Valid, kind: format!("{} in an unused field", case.kind), ..case })
            .collect(),
        Rule::ServiceNames => service_names_cases(field),
        Rule::Percents => percents_cases(field),
        Rule::Names { empty } => texts_cases(field, name_cases(128, empty, Valid, field.unique)),
        Rule::Decimal { integer_digits, decimals, zero, empty } => decimal_cases(integer_digits, decimals, zero, empty),
        Rule::Quantity => quantity_cases(),
        Rule::Measures { most: 16 } => measures_cases(field, 16, quantity_cases()),
        Rule::Measures { most } => measures_cases(field, most, decimal_cases(9, 24, Valid, Invalid)),
        Rule::Component => ["", "amount", "Pages", "fixed", "input_tokens", "x\0", "pages"]
            .map(|name| Case::new(format!("component {name:?}"), string(name), Invalid))
            .into(),
        Rule::PackageSize => {
            let mut cases = decimal_cases(15, 12, Invalid, Invalid);
            cases.push(Case::new("less than one", string("0.999999999999"), Invalid));
            cases
        }
        Rule::FirstTier => {
            let mut cases = decimal_cases(15, 12, Valid, Valid);
            cases.iter_mut().filter(|case| case.expected == Valid).for_each(|case| {
                let Some(Value::String(text)) = &case.value else { panic!("{} is no text", case.kind) };
                if text.contains(|digit: char| ('1'..='9').contains(&digit)) {
                    case.expected = Invalid;
                }
            });
            cases
        }
        Rule::Labels => labels_cases(field),
        Rule::LabelNames => label_names_cases(field),
        Rule::ClientName => name_cases(128, Valid, Refused("CLIENT_NOT_FOUND"), field.unique),
        Rule::Tokens => count_cases(field, 0, 1_000_000_000_000),
        Rule::Count { from, to } => count_cases(field, from, to),
        Rule::Token { reason } => token_cases(field, reason),
        Rule::Time { first, last } => time_cases(field, first, last, Invalid),
        Rule::Duration => duration_cases(field),
        Rule::Day { empty } => day_cases(empty),
        Rule::Month => month_cases(),
        Rule::RequiredMonth => {
            let mut cases = month_cases();
            cases.retain(|case| case.expected == Invalid);
            cases.push(Case::new("empty month", string(""), Invalid));
            cases
        }
        Rule::EventId => {
            let mut cases = text_cases(128, Invalid, Refused("EVENT_NOT_FOUND"), field.unique);
            let empty = cases.iter_mut().find(|case| case.kind == "empty text").unwrap();
            empty.fields = Some(vec![parent()]);
            cases
        }
        Rule::EventKey => {
            vec![Case::new("two that exclude each other", string("x"), Invalid).with_fields([parent()])]
        }
        Rule::Zone { empty } => zone_cases(empty),
        Rule::Enum { unspecified, last } => enum_cases(unspecified, last),
        Rule::Enums { last, once } => enums_cases(field, last, once),
        Rule::Mask => mask_cases(field),
        Rule::Metadata => metadata_cases(field),
        Rule::Target => target_cases(field),
        Rule::Secrets => secret_cases(field),
        Rule::Messages { most, least } => messages_cases(field, least, most),
        Rule::Grants => grants_cases(field),
        Rule::Channels => channels_cases(field),
        Rule::Flag { with: None } => vec![Case::new("true", Value::Bool(true), Valid)],
        Rule::Flag { with: Some(other) } => {
            let mut case = Case::new("two that exclude each other", Value::Bool(true), Invalid);
            case.sibling = Some((other, string("x")));
            vec![Case::new("true", Value::Bool(true), Valid), case]
        }
        Rule::ExcludedFlag => vec![Case::new("two that exclude each other", Value::Bool(true), Invalid)],
        Rule::AllClients => {
            let case = |kind: &str, all, ids| {
                let mut case = Case::new(kind, Value::Bool(all), Invalid).with_fields([parent()]);
                case.sibling = Some(("client_ids", Value::List(ids)));
                case
            };
            let both = case("two that exclude each other", true, vec![string("acme")]);
            vec![both, case("neither of two", false, vec![])]
        }
    }
}

/// Returns the reason of an expected result, and whether the error names a field.
pub fn reason(expected: Expected) -> (&'static str, bool) {
    match expected {
        Valid => ("", false),
        Invalid | InvalidSibling(_) => ("INVALID_FIELD", true),
        InvalidReason(reason) => (reason, true),
        Refused(reason) => (reason, false),
    }
}
