//! Bad values of fields with a structure: masks, metadata, targets, secrets, and lists.

use crate::bad_values::Expected::{Invalid, Valid};
use crate::bad_values::*;
use prost_reflect::Value;
use prost_types::value::Kind as Json;
use prost_types::{FieldMask, ListValue, Struct};

pub fn mask_cases(field: &Field<'_>) -> Vec<Case> {
    let mask =
        |paths: &[&str]| well_known(field, &FieldMask { paths: paths.iter().map(|path| path.to_string()).collect() });
    let Value::Message(valid) = field.valid else { panic!("the field is a mask") };
    let first = valid.transcode_to::<FieldMask>().unwrap().paths.remove(0);
    let camel = valid
        .transcode_to::<FieldMask>()
        .unwrap()
        .paths
        .remove(1)
        .replacen("_z", "Z", 1)
        .replacen("_w", "W", 1)
        .replacen("_p", "P", 1);
    let mut cases = vec![
        absent("no mask", Invalid),
        Case::new("empty mask", mask(&[]), Invalid),
        Case::new("mask with a path twice", mask(&[&first, &first]), Valid),
        Case::new("mask with a path of 100,000 bytes", mask(&[&"x".repeat(100_000)]), Invalid),
        Case::new("mask with a path in camel case", mask(&[&camel]), Invalid),
        Case::new("mask with 10,000 wrong paths", mask(&["x"; 10_000]), Invalid),
    ];
    for path in
        ["", "*", "no_such_field", "create_time", "client_id", "client", "time_zone.x", "a.b.c", "a,b", "\0", "A__b"]
    {
        cases.push(Case::new(format!("mask with the path {path:?}"), mask(&[path]), Invalid));
    }
    cases
}

