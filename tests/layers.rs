//! Checks which crates use which. Cargo enforces the manifests, and these tests check the manifests. They read the
//! manifests and Cargo.lock of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// For each crate below the server: its directory, the crates of the workspace that it may use, and the crates that it
/// must not use directly or indirectly.
const LAYERS: [(&str, &[&str], &[&str]); 5] = [
    ("crates/domain", &[], &["sqlx", "sqlx-core", "tokio", "tonic", "prost", "clap"]),
    ("crates/store", &["meterd-domain"], &["tonic", "prost", "clap"]),
    ("crates/engine", &["meterd-domain", "meterd-store"], &["tonic", "prost", "clap", "axum"]),
    ("crates/embedded-postgres", &[], &["tonic", "prost", "clap"]),
    ("crates/bench", &["meterd", "meterd-domain", "meterd-embedded-postgres", "meterd-engine", "meterd-store"], &[]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Table {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn tables<'a>(table: &'a Table, keys: &'static [&str]) -> impl Iterator<Item = &'a Table> {
    keys.iter().filter_map(|key| table.get(*key)).filter_map(Value::as_table)
}

/// Returns the packages that a crate uses on any platform and in its build script, but not those that only its tests
/// use.
fn used_directly(directory: &str) -> BTreeSet<String> {
    const KINDS: &[&str] = &["dependencies", "build-dependencies"];
    let manifest = read(&root().join(directory).join("Cargo.toml"));
    let of_platforms = tables(&manifest, &["target"]).flat_map(Table::values).filter_map(Value::as_table);
    let package = |(name, value): (&String, &Value)| match value.get("package").and_then(Value::as_str) {
        Some(package) => package.to_owned(),
        None => name.clone(),
    };
    of_platforms.chain([&manifest]).flat_map(|table| tables(table, KINDS)).flatten().map(package).collect()
}

/// Returns the dependencies of each package in Cargo.lock, with all features on all platforms.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let lock = read(&root().join("Cargo.lock"));
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock["package"].as_array().expect("packages") {
        let needed = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // A name, or a name and a version.
        let names = needed.filter_map(|name| name.as_str()?.split(' ').next()).map(str::to_owned);
        needs.entry(package["name"].as_str().expect("a package has a name").to_owned()).or_default().extend(names);
    }
    needs
}

/// Returns the packages that a crate uses directly or indirectly.
fn used(directory: &str) -> BTreeSet<String> {
    let needs = locked();
    let mut found = BTreeSet::new();
    let mut next: Vec<String> = used_directly(directory).into_iter().collect();
    while let Some(name) = next.pop() {
        let needed = needs.get(&name).unwrap_or_else(|| panic!("{name} is not in Cargo.lock"));
        next.extend(needed.iter().filter(|name| !found.contains(*name)).cloned());
        found.insert(name);
    }
    found
}

#[test]
fn every_crate_below_the_server_has_a_row() {
    let crates = std::fs::read_dir(root().join("crates")).unwrap();
    let found: BTreeSet<String> =
        crates.map(|entry| format!("crates/{}", entry.unwrap().file_name().to_str().unwrap())).collect();
    assert_eq!(found, LAYERS.map(|(directory, ..)| directory.to_owned()).into());
}

#[test]
fn crates_use_only_crates_of_lower_layers() {
    for (directory, below, _) in LAYERS {
        let of_workspace = used(directory).into_iter().filter(|name| name == "meterd" || name.starts_with("meterd-"));
        assert_eq!(of_workspace.collect::<Vec<_>>(), below, "{directory}");
    }
}

#[test]
fn lower_crates_do_not_use_grpc_or_the_command_line_and_the_domain_no_database() {
    for (directory, _, forbidden) in LAYERS {
        let used = used(directory);
        let found: Vec<_> = forbidden.iter().filter(|name| used.contains(**name)).collect();
        assert!(found.is_empty(), "{directory} must not need {found:?}");
    }
}

#[test]
fn the_server_uses_all_crates() {
    let used = used_directly(".");
    assert!(!used.contains("meterd-bench"));
    for name in ["meterd-domain", "meterd-store", "meterd-embedded-postgres", "sqlx", "tokio", "tonic", "prost", "clap"]
    {
        assert!(used.contains(name), "{name}");
    }
}

/// The functions of the store that claim keys, insert events or change the sums of a month.
const WRITES_OF_SUMS: [&str; 7] = [
    "record::try_record(",
    "record::claim(",
    "record::copy(",
    "record::add(",
    "record::correct(",
    "pending::apply",
    "rollups::delete_zeros(",
];

fn source_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match path.is_dir() {
            true => source_files(&path, found),
            false => found.extend(path.extension().is_some_and(|extension| extension == "rs").then_some(path)),
        }
    }
}

#[test]
fn only_the_ledger_changes_the_sums_of_a_month() {
    let mut files = vec![];
    for directory in ["src", "crates/engine/src", "crates/embedded-postgres/src"] {
        source_files(&root().join(directory), &mut files);
    }
    let ledger = root().join("crates/engine/src/ledger");
    let writes = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        WRITES_OF_SUMS.iter().any(|write| text.contains(write))
    };
    let (in_ledger, elsewhere): (Vec<PathBuf>, Vec<PathBuf>) =
        files.into_iter().filter(writes).partition(|path| path.starts_with(&ledger));
    assert!(!in_ledger.is_empty(), "the functions of the store have other names: mend this test");
    assert!(elsewhere.is_empty(), "these files change sums without the ledger: {elsewhere:?}");
}
