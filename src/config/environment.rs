//! Finds environment variables with misspelt names, which would have no effect.

use super::specs::{SettingSpecs, did_you_mean};
use clap::Command;
use std::ffi::OsString;

const PREFIX: &str = "METERD_";
/// The variable of `--config`, which is not a setting.
const CONFIG: &str = "METERD_CONFIG";
/// The program that meterd-bench measures. It is not an error if the variable is set for all programs.
const BENCH_PROGRAM: &str = "METERD_BIN";
/// Maximum edit distance between a misspelt name and the name of a variable, as in METERED_AUTH and MTERD_AUHT.
const NAME_DISTANCE_MAX: usize = 2;
/// Maximum edit distance between the prefixes. METRO_LOG belongs to another program.
const PREFIX_DISTANCE_MAX: usize = 1;
const DATABASE_URL: &str = "DATABASE_URL";

/// Returns an error for each unknown variable whose name begins with `METERD_` or resembles the name of a setting.
pub fn unknown_variables(command: &Command, variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let specs = SettingSpecs::of(command);
    let errors = variables.filter_map(|(name, value)| {
        let name = name.to_str()?;
        let is_known = [CONFIG, BENCH_PROGRAM].contains(&name) || specs.iter().any(|setting| setting.variable == name);
        if is_known || is_of_kubernetes(name, &value.to_string_lossy()) {
            return None;
        }
        let nearest = if name.to_uppercase().starts_with(PREFIX) {
            specs.nearest(name).map(|setting| setting.variable.as_str())
        } else {
            Some(misspelt(&specs, name)?)
        };
        let hint = did_you_mean(nearest);
        let fix = if hint.is_empty() { "; unset or rename it" } else { " Unset or rename it" };
        Some(format!("{name}: no setting has this environment variable{hint}{fix}"))
    });
    let mut errors: Vec<_> = errors.collect();
    errors.sort();
    errors
}

/// Whether this command opens the database itself.
pub fn opens_database(command: &Command, name: &str) -> bool {
    SettingSpecs::of(command).find("database_url").is_some_and(|setting| setting.applies_to(name))
}

/// The variable that a name with a misspelt prefix resembles: METERED_AUTH, METER_AUTH, MTERD_AUTH, METRED_AUTH, METERDAUTH.
fn misspelt<'a>(specs: &'a SettingSpecs, name: &str) -> Option<&'a str> {
    let name = name.to_uppercase();
    let prefix = name.split_inclusive('_').next().unwrap_or_default();
    let is_near = strsim::damerau_levenshtein(prefix, PREFIX) <= PREFIX_DISTANCE_MAX || name.starts_with("METERD");
    let near = |variable: &&str| {
        variable.starts_with(PREFIX) && is_near && strsim::damerau_levenshtein(&name, variable) <= NAME_DISTANCE_MAX
    };
    specs.iter().map(|setting| setting.variable.as_str()).chain([CONFIG]).find(near)
}

/// Returns an error for each variable whose name resembles `DATABASE_URL` and whose value is the URL of a PostgreSQL database.
/// Without the URL, meterd would start an embedded PostgreSQL.
pub fn misspelt_database_urls(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let errors = variables.filter_map(|(name, value)| {
        let (name, value) = (name.to_str()?, value.to_string_lossy());
        let distance = strsim::damerau_levenshtein(&name.to_uppercase(), DATABASE_URL);
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| value.starts_with(scheme));
        (is_url && distance <= NAME_DISTANCE_MAX && name != DATABASE_URL).then(|| {
            format!(
                "{name}: no setting has this environment variable; did you mean {DATABASE_URL}? Rename it, or add \
                 --data-dir to use the embedded PostgreSQL"
            )
        })
    });
    let mut errors: Vec<_> = errors.collect();
    errors.sort();
    errors
}

/// Whether Kubernetes sets this variable in each container, because a service has the name meterd or meterd-….
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

    fn errors_of(name: &str, value: &str) -> Vec<String> {
        let command = Command::new("meterd").subcommand(crate::config::Settings::augment_args(Command::new("serve")));
        unknown_variables(&command, std::iter::once((name.into(), value.into())))
    }

    #[test]
    fn the_error_of_a_misspelt_variable_suggests_the_right_name() {
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
            let errors = errors_of(name, "x");
            assert!(errors.len() == 1 && errors[0].contains(&format!("did you mean {meant}?")), "{name}: {errors:?}");
        }
        assert_eq!(errors_of("METERD_PORT", "50051").len(), 1);
    }

    #[test]
    fn known_variables_and_variables_of_other_programs_are_accepted() {
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
            assert_eq!(errors_of(name, value), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn a_misspelt_database_url_is_an_error_and_variables_of_other_programs_are_not() {
        let errors_of = |name: &str, value: &str| misspelt_database_urls(std::iter::once((name.into(), value.into())));
        for name in ["DATABSE_URL", "DATABASE_ULR", "DATABASEURL", "database_url", "DATABASE_URI", "DATABASES_URL"] {
            let errors = errors_of(name, "postgres://u:hunter2@localhost/db");
            assert!(errors.len() == 1 && errors[0].contains("did you mean DATABASE_URL?"), "{name}: {errors:?}");
            assert!(!errors[0].contains("hunter2"));
        }
        for (name, value) in [
            ("DATABASE_URL", "postgres://localhost/db"),
            ("DATABASE_URI", "mysql://localhost/db"),
            ("DATABSE_URL", ""),
            ("TEST_DATABASE_URL", "postgres://localhost/db"),
            ("POSTGRES_URL", "postgres://localhost/db"),
        ] {
            assert_eq!(errors_of(name, value), Vec::<String>::new(), "{name}");
        }
    }
}