pub fn metadata_cases(field: &Field<'_>) -> Vec<Case> {
    let value = |kind| prost_types::Value { kind };
    let with =
        |key: &str, kind: Json| well_known(field, &Struct { fields: [(key.to_string(), value(Some(kind)))].into() });
    let text = |text: &str| Json::StringValue(text.into());
    let bytes = |bytes: usize| "x".repeat(bytes - r#"{"k":""}"#.len());
    // The object itself is a level, too.
    let deep = |levels: usize| {
        (1..levels)
            .fold(Json::BoolValue(true), |inner, _| Json::ListValue(ListValue { values: vec![value(Some(inner))] }))
    };
    let many = Struct { fields: (0..2_000).map(|key| (key.to_string(), value(None))).collect() };
    vec![
        absent("no metadata", Valid),
        Case::new("empty metadata", well_known(field, &Struct::default()), Valid),
        Case::new("metadata with NaN", with("k", Json::NumberValue(f64::NAN)), Invalid),
        Case::new("metadata with infinity", with("k", Json::NumberValue(f64::INFINITY)), Invalid),
        Case::new("metadata with minus infinity", with("k", Json::NumberValue(f64::NEG_INFINITY)), Invalid),
        Case::new("metadata with U+0000", with("k", text("\0")), Invalid),
        Case::new("metadata with U+0000 in a key", with("\0", text("v")), Invalid),
        Case::new("metadata one byte too long", with("k", text(&bytes(8 * 1024 + 1))), Invalid),
        Case::new("metadata of 200 KB", with("k", text(&bytes(200_000))), Invalid),
        Case::new("metadata of quotes that JSON doubles", with("k", text(&"\"".repeat(5_000))), Invalid),
        Case::new("metadata with 2,000 keys", well_known(field, &many), Invalid),
        Case::new("longest metadata", with("k", text(&bytes(8 * 1024))), Valid),
        Case::new("metadata with an empty key", with("", text("v")), Valid),
        Case::new(
            "metadata with no value",
            well_known(field, &Struct { fields: [("k".into(), value(None))].into() }),
            Valid,
        ),
        Case::new("metadata with -0", with("k", Json::NumberValue(-0.0)), Valid),
        Case::new("metadata with the largest number", with("k", Json::NumberValue(f64::MAX)), Valid),
        Case::new("metadata with the smallest number", with("k", Json::NumberValue(5e-324)), Valid),
        Case::new("metadata with the longest JSON escape", with("\u{1}", text("\u{1f}\u{7f}\u{2028}")), Valid),
        Case::new("deepest metadata", with("k", deep(16)), Valid),
        Case::new("metadata a level too deep", with("k", deep(17)), Invalid),
        Case::new("metadata 30 levels deep", with("k", deep(30)), Invalid),
    ]
}

pub fn target_cases(field: &Field<'_>) -> Vec<Case> {
    let never = [
        "x",
        "hooks.invalid",
        "//hooks.invalid/",
        "http://hooks.invalid/",
        "ftp://hooks.invalid/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///",
        "https://user@hooks.invalid/",
        "https://user:word@hooks.invalid/",
        "https://hooks.invalid/#part",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://017700000001/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest",
        "https://10.1.2.3/",
        "https://0/",
        "https://hooks.invalid:99999/",
        "https://hooks invalid/",
        "https://[::1/",
        "https://hooks.invalid/\0",
        "a@b.c",
    ];
    let mut cases = vec![
        Case::new("empty target", string(""), Invalid),
        Case::new("target one byte too long", string(format!("https://hooks.invalid/{}", "x".repeat(1_003))), Invalid),
        Case::new("longest target", string(format!("https://hooks.invalid/{}", "x".repeat(1_002))), Valid),
    ];
    cases.extend(never.map(|text| Case::new(format!("target {text:?}"), string(text), Invalid)));
    assert!(field.path_text.starts_with("policy.channels[0]."));
    cases
}

pub fn secret_cases(field: &Field<'_>) -> Vec<Case> {
    let of_bytes = |bytes: usize| format!("whsec_{}", "A".repeat(bytes / 3 * 4));
    let list = |secrets: Vec<String>| Value::List(secrets.into_iter().map(Value::String).collect());
    let mut cases = vec![
        Case::new("no secrets", list(vec![]), Valid),
        Case::new("most secrets", list(vec![of_bytes(24), of_bytes(27), of_bytes(63)]), Valid),
        Case::new("one secret too many", list(vec![of_bytes(24); 4]), Invalid),
        Case::new("10,000 secrets", list(vec![of_bytes(24); 10_000]), Invalid),
    ];
    let never =
        ["", "whsec_", "secret", "whsec_!!!", &"A".repeat(32), &of_bytes(21), &of_bytes(66), "WHSEC_AAAA", "whsec_\0"];
    for secret in never {
        let case = Case::new(format!("secret {secret:?}"), list(vec![secret.into()]), Invalid);
        cases.push(case.with_fields([format!("{}[0]", field.path_text)]));
    }
    cases
}

/// Returns the cases of a list of texts: different lengths of the list, and each text.
pub fn texts_cases(field: &Field<'_>, each: Vec<Case>) -> Vec<Case> {
    let list = |texts: Vec<String>| Value::List(texts.into_iter().map(Value::String).collect());
    let mut cases = vec![
        Case::new("text twice in a list", list(vec!["acme".into(); 2]), Valid),
        Case::new("most texts in a list", list((0..100).map(|number| number.to_string()).collect()), Valid),
        Case::new("one text too many in a list", list(vec!["x".into(); 101]), Invalid),
        Case::new("100,000 texts in a list", list(vec!["x".into(); 100_000]), Invalid),
    ];
    for mut case in each {
        case.value = Some(Value::List(vec![string("acme"), case.value.unwrap()]));
        case.kind = format!("{} in a list", case.kind);
        cases.push(case.with_fields([format!("{}[1]", field.path_text)]));
    }
    cases
}

pub fn enums_cases(field: &Field<'_>, last: i32, once: bool) -> Vec<Case> {
    let list = |numbers: Vec<i32>| Value::List(numbers.into_iter().map(Value::EnumNumber).collect());
    let mut cases: Vec<_> = enum_cases(Invalid, last)
        .into_iter()
        .map(|mut case| {
            case.value = Some(Value::List(vec![Value::EnumNumber(1), case.value.unwrap()]));
            case.kind = format!("{} in a list", case.kind);
            case.with_fields([format!("{}[1]", field.path_text)])
        })
        .collect();
    if once {
        let twice = Case::new("enum twice in a list", list(vec![1, 1]), Invalid);
        cases.push(twice.with_fields([format!("{}[1]", field.path_text)]));
    } else {
        cases.push(Case::new("enum twice in a list", list(vec![1, 1]), Valid));
        cases.push(Case::new("one enum too many in a list", list(vec![1; 101]), Invalid));
    }
    cases.push(Case::new("no enum in a list", list(vec![]), Valid));
    cases
}

pub fn copies(field: &Field<'_>, count: usize) -> Value {
    let Value::List(valid) = field.valid else { panic!("{} is not a list", field.path_text) };
    Value::List(vec![valid[0].clone(); count])
}

/// Returns the cases of a list of messages with different lengths.
pub fn messages_cases(field: &Field<'_>, least: usize, most: usize) -> Vec<Case> {
    let expected = if least == 0 { Valid } else { Invalid };
    vec![
        Case::new("no message in a list", copies(field, 0), expected),
        Case::new("one message too many in a list", copies(field, most + 1), Invalid),
    ]
}

pub fn grants_cases(field: &Field<'_>) -> Vec<Case> {
    let scopes = |numbers: std::ops::Range<usize>| numbers.map(|number| format!("{}[{number}].scope", field.path_text));
    let path = || field.path_text.to_string();
    vec![
        Case::new("no message in a list", copies(field, 0), Invalid),
        Case::new("message twice in a list", copies(field, 2), Invalid).with_fields(scopes(1..2)),
        Case::new("one message too many in a list", copies(field, 4), Invalid)
            .with_fields(std::iter::once(path()).chain(scopes(1..3))),
    ]
}

pub fn channels_cases(field: &Field<'_>) -> Vec<Case> {
    let targets =
        |numbers: std::ops::Range<usize>| numbers.map(|number| format!("{}[{number}].target", field.path_text));
    let path = || field.path_text.to_string();
    vec![
        Case::new("no message in a list", copies(field, 0), Valid),
        Case::new("message twice in a list", copies(field, 2), Invalid).with_fields(targets(1..2)),
        Case::new("one message too many in a list", copies(field, 21), Invalid)
            .with_fields(std::iter::once(path()).chain(targets(1..20))),
    ]
}

pub fn valid_mask_cases(field: &Field<'_>) -> Vec<Case> {
    let mask = FieldMask { paths: vec!["no such field".into(), "A__b".into()] };
    vec![Case::new("mask that JSON has no form for", well_known(field, &mask), Valid)]
}
