//! Settings that would do nothing, or something else than was meant: refused or noted by the place where they were given.

use crate::harness::*;
use crate::settings::{Place, listen_on, run, said};

/// Flags of a server that is only checked.
fn check(place: &Place) -> std::process::Command {
    let mut command = place.meterd(&["serve", "--check"]);
    command.args(listen_on(0));
    command
}

#[test]
fn a_misspelt_parameter_of_a_database_url_is_refused_before_anything_starts() {
    let place = Place::new();
    let url = |query: &str| format!("postgres://u:hunter2@localhost:1/db?{query}");
    for (query, says) in [
        ("sslmod=require", "parameter sslmod: there is no such parameter; did you mean sslmode?"),
        ("sslmode=verify_full", "parameter sslmode: must be one of disable, allow, prefer"),
        ("sslmode=require&conect_timeout=3", "parameter conect_timeout: there is no such parameter"),
    ] {
        for command in [&["serve"][..], &["serve", "--check"], &["migrate"], &["verify"]] {
            let refused =
                place.refusal(place.meterd(command).env("DATABASE_URL", url(query)).env_remove("METERD_DATA_DIR"));
            assert!(refused.contains(says) && !refused.contains("hunter2"), "{command:?}: {refused}");
            assert_eq!(refused.lines().count(), 1, "{refused}");
        }
    }
    let fine =
        run(check(&place).env("DATABASE_URL", url("sslmode=require&connect_timeout=5")).env_remove("METERD_DATA_DIR"));
    assert_eq!(said(&fine), "the settings are valid\n");
}

