//! Environment variables that look like settings and are none: a misspelt one would change nothing, unseen.

use super::declared::{Catalogue, did_you_mean};
use clap::Command;
use std::ffi::OsString;

const PREFIX: &str = "METERD_";
/// Names the settings file; declared by a flag that is in no file.
const CONFIG: &str = "METERD_CONFIG";
/// Names the program that meterd-bench measures. It is no mistake if it is set for all programs.
const BENCH_PROGRAM: &str = "METERD_BIN";
/// A name of another prefix that differs from a variable's in so few characters is a slip: METERED_AUTH, MTERD_AUHT.
const SLIPS_MAX: usize = 2;
/// And its prefix in so few: METRO_LOG is another program's.
const PREFIX_SLIPS_MAX: usize = 1;
const DATABASE_URL: &str = "DATABASE_URL";

/// What is wrong with each variable of the environment that seems to mean a setting.
pub fn wrong_variables(command: &Command, variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let catalogue = Catalogue::of(command);
    let wrong = variables.filter_map(|(name, value)| {
        let name = name.to_str()?;
        let is_known =
            [CONFIG, BENCH_PROGRAM].contains(&name) || catalogue.iter().any(|setting| setting.variable == name);
        if is_known || is_of_kubernetes(name, &value.to_string_lossy()) {
            return None;
        }
        let meant = if name.to_uppercase().starts_with(PREFIX) {
            catalogue.meant(name).map(|setting| setting.variable.as_str())
        } else {
            Some(slip(&catalogue, name)?)
        };
        let meant = did_you_mean(meant);
        let fix = if meant.is_empty() { "; unset or rename it" } else { " Unset or rename it" };
        Some(format!("{name}: no setting has this environment variable{meant}{fix}"))
    });
    let mut wrong: Vec<_> = wrong.collect();
    wrong.sort();
    wrong
}

/// Whether this command opens the database that the settings name.
pub fn opens_a_database(command: &Command, name: &str) -> bool {
    Catalogue::of(command).find("database_url").is_some_and(|setting| setting.is_of(name))
}

/// The variable that a name of another prefix means: METERED_AUTH, METER_AUTH, MTERD_AUTH, METRED_AUTH, METERDAUTH.
fn slip<'a>(catalogue: &'a Catalogue, name: &str) -> Option<&'a str> {
    let name = name.to_uppercase();
    let prefix = name.split_inclusive('_').next().unwrap_or_default();
    let is_near = strsim::damerau_levenshtein(prefix, PREFIX) <= PREFIX_SLIPS_MAX || name.starts_with("METERD");
    let near = |variable: &&str| {
        variable.starts_with(PREFIX) && is_near && strsim::damerau_levenshtein(&name, variable) <= SLIPS_MAX
    };
    catalogue.iter().map(|setting| setting.variable.as_str()).chain([CONFIG]).find(near)
}

/// Variables that seem to mean DATABASE_URL: of a name like it, and with the URL of a PostgreSQL database. Without a choice of
/// a database, meterd would make one of its own instead.
pub fn meant_urls(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let wrong = variables.filter_map(|(name, value)| {
        let (name, value) = (name.to_str()?, value.to_string_lossy());
        let differs = strsim::damerau_levenshtein(&name.to_uppercase(), DATABASE_URL);
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| value.starts_with(scheme));
        (is_url && differs <= SLIPS_MAX && name != DATABASE_URL).then(|| {
            format!(
                "{name}: no setting has this environment variable; did you mean {DATABASE_URL}? Rename it, or give \
                 --data-dir for meterd's own PostgreSQL"
            )
        })
    });
    let mut wrong: Vec<_> = wrong.collect();
    wrong.sort();
    wrong
}

