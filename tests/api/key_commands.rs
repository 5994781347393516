//! `meterd keys` with wrong keys and databases: its messages and suggestions.

use crate::command_selections::fail;
use crate::commands::{meterd, succeed};
use crate::harness::*;
use crate::settings::{SettingsDir, output_of, run};

/// Creates a key with the command and returns its id.
async fn create_key(server: &TestServer, name: &str) -> String {
    let token = succeed(server, &["keys", "create", name, "--scope=read", "--all-clients", "--quiet"]).await;
    token.split('_').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_a_rotated_key_warns_that_the_new_key_expires_soon() {
    let server = TestServer::start().await;
    let key = create_key(&server, "backend").await;
    let first = meterd(&server, &["keys", "rotate", &key]).await;
    assert_eq!(String::from_utf8_lossy(&first.stderr), "", "the new key never expires, like the old one");
    let shown = String::from_utf8(first.stdout).unwrap();
    assert!(shown.contains("expires  never"), "{shown}");
    let successor = shown.split_whitespace().nth(1).unwrap().to_owned();
    for quiet in [&[][..], &["--quiet"]] {
        let again = meterd(&server, &[&["keys", "rotate", &key], quiet].concat()).await;
        let logged = String::from_utf8(again.stderr).unwrap();
        let expected_text = format!("note: key {key} was already rotated to ");
        assert!(
            again.status.success() && logged.contains(&expected_text) && logged.contains("is only valid until 2"),
            "{logged}"
        );
        assert!(quiet.len() == 1 || logged.contains(&format!("or rotate {successor}")), "{logged}");
    }
    let chosen = meterd(&server, &["keys", "rotate", &key, "--expires=90d"]).await;
    assert_eq!(String::from_utf8_lossy(&chosen.stderr), "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_instead_of_a_key_id_gets_the_id_as_a_suggestion() {
    let server = TestServer::start().await;
    let key = create_key(&server, "acme backend").await;
    for command in ["rotate", "revoke"] {
        let error = fail(&server, &["keys", command, "acme backend"]).await;
        assert!(
            error.contains(&format!("this is the name of a key; use its id: {key} (\"acme backend\", live)")),
            "{error}"
        );
        let error = fail(&server, &["keys", command, "acme bakend"]).await;
        assert!(error.contains(&format!("did you mean {key}")), "{error}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_clients_is_rejected_with_the_options() {
    let server = TestServer::start().await;
    let output = meterd(&server, &["keys", "create", "x", "--scope=read"]).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--client <CLIENT>|--all-clients"), "{error}");
    let output = meterd(&server, &["keys", "create", "x", "--scope=read", "--client=a", "--all-clients"]).await;
    assert!(!output.status.success());
    succeed(&server, &["keys", "create", "x", "--scope=read", "--client=a", "--client=b", "--quiet"]).await;
    server.stop().await;
}

#[test]
fn the_first_key_is_not_created_in_a_misspelled_directory() {
    let dir = SettingsDir::new();
    let create = |more: &[&str]| {
        let mut command =
            dir.meterd(&["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
        command.args(more);
        command
    };
    let rejected = dir.start_error(&mut create(&[]));
    assert!(rejected.contains("contains no database of meterd") && rejected.contains("--new-database"), "{rejected}");
    // The command that a server suggests for a directory without a database includes the flag.
    let exposed = output_of(&run(dir
        .meterd(&["serve", "--check", "--listen=0.0.0.0:0", "--http-listen=127.0.0.1:0"])
        .arg("--data-dir")
        .arg(dir.data_dir())));
    assert!(exposed.contains("--direct --new-database --data-dir"), "{exposed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_the_first_key_in_an_empty_database_says_that_it_creates_tables() {
    let dir = SettingsDir::new();
    let mut command = dir.meterd(&["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
    command.env("DATABASE_URL", empty_database().await).env_remove("METERD_DATA_DIR");
    let first = run(&mut command);
    assert!(
        first.status.success() && String::from_utf8_lossy(&first.stderr).contains("has no tables of meterd yet"),
        "{}",
        output_of(&first)
    );
    let second = run(&mut command);
    assert_eq!((second.status.success(), second.stderr.len()), (true, 0), "{}", output_of(&second));
}
