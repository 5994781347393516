//! Layout of `--help`: commands in groups, flags under headings, the flags of the connection last.

use clap::{Arg, Command};

/// Groups of commands, in the order of `meterd --help`.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Run the server", &["serve", "migrate"]),
    ("Record usage", &["track", "import"]),
    ("Read usage and costs", &["usage", "summary", "query", "unpriced", "explain", "export"]),
    ("Clients, prices and alerts", &["clients", "plans", "credits", "prices", "limits", "alerts", "notifications"]),
    ("Check and repair", &["void", "correct", "adjustments", "verify", "rebuild", "jobs"]),
    ("Access", &["keys", "audit"]),
];
/// Heading of commands without a group.
const OTHERS: &str = "Others";

/// Display order of global flags. Larger than the number of flags of any command, so global flags come last.
const GLOBAL_ORDER: usize = 900;

/// Heading of the flags that select the server.
pub const CONNECTION: &str = "Connection";
const CONNECTION_FLAGS: [&str; 6] = ["server", "api_key", "tls_ca", "tls_client_cert", "tls_client_key", "timeout"];

/// Headings of settings, by the ids of their flags.
const HEADINGS: [(&str, &[&str]); 8] = [
    ("Database", &["database_url", "data_dir", "postgres_*", "connections_max", "allow_non_durable_database"]),
    ("Addresses", &["listen", "http_listen", "insecure_listen", "web_origins"]),
    ("Access", &["auth", "key_requests_per_second", "reflection", "health", "jwt_*"]),
    ("TLS", &["tls_*"]),
    (
        "Usage",
        &[
            "currency",
            "default_time_zone",
            "unknown_*",
            "accept_*",
            "model_names",
            "high_token_rate",
            "correction_days",
        ],
    ),
    ("Alerts and notifications", &["alert_*", "smtp_*", "twilio_*", "webhook_*", "notification*"]),
    ("Jobs and retention", &["schedule_*", "retention_*", "key_retention_*", "key_generation_*"]),
    ("Limits", &["*_max", "*_seconds", "writers"]),
];

/// Commands whose flags are settings of the server or of its database.
const SETTINGS_COMMANDS: [&str; 4] = ["serve", "migrate", "verify", "create"];

/// Sets the layout of the help of meterd: its commands in groups, and the flags of each command.
pub fn arranged(command: Command) -> Command {
    let help = grouped_commands(&command);
    arranged_flags(command).help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{help}\nOptions:\n{{options}}{{after-help}}"
    ))
}

/// Returns the list of commands in their groups.
fn grouped_commands(command: &Command) -> String {
    let shown: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    let width = shown.iter().map(|sub| sub.get_name().len()).max().unwrap_or_default();
    let line = |sub: &&Command| {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        format!("  {:<width$}  {about}\n", sub.get_name())
    };
    let in_group = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let mut text = String::new();
    for (group, names) in GROUPS {
        let lines: String =
            names.iter().filter_map(|name| shown.iter().find(|sub| sub.get_name() == *name)).map(line).collect();
        if !lines.is_empty() {
            text += &format!("{group}:\n{lines}\n");
        }
    }
    let others: String = shown.iter().filter(|sub| !in_group(sub.get_name())).map(line).collect();
    if !others.is_empty() {
        text += &format!("{OTHERS}:\n{others}\n");
    }
    text + "`meterd COMMAND --help` describes the flags of a command.\n"
}