/// Kubernetes sets these in each container for a service named meterd or meterd-…; they are nobody's mistake.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let port = |name: &str| {
        let Some((_, rest)) = name.rsplit_once("_PORT_") else { return false };
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|part| part.parse::<u16>().is_ok());
        let protocol = parts.next().is_some_and(|part| matches!(part, "TCP" | "UDP" | "SCTP"));
        number && protocol && parts.next().is_none_or(|part| matches!(part, "PROTO" | "ADDR"))
    };
    let service = name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_");
    let named_port = name.strip_suffix("_PORT").is_some_and(port);
    (name.ends_with("_PORT") && is_address) || service || named_port || port(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args;

    fn wrong(name: &str, value: &str) -> Vec<String> {
        let command = Command::new("meterd").subcommand(crate::config::Settings::augment_args(Command::new("serve")));
        wrong_variables(&command, std::iter::once((name.into(), value.into())))
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_one_that_was_meant() {
        for (name, meant) in [
            ("METERD_AUHT", "METERD_AUTH"),
            ("meterd_auth", "METERD_AUTH"),
            ("METERED_AUTH", "METERD_AUTH"),
            ("METER_AUTH", "METERD_AUTH"),
            ("METERD_DATABASE_URL", "DATABASE_URL"),
            ("METERD_WEB_ORIGIN", "METERD_WEB_ORIGINS"),
            ("METERD_TLS_CRET", "METERD_TLS_CERT"),
            ("METERD_HTTP_LISTN", "METERD_HTTP_LISTEN"),
            ("METERD_RETENTION_MONTH", "METERD_RETENTION_MONTHS"),
            ("MTERD_AUTH", "METERD_AUTH"),
            ("METRED_AUTH", "METERD_AUTH"),
            ("METERDAUTH", "METERD_AUTH"),
            ("METRED_TLS_CRET", "METERD_TLS_CERT"),
            ("EMTERD_HTTP_LISTEN", "METERD_HTTP_LISTEN"),
        ] {
            let said = wrong(name, "x");
            assert!(said.len() == 1 && said[0].contains(&format!("did you mean {meant}?")), "{name}: {said:?}");
        }
        assert_eq!(wrong("METERD_PORT", "50051").len(), 1);
    }

    #[test]
    fn known_variables_and_those_of_others_are_left_alone() {
        for (name, value) in [
            ("METERD_AUTH", "keys"),
            ("METERD_CONFIG", "/etc/meterd.toml"),
            ("METERD_BIN", "target/release/meterd"),
            ("DATABASE_URL", "postgres://"),
            ("METRICS_PORT", "1"),
            ("METRO_LISTEN", "1"),
            ("METEOR_CURRENCY", "EUR"),
            ("METEO_LISTEN", "1"),
            ("AUTH", "off"),
            ("HTTP_LISTEN", "1"),
            ("HOME", "/root"),
            ("METERD_PORT", "tcp://10.0.0.1:50051"),
            ("METERD_SERVICE_HOST", "10.0.0.1"),
            ("METERD_SERVICE_PORT_GRPC", "50051"),
            ("METERD_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
            ("METERD_PORT_50051_TCP_ADDR", "10.0.0.1"),
            ("METERD_PORT_50051_TCP_PORT", "50051"),
            ("METERD_HTTP_SERVICE_HOST", "10.0.0.1"),
        ] {
            assert_eq!(wrong(name, value), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn a_misspelt_database_url_is_named_and_variables_of_others_are_not() {
        let wrong = |name: &str, value: &str| meant_urls(std::iter::once((name.into(), value.into())));
        for name in ["DATABSE_URL", "DATABASE_ULR", "DATABASEURL", "database_url", "DATABASE_URI", "DATABASES_URL"] {
            let said = wrong(name, "postgres://u:hunter2@localhost/db");
            assert!(said.len() == 1 && said[0].contains("did you mean DATABASE_URL?"), "{name}: {said:?}");
            assert!(!said[0].contains("hunter2"));
        }
        for (name, value) in [
            ("DATABASE_URL", "postgres://localhost/db"),
            ("DATABASE_URI", "mysql://localhost/db"),
            ("DATABSE_URL", ""),
            ("TEST_DATABASE_URL", "postgres://localhost/db"),
            ("POSTGRES_URL", "postgres://localhost/db"),
        ] {
            assert_eq!(wrong(name, value), Vec::<String>::new(), "{name}");
        }
    }
}
