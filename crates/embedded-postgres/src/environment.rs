//! What the processes of the embedded server inherit of meterd's environment: what programs need to be found and to run.
//!
//! Nothing else: the rest may have passwords and tokens in it (`METERD_API_KEY`, `METERD_SMTP_URL`), which anybody who may
//! run code in the server could read, and `PG*` variables (`PGPORT`, `PGOPTIONS`) would change what the server does.

use std::process::Command;

/// What is passed on: where programs, their libraries, locales and time zones are, and where temporary files go.
const KEPT: [&str; 11] = [
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

/// Leaves a command only what [`KEPT`] names of the environment.
pub(super) fn reduce(command: &mut Command) {
    command.env_clear();
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // Messages are matched and shown in English, and macOS needs a set locale to start PostgreSQL at all.
    command.env("LC_ALL", "C");
}
