//! The files of recorded exchanges.

use crate::{diff, json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// The file's name.
    #[serde(skip)]
    pub name: String,
    /// What it is about.
    about: String,
    /// Flags of the server. With `--auth=keys` there is a key with the scope admin for all clients: `<token 1>`.
    #[serde(default)]
    pub server: Vec<String>,
    pub exchanges: Vec<Exchange>,
}

/// A request and its answer; or a step beside the calls: `sql` or `signal`.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exchange {
    /// What it shows, where that needs words.
    #[serde(skip_serializing_if = "String::is_empty")]
    about: String,
    /// Such as "UsageService/TrackUsage". The package is metering.v1 where none is given.
    #[serde(skip_serializing_if = "String::is_empty")]
    method: String,
    /// The token that the call presents, such as "<token 1>".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub caller: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub headers: Map<String, Value>,
    /// A message in protobuf's JSON mapping, or a list of messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
    /// Instead: messages as bytes in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<String>>,
    /// Keeps the call under this name, after `read` messages of its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Goes on with the kept call of this name: reads `read` messages more, or the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// How many messages to read before the call is given up or kept. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<usize>,
    /// Repeats the call until its answer has this text; SQL until it touches or gives a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Members of the answer whose values depend on the time of the run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mask: Vec<String>,
    /// Runs SQL beside the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// Sends the server this signal: "TERM".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Written by the recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Value>,
}

/// In the order of the file.
const MEMBERS: [&str; 14] = [
    "about", "method", "caller", "headers", "request", "bytes", "keep", "on", "read", "until", "mask", "sql", "signal",
    "answer",
];

impl Exchange {
    /// Such as "metering.v1.UsageService/TrackUsage".
    pub fn full_method(&self) -> String {
        let service = self.method.split('/').next().unwrap_or_default();
        if service.contains('.') { self.method.clone() } else { format!("metering.v1.{}", self.method) }
    }

    fn text(&self, answer: Option<&Value>) -> String {
        let mut members = serde_json::to_value(self).unwrap();
        members["answer"] = answer.cloned().unwrap_or_default();
        let present = MEMBERS.into_iter().filter(|name| members.get(name).is_some_and(|value| !value.is_null()));
        let lines: Vec<String> =
            present.map(|name| format!("      \"{name}\": {}", json::pretty(&members[name], 6))).collect();
        format!("    {{\n{}\n    }}", lines.join(",\n"))
    }
}

/// Where the files are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/recorded")
}

impl Topic {
    /// All topics by name.
    pub fn all() -> Vec<Self> {
        let files = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let topic = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { name: path.file_stem().unwrap().to_string_lossy().into(), ..topic }
    }

    /// As the file has it.
    pub fn text(&self) -> String {
        let answers: Vec<_> = self.exchanges.iter().map(|exchange| exchange.answer.clone()).collect();
        self.text_with(&answers)
    }

    fn text_with(&self, answers: &[Option<Value>]) -> String {
        let (about, server) =
            (json::pretty(&self.about.clone().into(), 2), json::pretty(&self.server.clone().into(), 2));
        let exchanges = self.exchanges.iter().zip(answers);
        let exchanges: Vec<String> = exchanges.map(|(exchange, answer)| exchange.text(answer.as_ref())).collect();
        let exchanges = exchanges.join(",\n");
        format!("{{\n  \"about\": {about},\n  \"server\": {server},\n  \"exchanges\": [\n{exchanges}\n  ]\n}}\n")
    }

    /// Writes the file anew, with these answers.
    pub fn write(&self, answers: &[Option<Value>]) {
        let path = directory().join(&self.name).with_extension("json");
        std::fs::write(path, self.text_with(answers)).unwrap();
    }

    /// What differs between the recorded answers and these.
    pub fn differences(&self, answers: &[Option<Value>]) -> String {
        let mut shown = String::new();
        for (number, (exchange, answer)) in self.exchanges.iter().zip(answers).enumerate() {
            let text = |answer: &Option<Value>| answer.as_ref().map_or_else(String::new, |it| json::pretty(it, 0));
            if exchange.answer != *answer {
                let (name, method, about) = (&self.name, &exchange.method, &exchange.about);
                let request = exchange.request.as_ref().map_or_else(String::new, |it| json::pretty(it, 0));
                writeln!(shown, "\n{name}, exchange {}: {method} {about}\n{request}", number + 1).unwrap();
                shown.push_str(&diff::lines(&text(&exchange.answer), &text(answer)));
            }
        }
        shown
    }
}
