//! Circles of imports between files of the same crate. A module and its own files may use each other; every other circle is listed
//! here with the reason why it stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SOURCES: [&str; 6] = [
    "src",
    "crates/bench/src",
    "crates/domain/src",
    "crates/embedded-postgres/src",
    "crates/engine/src",
    "crates/store/src",
];

/// Circles that are not within one module and its files: their modules, and why they stay.
const CIRCLES: &[(&[&str], &str)] = &[
    (
        &["cli::connect", "cli::dial", "cli::trust"],
        "one task in three files: an address is dialled, a certificate is checked, and each explains the errors of the others",
    ),
    (
        &["cli::import::batches", "cli::import::checkpoint"],
        "batches continue from a checkpoint, which has the digest of what they were made from",
    ),
    (&["cli::import::clients", "cli::import::send"], "clients are looked up with the sender's connection"),
    (
        &["cli::import::gzip", "cli::import::input"],
        "an input can be compressed, and the compressed bytes come from an input",
    ),
    (
        &["config::effective", "config::file", "config::toml_errors"],
        "settings in effect, settings files and their errors hide secrets in the same way",
    ),
    (
        &[
            "alerts",
            "alerts::crossings",
            "alerts::fan_out",
            "alerts::idle",
            "alerts::report",
            "goals",
            "goals::writes",
            "reads",
            "reads::bulk",
            "reads::report",
            "reads::under_load",
        ],
        "the goals run the measurements of alerts and reads, whose reports show which goals they meet",
    ),
    (&["args", "events", "plan", "postgres"], "the arguments of the bench have types of what they configure"),
    (
        &["binaries", "cluster", "data_dir_check", "download", "error", "layout", "owner", "search_dirs"],
        "the one error of the crate has the details of each step, and each step returns it",
    ),
    (&["launch", "upgrade"], "a launch restarts a server whose programs were upgraded"),
    (
        &[
            "engine",
            "ingest",
            "ingest::batch",
            "ingest::batch::claim",
            "ingest::batch::date",
            "ingest::batch::outcome",
            "ingest::batch::preview",
            "ingest::batch::price",
            "ingest::queue",
            "ingest::queue::fair",
            "ingest::queue::state",
            "ingest::split",
            "ingest::unpriced",
            "ingest::validate",
            "ingest::writer",
        ],
        "the context of the use cases contains the write path, whose checks of events are a use case",
    ),
];

/// The files that each file uses, by the paths of their modules. "" is the root of the crate.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.extend(path.extension().is_some_and(|extension| extension == "rs").then_some(path)),
        }
    }
}

/// The path of a file's module, or nothing for a file of tests.
fn module_of(source: &Path, file: &Path) -> Option<String> {
    let relative = file.strip_prefix(source).unwrap().with_extension("");
    let mut names: Vec<&str> = relative.iter().map(|name| name.to_str().unwrap()).collect();
    if matches!(names.last(), Some(&"mod" | &"lib" | &"main")) {
        names.pop();
    }
    (!names.last().is_some_and(|name| name.ends_with("tests"))).then(|| names.join("::"))
}

/// The text without its tests and comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// The paths at the beginning of a text such as `a::{b, c::d}`, as lists of names.
fn paths(text: &str) -> Vec<Vec<String>> {
    let Some(group) = text.strip_prefix('{') else {
        let end = text.find(|letter| !is_name(letter)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return match rest.strip_prefix("::") {
            Some(rest) if !name.is_empty() => paths(rest)
                .into_iter()
                .map(|mut path| {
                    path.insert(0, name.to_owned());
                    path
                })
                .collect(),
            _ => vec![vec![name.to_owned()]],
        };
    };
    let mut depth = 0;
    let end = group.find(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        depth < 0
    });
    let group = &group[..end.unwrap_or(group.len())];
    let (mut depth, mut items) = (0, vec![String::new()]);
    for letter in group.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        match letter {
            ',' if depth == 0 => items.push(String::new()),
            letter => items.last_mut().unwrap().push(letter),
        }
    }
    items.iter().flat_map(|item| paths(item.trim())).collect()
}

