//! JSON as people read it: on one line, where that is short enough.

use serde_json::{Map, Value};

const LINE_CHARS_MAX: usize = 130;

/// The members of an object in the order of their names, whatever order it keeps them in.
pub fn sorted(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = object.iter().collect();
    members.sort_by_key(|(name, _)| name.as_str());
    members
}

/// A value that begins at this indent.
pub fn pretty(value: &Value, indent: usize) -> String {
    let line = compact(value);
    if indent + line.chars().count() <= LINE_CHARS_MAX {
        return line;
    }
    let (open, inner, close) = match value {
        Value::Object(object) => {
            let member = |(name, value)| format!("{}: {}", Value::from(name), pretty(value, indent + 2));
            ("{", sorted(object).into_iter().map(|(name, value)| member((name.as_str(), value))).collect(), "}")
        }
        Value::Array(list) => ("[", list.iter().map(|value| pretty(value, indent + 2)).collect::<Vec<_>>(), "]"),
        _ => return line,
    };
    let margin = " ".repeat(indent);
    format!("{open}\n{margin}  {}\n{margin}{close}", inner.join(&format!(",\n{margin}  ")))
}

fn compact(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let members = sorted(object).into_iter();
            let members = members.map(|(name, value)| format!("{}: {}", Value::from(name.as_str()), compact(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(compact).collect::<Vec<_>>().join(", ")),
        scalar => scalar.to_string(),
    }
}