/// Arranges the flags of a command and of its subcommands. Flags of every command come after a command's own flags.
pub fn arranged_flags(command: Command) -> Command {
    let command = command.mut_args(|arg| if arg.is_global_set() { arg.display_order(GLOBAL_ORDER) } else { arg });
    // Lets `--units -1` reach the check of the value, whose error has the rule.
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    let connects = command.get_arguments().any(|arg| arg.get_id() == "api_key");
    let has_settings = SETTINGS_COMMANDS.contains(&command.get_name());
    let heading = |arg: &Arg| {
        let id = arg.get_id().as_str();
        match (connects && CONNECTION_FLAGS.contains(&id), has_settings) {
            (true, _) => Some(CONNECTION),
            (false, true) => setting_heading(id),
            (false, false) => None,
        }
    };
    let command = command.mut_args(|arg| match heading(&arg) {
        // Replaces a heading that clap carried over from flattened arguments.
        Some(CONNECTION) => arg.help_heading(CONNECTION),
        Some(heading) if arg.get_help_heading().is_none() => arg.help_heading(heading),
        _ => arg,
    });
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, arranged_flags))
}

fn setting_heading(id: &str) -> Option<&'static str> {
    let fits = |pattern: &&str| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), _) => id.starts_with(start),
        (None, Some(end)) => id.ends_with(end),
        (None, None) => id == *pattern,
    };
    HEADINGS.iter().find(|(_, patterns)| patterns.iter().any(&fits)).map(|(heading, _)| *heading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Subcommand;

    fn commands() -> Command {
        arranged(super::super::Command::augment_subcommands(Command::new("meterd")))
    }

    /// Collects all commands without subcommands, each with its full name.
    fn leaves(command: &Command, words: &str, found: &mut Vec<(String, Command)>) {
        if !command.has_subcommands() && !command.is_hide_set() {
            found.push((words.to_owned(), command.clone()));
        }
        for sub in command.get_subcommands() {
            leaves(sub, format!("{words} {}", sub.get_name()).trim(), found);
        }
    }

    #[test]
    fn every_command_is_in_exactly_one_group() {
        let command = commands();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let mut all: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
        let help = commands().render_help().to_string();
        assert!(help.contains("Read usage and costs:\n  usage ") && !help.contains(OTHERS), "{help}");
    }

    #[test]
    fn the_flags_of_the_connection_come_last_in_every_command() {
        let mut found = vec![];
        leaves(&commands(), "", &mut found);
        let mut connecting = 0;
        for (words, mut command) in found {
            let help = command.render_long_help().to_string();
            if !help.contains("--api-key") {
                continue;
            }
            connecting += 1;
            let (before, last) = help.split_once("\nConnection:\n").unwrap_or_else(|| panic!("{words}: {help}"));
            for flag in ["--server ", "--api-key ", "--tls-ca ", "--timeout "] {
                assert!(!before.contains(flag) && last.contains(flag), "{words}: {flag}");
            }
            let headings = last.lines().filter(|line| line.ends_with(':') && !line.starts_with(' '));
            assert_eq!(headings.count(), 0, "{words}: {last}");
        }
        assert!(connecting > 20, "{connecting}");
    }

    #[test]
    fn a_negative_number_is_reported_as_a_wrong_value_and_not_as_an_unknown_flag() {
        for words in ["track acme openai --units -1", "usage acme --timeout -1", "serve --writers -1"] {
            let error = commands().try_get_matches_from(["meterd"].into_iter().chain(words.split(' '))).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::ValueValidation, "{words}: {error}");
        }
    }

    #[test]
    fn every_setting_of_the_server_has_a_heading() {
        let command = commands();
        let serve = command.find_subcommand("serve").unwrap();
        for arg in serve.get_arguments().filter(|arg| arg.get_env().is_some()) {
            assert!(arg.get_help_heading().is_some(), "{}", arg.get_id());
        }
    }

    #[test]
    fn the_description_of_a_command_begins_with_a_verb() {
        let mut found = vec![];
        leaves(&commands(), "", &mut found);
        for (words, command) in found {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let first = about.split(' ').next().unwrap_or_default();
            let is_verb = first.chars().next().is_some_and(char::is_uppercase)
                && !["The", "A", "An", "How", "What", "Who", "All"].contains(&first);
            assert!(is_verb, "{words}: {about:?}");
        }
    }
}