/// The modules that a file uses, some of them below a file's module.
fn uses(text: &str, module: &str) -> BTreeSet<String> {
    let own: Vec<String> = module.split("::").filter(|name| !name.is_empty()).map(String::from).collect();
    let mut found = BTreeSet::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(start) {
            if text[..at].ends_with(|letter| is_name(letter) || letter == ':' || letter == '$') {
                continue;
            }
            for path in paths(&text[at..]) {
                let mut base = if path[0] == "crate" { vec![] } else { own.clone() };
                for name in path {
                    match name.as_str() {
                        "crate" | "self" => {}
                        "super" => drop(base.pop()),
                        _ => base.push(name),
                    }
                }
                found.insert(base.join("::"));
            }
        }
    }
    for child in text.lines().filter_map(|line| line.trim().strip_suffix(';')?.rsplit_once("mod ")) {
        let child = child.1;
        let is_used = text
            .match_indices(&format!("{child}::"))
            .any(|(at, _)| !text[..at].ends_with(|letter| is_name(letter) || letter == ':'));
        found.extend(is_used.then(|| own.iter().map(String::as_str).chain([child]).collect::<Vec<_>>().join("::")));
    }
    found
}

fn graph(source: &Path) -> Graph {
    let mut found = vec![];
    files(source, &mut found);
    let modules: BTreeMap<String, PathBuf> =
        found.into_iter().filter_map(|file| Some((module_of(source, &file)?, file))).collect();
    let resolve = |mut path: String| loop {
        if modules.contains_key(&path) {
            return path;
        }
        path = path.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned());
    };
    let uses_of = |(module, file): (&String, &PathBuf)| {
        let text = code(&std::fs::read_to_string(file).unwrap());
        let used = uses(&text, module).into_iter().map(resolve);
        (module.clone(), used.filter(|used| used != module && !used.is_empty()).collect())
    };
    modules.iter().map(uses_of).collect()
}

fn reachable(graph: &Graph, from: &str) -> BTreeSet<String> {
    let (mut found, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        next.extend(graph[module].iter().filter(|used| found.insert((*used).clone())).map(String::as_str));
    }
    found
}

/// The circles of a crate, each as the modules that reach each other.
fn circles(graph: &Graph) -> BTreeSet<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<String>> =
        graph.keys().map(|module| (module, reachable(graph, module))).collect();
    let circle = |module: &String| {
        let others = reached[module].iter().filter(|other| reached[other].contains(module));
        others.cloned().collect::<Vec<_>>()
    };
    graph.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

/// Whether a circle is within one module and its files.
fn is_of_one_module(circle: &[String]) -> bool {
    circle.iter().any(|top| circle.iter().all(|other| other == top || other.starts_with(&format!("{top}::"))))
}

#[test]
fn each_circle_between_modules_is_listed_with_its_reason() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let found: Vec<Vec<String>> = SOURCES
        .iter()
        .flat_map(|source| circles(&graph(&root.join(source))))
        .filter(|c| !is_of_one_module(c))
        .collect();
    let listed: Vec<&[&str]> = CIRCLES.iter().map(|(files, _)| *files).collect();
    assert_eq!(found, listed, "a circle is new, or one of the list is gone");
}

#[test]
fn circles_are_found_by_every_way_to_name_a_module() {
    assert_eq!(
        paths("crate::a::{b, c::{d, e}, self}; f"),
        [
            vec!["crate", "a", "b"],
            vec!["crate", "a", "c", "d"],
            vec!["crate", "a", "c", "e"],
            vec!["crate", "a", "self"]
        ]
    );
    assert_eq!(
        uses("use super::b::C;\nmod d;\nuse d::E;", "x::a"),
        BTreeSet::from(["x::b::C".into(), "x::a::d".into()])
    );
    let edges = [("a", "b"), ("b", "c::d"), ("c::d", "a"), ("e", "a")];
    let mut graph: Graph = ["a", "b", "c::d", "e"].map(|name| (name.to_string(), BTreeSet::new())).into();
    edges.iter().for_each(|(from, to)| {
        graph.get_mut(*from).unwrap().insert(to.to_string());
    });
    let found = circles(&graph);
    assert_eq!(found, BTreeSet::from([["a", "b", "c::d"].map(String::from).to_vec()]));
    assert!(!is_of_one_module(found.first().unwrap()) && is_of_one_module(&["a".into(), "a::b".into()]));
}