#[test]
fn a_database_url_without_a_database_is_refused() {
    let place = Place::new();
    for url in ["postgres://u:hunter2@localhost", "postgres://u:hunter2@localhost:1/"] {
        for command in [&["serve"][..], &["serve", "--check"], &["migrate"], &["verify"]] {
            let refused = place.refusal(place.meterd(command).env_remove("PGDATABASE").env("DATABASE_URL", url));
            assert!(refused.contains("names no database") && !refused.contains("hunter2"), "{command:?}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_behind_a_socket_is_reached_by_either_form_of_its_url() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    let options = meterd_store::connect::options(&server.database_url).unwrap();
    let (database, user) = (options.get_database().unwrap(), options.get_username());
    let socket = options.get_socket().unwrap().display().to_string();
    let place = Place::new();
    let encoded = socket.replace('/', "%2F");
    for url in
        [format!("postgres:///{database}?host={socket}&user={user}"), format!("postgres://{user}@{encoded}/{database}")]
    {
        let verified = run(place.meterd(&["verify"]).env("DATABASE_URL", &url).env_remove("METERD_DATA_DIR"));
        assert_eq!(said(&verified), "1 client-months, 1 events: 0 differences\n", "{url}");
    }
    let mut migrate = place.meterd(&["migrate", "--allow-non-durable-database"]);
    migrate.env("DATABASE_URL", &server.database_url).env_remove("METERD_DATA_DIR");
    let migrated = said(&run(&mut migrate));
    assert_eq!(migrated, format!("The schema is up to date: database {database} on {socket}\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_prints_no_log_of_the_library_that_it_uses() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".pgpass");
    std::fs::write(&file, "*:*:*:*:hunter2\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let place = Place::new();
    let mut command = place.meterd(&["verify"]);
    command.env("HOME", home.path()).env("DATABASE_URL", &server.database_url).env_remove("METERD_DATA_DIR");
    assert_eq!(said(&run(&mut command)), "1 client-months, 1 events: 0 differences\n");
    server.stop().await;
}

#[test]
fn what_to_correct_is_named_as_it_was_given() {
    let place = Place::new();
    let url = "postgres://localhost:1/db";
    let file = place.file(&format!("database_url = \"{url}\"\n"));
    let verify = || {
        let mut command = place.meterd(&["verify"]);
        command.env_remove("METERD_DATA_DIR");
        command
    };
    let in_file = format!("correct host and port in database_url ({}, line 1)", file.display());
    for (command, says) in [
        (verify().args(["--database-url", url]), "correct host and port in --database-url"),
        (verify().env("DATABASE_URL", url), "correct host and port in DATABASE_URL"),
        (verify().arg("--config").arg(&file), &in_file),
    ] {
        let refused = place.refusal(command);
        assert!(refused.contains(says), "{refused}");
    }
    // And a command to paste has the URL, without its password.
    let mut open = place.meterd(&["serve", "--check", "--listen=0.0.0.0:0", "--http-listen=127.0.0.1:0"]);
    open.env_remove("METERD_DATA_DIR").args(["--database-url", "postgres://u:hunter2@localhost:1/db"]);
    let refused = place.refusal(&mut open);
    assert!(refused.contains("--direct --database-url postgres://u:PASSWORD@localhost:1/db`"), "{refused}");
}

#[test]
fn a_misspelt_database_url_variable_is_refused_unless_a_database_was_chosen() {
    let place = Place::new();
    let chosen = place.data_dir().display().to_string();
    for name in ["DATABSE_URL", "DATABASE_ULR", "DATABASEURL"] {
        for command in ["serve", "migrate", "verify"] {
            let mut command = place.meterd(&[command]);
            command.env_remove("METERD_DATA_DIR").env(name, "postgres://u:hunter2@localhost:1/db");
            let refused = place.refusal(&mut command);
            assert!(
                refused.contains(&format!("{name}: no setting")) && refused.contains("did you mean DATABASE_URL?"),
                "{refused}"
            );
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        // Another program's, then.
        let other = run(check(&place)
            .env_remove("METERD_DATA_DIR")
            .args(["--data-dir", &chosen])
            .env(name, "postgres://localhost/db"));
        assert_eq!(said(&other), "the settings are valid\n");
    }
    for name in ["MTERD_AUTH", "METRED_AUTH"] {
        let refused = place.refusal(check(&place).env(name, "keys"));
        assert!(refused.contains(name) && refused.contains("did you mean METERD_AUTH?"), "{refused}");
    }
}

#[test]
fn settings_of_the_own_postgresql_beside_a_database_url_are_refused_as_flags_and_noted_elsewhere() {
    let place = Place::new();
    let url = "postgres://localhost:1/db";
    for (flag, name) in [
        ("--data-dir=/nonexistent", "--data-dir"),
        ("--postgres-bin-dir=/nonexistent", "--postgres-bin-dir"),
        ("--postgres-download=false", "--postgres-download"),
        ("--postgres-download-url=https://x.example", "--postgres-download-url"),
    ] {
        for command in [&["serve"][..], &["serve", "--check"], &["migrate"]] {
            let refused = place.refusal(place.meterd(command).arg(flag).env("DATABASE_URL", url));
            let says =
                format!("{name}: applies only to the embedded PostgreSQL, but DATABASE_URL selects another database");
            assert!(refused.contains(&says), "{refused}");
        }
    }
    let noted = run(check(&place).env("DATABASE_URL", url));
    let note = "note: METERD_DATA_DIR: has no effect because DATABASE_URL selects the database\n";
    assert!(noted.status.success() && said(&noted).contains(note), "{}", said(&noted));
    let file = place.file(&format!("database_url = \"{url}\"\npostgres_download = false\n"));
    let noted = said(&run(check(&place).env_remove("METERD_DATA_DIR").arg("--config").arg(&file)));
    let shown = file.display();
    assert!(noted.contains(&format!("postgres_download ({shown}, line 2): has no effect")), "{noted}");
    assert!(noted.contains(&format!("because database_url ({shown}, line 1) selects the database")), "{noted}");
}

#[test]
fn every_wrong_variable_is_told_at_once_by_its_name() {
    let place = Place::new();
    let variables = [
        ("METERD_WRITERS", "many", "METERD_WRITERS: must be a whole number, got \"many\""),
        ("METERD_CALLS_MAX", "1.5", "METERD_CALLS_MAX: must be a whole number, got \"1.5\""),
        ("METERD_RETRY_SECONDS", "0", "METERD_RETRY_SECONDS: 0 is not in 1..=3600"),
        ("METERD_AUTH", "key", "METERD_AUTH: must be one of off, keys, got \"key\"; did you mean keys?"),
        ("METERD_LISTEN", "localhost", "METERD_LISTEN: must be an IP address and a port"),
        ("METERD_INSECURE_LISTEN", "yes", "METERD_INSECURE_LISTEN: must be one of true, false, got \"yes\""),
        ("METERD_LOG", "nonsense", "METERD_LOG: must be a level"),
    ];
    for command in [&["serve"][..], &["serve", "--check"]] {
        let mut command = place.meterd(command);
        command.envs(variables.map(|(name, value, _)| (name, value)));
        let refused = place.refusal(&mut command);
        assert!(refused.contains("7 environment variables are wrong"), "{refused}");
        for (_, _, says) in variables {
            assert!(refused.lines().any(|line| line.starts_with(says)), "{says} in {refused}");
        }
    }
    // Values that are wrong only by what they mean, too.
    let mut command = place.meterd(&["serve", "--check"]);
    command.envs([("METERD_LISTEN", "0.0.0.0:0"), ("METERD_SMTP_URL", "x"), ("METERD_SMTP_FROM", "a@b.example")]);
    let file = place.file("tls_client_ca = \"x\"\n");
    let refused = place.refusal(command.arg("--config").arg(&file));
    let in_file = format!("tls_client_ca ({}, line 1) needs TLS", file.display());
    for says in ["METERD_LISTEN 0.0.0.0:0 is not a loopback address", "METERD_SMTP_URL is not one of", &in_file] {
        assert!(refused.lines().any(|line| line.starts_with(says)), "{says} in {refused}");
    }
    // A flag wins over its variable, right or wrong.
    let fine = run(check(&place).env("METERD_WRITERS", "many").arg("--writers=2"));
    assert_eq!(said(&fine), "the settings are valid\n");
    // And variables of others than this command are nobody's matter here.
    let other = said(&run(place.meterd(&["usage", "acme", "--server=127.0.0.1:1"]).env("METERD_WRITERS", "many")));
    assert!(other.contains("no server answers"), "{other}");
}

#[test]
fn a_line_that_is_no_toml_is_told_with_its_key_and_the_fix_and_without_a_secret() {
    let place = Place::new();
    for (text, says) in [
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
        let refused = place.serve_with(text);
        assert!(refused.contains(says) && !refused.contains("hunter2"), "{text}: {refused}");
    }
    let both = place.serve_with("listen = 127.0.0.1:0\nauth = keys\n");
    assert!(both.contains("line 1, column") && both.contains("line 2, column") && both.lines().count() == 2, "{both}");
}

#[test]
fn printed_settings_with_a_secret_left_out_are_refused_where_it_is_needed_and_fine_with_its_variable() {
    let place = Place::new();
    let secrets = [("METERD_SMTP_URL", "smtp://u:hunter2@localhost"), ("METERD_SMTP_FROM", "a@b.example")];
    let mut print = place.meterd(&["serve", "--print-config"]);
    let printed = said(&run(print.envs(secrets).args(listen_on(0))));
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(
        printed.lines().nth(1).unwrap().contains("write the values of smtp_url, or remove these lines and set"),
        "{printed}"
    );
    let file = place.file(&printed);
    let check = || {
        let mut command = place.meterd(&["serve", "--check"]);
        command.arg("--config").arg(&file);
        command
    };
    let refused = place.refusal(&mut check());
    let says = "smtp_url: \"(not shown)\" is not a value; --print-config writes it in place of a secret; write the secret here, or \
                remove the line and set METERD_SMTP_URL";
    assert!(refused.contains(says) && refused.lines().count() == 1, "{refused}");
    let fine = run(check().env(secrets[0].0, secrets[0].1));
    assert!(fine.status.success(), "{}", said(&fine));
}
