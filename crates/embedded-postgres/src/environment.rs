//! The environment variables that the server's processes inherit from meterd: only those that programs need to run.
//!
//! The other variables may contain passwords and tokens (`METERD_API_KEY`, `METERD_SMTP_URL`), which anybody who can
//! run code in the server could read. `PG*` variables (`PGPORT`, `PGOPTIONS`) would change what the server does.

use std::process::Command;

/// Variables that are passed on: the locations of programs, libraries, locales, time zones and temporary files.
const INHERITED: [&str; 11] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "DYLD_FALLBACK_LIBRARY_PATH",
    "LOCALE_ARCHIVE",
    "ICU_DATA",
];

/// Removes all variables except [`INHERITED`] from the environment of a command.
pub(super) fn reduce(command: &mut Command) {
    command.env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // meterd matches and shows messages in English. On macOS, PostgreSQL starts only if a locale is set.
    command.env("LC_ALL", "C");
}
