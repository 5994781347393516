//! The `meterd` program that is measured.

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use tokio::process::Command;

const NAME: &str = "meterd";
/// What `meterd --version` of a debug build ends with.
const DEBUG_BUILD: &str = "(debug build)";
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");
const OWN_IS_DEBUG: bool = cfg!(debug_assertions);
const BUILD_COMMAND: &str =
    if OWN_IS_DEBUG { "cargo build --bin meterd" } else { "cargo build --release --bin meterd" };

/// A `meterd` program, its build, and the flags that its server is measured with.
#[derive(Clone, Debug)]
pub struct MeterdBinary {
    path: PathBuf,
    version: String,
    is_debug: bool,
    /// Flags of `meterd serve`.
    pub flags: Vec<String>,
}

impl MeterdBinary {
    /// Finds the program at `path`, or next to this one, and asks it for its version.
    pub async fn find(path: Option<&Path>, flags: &[String]) -> anyhow::Result<Self> {
        let path = match path {
            Some(path) => {
                ensure!(
                    path.is_file(),
                    "--meterd (METERD_BIN): there is no file {}; build meterd with `{BUILD_COMMAND}` and set its path, such \
                     as --meterd target/release/meterd",
                    path.display()
                );
                // A name without a slash would be searched for in PATH.
                std::path::absolute(path)?
            }
            None => {
                let own = std::env::current_exe().context("the path of meterd-bench is unknown: set --meterd PATH")?;
                let path = own.with_file_name(NAME);
                ensure!(
                    path.is_file(),
                    "there is no meterd next to meterd-bench: {} does not exist; build it with `{BUILD_COMMAND}`, or set \
                     --meterd PATH (METERD_BIN)",
                    path.display()
                );
                path
            }
        };
        let output = command(&path).arg("--version").output().await;
        let output = output.with_context(|| format!("{} cannot be run: give another --meterd", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text).filter(|_| output.status.success()).with_context(|| {
            let line = text.lines().next().unwrap_or_default();
            format!("{} is not meterd: --version prints {line:?}; give another --meterd", path.display())
        })?;
        let (version, is_debug) = (version.0.to_owned(), version.1);
        Ok(Self { path, version, is_debug, flags: flags.to_vec() })
    }

    /// A command of this program. No setting comes from the environment: the flags say what is measured.
    pub fn command(&self) -> Command {
        command(&self.path)
    }

    /// Whether neither the server nor the load generator is a debug build.
    pub fn is_optimized(&self) -> bool {
        !self.is_debug && !OWN_IS_DEBUG
    }

    /// The flags and the build, as the end of a line in a report. Empty for a release build of this version without flags.
    pub fn text(&self) -> String {
        let mut text = match &self.flags[..] {
            [] => String::new(),
            flags => format!(", flags {}", flags.join(" ")),
        };
        text += match (self.is_debug, OWN_IS_DEBUG) {
            (true, _) => "; a debug build, many times slower than a release one",
            (false, true) => "; the load generator is a debug build, many times slower than a release one",
            (false, false) => "",
        };
        text + &self.other_version().map(|text| format!("; {text}")).unwrap_or_default()
    }

    /// Names both versions if the program is of another one than `meterd-bench`.
    pub fn other_version(&self) -> Option<String> {
        let Self { path, version, .. } = self;
        (version != OWN_VERSION)
            .then(|| format!("{} is version {version}, and meterd-bench is {OWN_VERSION}", path.display()))
    }
}

fn command(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METERD_")) {
        command.env_remove(name);
    }
    command
}

/// The version that `meterd --version` prints, and whether it is a debug build.
fn parse_version(text: &str) -> Option<(&str, bool)> {
    let text = text.trim().strip_prefix(NAME)?.strip_prefix(' ')?;
    let (version, is_debug) = match text.strip_suffix(DEBUG_BUILD) {
        Some(version) => (version.trim_end(), true),
        None => (text, false),
    };
    (version.starts_with(|first: char| first.is_ascii_digit()) && !version.contains(char::is_whitespace))
        .then_some((version, is_debug))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_build() {
        assert_eq!(parse_version("meterd 0.1.0\n"), Some(("0.1.0", false)));
        assert_eq!(parse_version("meterd 0.1.0 (debug build)\n"), Some(("0.1.0", true)));
        for text in ["", "meterd", "meterd-bench 0.1.0", "ls (GNU coreutils) 9.1", "meterd of another kind"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn the_report_names_flags_and_another_version() {
        let mut meterd = MeterdBinary {
            path: "/opt/meterd".into(),
            version: OWN_VERSION.into(),
            is_debug: true,
            flags: vec!["--writers".into(), "4".into()],
        };
        assert_eq!(meterd.text(), ", flags --writers 4; a debug build, many times slower than a release one");
        assert!(!meterd.is_optimized() && meterd.other_version().is_none());
        meterd.version = "0.0.1".into();
        let text = meterd.text();
        assert!(
            text.ends_with(&format!("; /opt/meterd is version 0.0.1, and meterd-bench is {OWN_VERSION}")),
            "{text}"
        );
    }
}
