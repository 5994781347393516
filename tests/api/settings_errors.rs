//! Settings that have no effect or the wrong effect. They are rejected or logged with the place where they were set.

use crate::harness::*;
use crate::settings::{SettingsDir, listen_on, output_of, run};

/// Returns a command that only checks the settings of a server.
fn check(dir: &SettingsDir) -> std::process::Command {
    let mut command = dir.meterd(&["serve", "--check"]);
    command.args(listen_on(0));
    command
}

#[test]
fn a_misspelled_parameter_of_a_database_url_is_rejected_before_the_start() {
    let dir = SettingsDir::new();
    let url = |query: &str| format!("postgres://u:hunter2@localhost:1/db?{query}");
    for (query, expected_text) in [
        ("sslmod=require", "parameter sslmod: there is no such parameter; did you mean sslmode?"),
        ("sslmode=verify_full", "parameter sslmode: must be one of disable, allow, prefer"),
        ("sslmode=require&conect_timeout=3", "parameter conect_timeout: there is no such parameter"),
    ] {
        for command in [&["serve"][..], &["serve", "--check"], &["migrate"], &["verify"]] {
            let mut meterd = dir.meterd(command);
            meterd.env("DATABASE_URL", url(query)).env_remove("METERD_DATA_DIR");
            if command[0] == "serve" {
                // A connection of another test may use a default port.
                meterd.args(["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
            }
            let rejected = dir.start_error(&mut meterd);
            assert!(rejected.contains(expected_text) && !rejected.contains("hunter2"), "{command:?}: {rejected}");
            assert_eq!(rejected.lines().count(), 1, "{rejected}");
        }
    }
    let fine =
        run(check(&dir).env("DATABASE_URL", url("sslmode=require&connect_timeout=5")).env_remove("METERD_DATA_DIR"));
    assert_eq!(output_of(&fine), "the settings are valid\n");
}

#[test]
fn a_database_url_without_a_database_is_rejected() {
    let dir = SettingsDir::new();
    for url in ["postgres://u:hunter2@localhost", "postgres://u:hunter2@localhost:1/"] {
        for command in [&["serve"][..], &["serve", "--check"], &["migrate"], &["verify"]] {
            let rejected = dir.start_error(dir.meterd(command).env_remove("PGDATABASE").env("DATABASE_URL", url));
            assert!(rejected.contains("names no database") && !rejected.contains("hunter2"), "{command:?}: {rejected}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_forms_of_a_socket_url_reach_the_database() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    let options = meterd_store::database::connect::options(&server.database_url).unwrap();
    let (database, user) = (options.get_database().unwrap(), options.get_username());
    let socket = options.get_socket().unwrap().display().to_string();
    let dir = SettingsDir::new();
    let encoded = socket.replace('/', "%2F");
    for url in
        [format!("postgres:///{database}?host={socket}&user={user}"), format!("postgres://{user}@{encoded}/{database}")]
    {
        let verified = run(dir.meterd(&["verify"]).env("DATABASE_URL", &url).env_remove("METERD_DATA_DIR"));
        assert_eq!(output_of(&verified), "1 client-months, 1 events: 0 differences\n", "{url}");
    }
    let mut migrate = dir.meterd(&["migrate", "--allow-non-durable-database"]);
    migrate.env("DATABASE_URL", &server.database_url).env_remove("METERD_DATA_DIR");
    let migrated = output_of(&run(&mut migrate));
    assert_eq!(migrated, format!("The schema is up to date: database {database} on {socket}\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_does_not_print_logs_of_its_libraries() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".pgpass");
    std::fs::write(&file, "*:*:*:*:hunter2\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let dir = SettingsDir::new();
    let mut command = dir.meterd(&["verify"]);
    command.env("HOME", home.path()).env("DATABASE_URL", &server.database_url).env_remove("METERD_DATA_DIR");
    assert_eq!(output_of(&run(&mut command)), "1 client-months, 1 events: 0 differences\n");
    server.stop().await;
}

#[test]
fn an_error_names_a_setting_as_it_was_set() {
    let dir = SettingsDir::new();
    let url = "postgres://localhost:1/db";
    let file = dir.file(&format!("database_url = \"{url}\"\n"));
    let verify = || {
        let mut command = dir.meterd(&["verify"]);
        command.env_remove("METERD_DATA_DIR");
        command
    };
    let in_file = format!("correct host and port in database_url ({}, line 1)", file.display());
    for (command, expected_text) in [
        (verify().args(["--database-url", url]), "correct host and port in --database-url"),
        (verify().env("DATABASE_URL", url), "correct host and port in DATABASE_URL"),
        (verify().arg("--config").arg(&file), &in_file),
    ] {
        let rejected = dir.start_error(command);
        assert!(rejected.contains(expected_text), "{rejected}");
    }
    // A suggested command contains the URL without its password.
    let mut open = dir.meterd(&["serve", "--check", "--listen=0.0.0.0:0", "--http-listen=127.0.0.1:0"]);
    open.env_remove("METERD_DATA_DIR").args(["--database-url", "postgres://u:hunter2@localhost:1/db"]);
    let rejected = dir.start_error(&mut open);
    assert!(rejected.contains("--direct --database-url postgres://u:PASSWORD@localhost:1/db`"), "{rejected}");
}

#[test]
fn a_misspelled_database_url_variable_is_rejected_unless_a_database_is_set() {
    let dir = SettingsDir::new();
    let chosen = dir.data_dir().display().to_string();
    for name in ["DATABSE_URL", "DATABASE_ULR", "DATABASEURL"] {
        for command in ["serve", "migrate", "verify"] {
            let mut command = dir.meterd(&[command]);
            command.env_remove("METERD_DATA_DIR").env(name, "postgres://u:hunter2@localhost:1/db");
            let rejected = dir.start_error(&mut command);
            assert!(
                rejected.contains(&format!("{name}: no setting")) && rejected.contains("did you mean DATABASE_URL?"),
                "{rejected}"
            );
            assert!(!rejected.contains("hunter2"), "{rejected}");
        }
        // Then the variable belongs to another program.
        let other = run(check(&dir)
            .env_remove("METERD_DATA_DIR")
            .args(["--data-dir", &chosen])
            .env(name, "postgres://localhost/db"));
        assert_eq!(output_of(&other), "the settings are valid\n");
    }
    for name in ["MTERD_AUTH", "METRED_AUTH"] {
        let rejected = dir.start_error(check(&dir).env(name, "keys"));
        assert!(rejected.contains(name) && rejected.contains("did you mean METERD_AUTH?"), "{rejected}");
    }
}

#[test]
fn settings_of_the_embedded_postgresql_have_no_effect_with_a_database_url() {
    let dir = SettingsDir::new();
    let url = "postgres://localhost:1/db";
    for (flag, name) in [
        ("--data-dir=/nonexistent", "--data-dir"),
        ("--postgres-bin-dir=/nonexistent", "--postgres-bin-dir"),
        ("--postgres-download=false", "--postgres-download"),
        ("--postgres-download-url=https://x.example", "--postgres-download-url"),
    ] {
        for command in [&["serve"][..], &["serve", "--check"], &["migrate"]] {
            let rejected = dir.start_error(dir.meterd(command).arg(flag).env("DATABASE_URL", url));
            let expected_text =
                format!("{name}: applies only to the embedded PostgreSQL, but DATABASE_URL selects another database");
            assert!(rejected.contains(&expected_text), "{rejected}");
        }
    }
    let logged = run(check(&dir).env("DATABASE_URL", url));
    let note = "note: METERD_DATA_DIR: has no effect because DATABASE_URL selects the database\n";
    assert!(logged.status.success() && output_of(&logged).contains(note), "{}", output_of(&logged));
    let file = dir.file(&format!("database_url = \"{url}\"\npostgres_download = false\n"));
    let logged = output_of(&run(check(&dir).env_remove("METERD_DATA_DIR").arg("--config").arg(&file)));
    let shown = file.display();
    assert!(logged.contains(&format!("postgres_download ({shown}, line 2): has no effect")), "{logged}");
    assert!(logged.contains(&format!("because database_url ({shown}, line 1) selects the database")), "{logged}");
}

#[test]
fn all_wrong_environment_variables_are_reported_at_once() {
    let dir = SettingsDir::new();
    let variables = [
        ("METERD_WRITERS", "many", "METERD_WRITERS: must be a whole number, got \"many\""),
        ("METERD_CALLS_MAX", "1.5", "METERD_CALLS_MAX: must be a whole number, got \"1.5\""),
        ("METERD_RETRY_SECONDS", "0", "METERD_RETRY_SECONDS: must be 1 to 3600, got \"0\""),
        ("METERD_AUTH", "key", "METERD_AUTH: must be one of off, keys, got \"key\"; did you mean keys?"),
        ("METERD_LISTEN", "localhost", "METERD_LISTEN: must be an IP address and a port"),
        ("METERD_INSECURE_LISTEN", "yes", "METERD_INSECURE_LISTEN: must be one of true, false, got \"yes\""),
        ("METERD_LOG", "nonsense", "METERD_LOG: must be a level"),
    ];
    for command in [&["serve"][..], &["serve", "--check"]] {
        let mut command = dir.meterd(command);
        command.envs(variables.map(|(name, value, _)| (name, value)));
        let rejected = dir.start_error(&mut command);
        assert!(rejected.contains("7 environment variables are wrong"), "{rejected}");
        for (_, _, expected_text) in variables {
            assert!(rejected.lines().any(|line| line.starts_with(expected_text)), "no {expected_text} in {rejected}");
        }
    }
    // Values that are valid alone but wrong in combination are reported, too.
    let mut command = dir.meterd(&["serve", "--check"]);
    command.envs([("METERD_LISTEN", "0.0.0.0:0"), ("METERD_SMTP_URL", "x"), ("METERD_SMTP_FROM", "a@b.example")]);
    let file = dir.file("tls_client_ca = \"x\"\n");
    let rejected = dir.start_error(command.arg("--config").arg(&file));
    let in_file = format!("tls_client_ca ({}, line 1) needs TLS", file.display());
    for expected_text in
        ["METERD_LISTEN 0.0.0.0:0 is not a loopback address", "METERD_SMTP_URL: must be a URL such as", &in_file]
    {
        assert!(rejected.lines().any(|line| line.starts_with(expected_text)), "no {expected_text} in {rejected}");
    }
    // A flag overrides its variable, whether the variable is valid or not.
    let fine = run(check(&dir).env("METERD_WRITERS", "many").arg("--writers=2"));
    assert_eq!(output_of(&fine), "the settings are valid\n");
    // Variables of other commands are ignored.
    let other = output_of(&run(dir.meterd(&["usage", "acme", "--server=127.0.0.1:1"]).env("METERD_WRITERS", "many")));
    assert!(other.contains("no server answers"), "{other}");
}

#[test]
fn an_invalid_toml_line_is_reported_with_its_key_and_fix_and_without_secrets() {
    let dir = SettingsDir::new();
    for (text, expected_text) in [
        (
            "writers = 2\nlisten = 127.0.0.1:0\n",
            "line 2, column 15: listen: a string must be in quotes: write listen = \"127.0.0.1:0\"",
        ),
        ("auth = keys # or off\n", "auth: a string must be in quotes: write auth = \"keys\""),
        ("smtp_url = smtp://u:hunter2@localhost\n", "smtp_url: a string must be in quotes: write smtp_url = \"…\""),
        (
            "twilio_auth_token = hunter2\n",
            "twilio_auth_token: a string must be in quotes: write twilio_auth_token = \"…\"",
        ),
        (
            "writers = 2\nlog = \"info\"\nwriters = 3\n",
            "line 3, column 1: writers: is already set on line 1; remove one of the two",
        ),
        ("currency = \"EUR\nwriters = 2\n", "currency: the string is not closed; add \""),
        ("writers =\n", "writers: has no value; remove the line to leave it unset"),
    ] {
        let rejected = dir.serve_with(text);
        assert!(rejected.contains(expected_text) && !rejected.contains("hunter2"), "{text}: {rejected}");
    }
    let both = dir.serve_with("listen = 127.0.0.1:0\nauth = keys\n");
    assert!(both.contains("line 1, column") && both.contains("line 2, column") && both.lines().count() == 2, "{both}");
}

#[test]
fn printed_settings_without_a_secret_are_valid_only_with_its_variable() {
    let dir = SettingsDir::new();
    let secrets = [("METERD_SMTP_URL", "smtp://u:hunter2@localhost"), ("METERD_SMTP_FROM", "a@b.example")];
    let mut print = dir.meterd(&["serve", "--print-config"]);
    let printed = output_of(&run(print.envs(secrets).args(listen_on(0))));
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(
        printed.lines().nth(1).unwrap().contains("write the values of smtp_url, or remove these lines and set"),
        "{printed}"
    );
    let file = dir.file(&printed);
    let check = || {
        let mut command = dir.meterd(&["serve", "--check"]);
        command.arg("--config").arg(&file);
        command
    };
    let rejected = dir.start_error(&mut check());
    let expected_text = "smtp_url: \"(not shown)\" is not a value; --print-config writes it in place of a secret; write the secret here, or \
                remove the line and set METERD_SMTP_URL";
    assert!(rejected.contains(expected_text) && rejected.lines().count() == 1, "{rejected}");
    let fine = run(check().env(secrets[0].0, secrets[0].1));
    assert!(fine.status.success(), "{}", output_of(&fine));
}
