//! `meterd keys`: what it says of keys and databases that are not what was meant.

use crate::commands::{meterd, succeed};
use crate::harness::*;
use crate::selections::fail;
use crate::settings::{Place, run, said};

/// Makes a key by the command, and gives its id.
async fn made(server: &TestServer, name: &str) -> String {
    let token = succeed(server, &["keys", "create", name, "--scope=read", "--all-clients", "--quiet"]).await;
    token.split('_').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_rotated_again_is_told_that_the_new_one_has_a_short_life() {
    let server = TestServer::start().await;
    let key = made(&server, "backend").await;
    let first = meterd(&server, &["keys", "rotate", &key]).await;
    assert_eq!(String::from_utf8_lossy(&first.stderr), "", "it never expires, as the old one");
    let shown = String::from_utf8(first.stdout).unwrap();
    assert!(shown.contains("expires  never"), "{shown}");
    let successor = shown.split_whitespace().nth(1).unwrap().to_owned();
    for quiet in [&[][..], &["--quiet"]] {
        let again = meterd(&server, &[&["keys", "rotate", &key], quiet].concat()).await;
        let noted = String::from_utf8(again.stderr).unwrap();
        let says = format!("note: key {key} was already rotated to ");
        assert!(again.status.success() && noted.contains(&says) && noted.contains("is only valid until 2"), "{noted}");
        assert!(quiet.len() == 1 || noted.contains(&format!("or rotate {successor}")), "{noted}");
    }
    let chosen = meterd(&server, &["keys", "rotate", &key, "--expires=90d"]).await;
    assert_eq!(String::from_utf8_lossy(&chosen.stderr), "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_in_the_place_of_a_key_id_is_answered_with_the_id() {
    let server = TestServer::start().await;
    let key = made(&server, "acme backend").await;
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
async fn a_key_for_nobody_in_particular_is_asked_for_whom_it_is() {
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
fn the_first_key_is_made_in_no_directory_that_was_misspelt() {
    let place = Place::new();
    let create = |more: &[&str]| {
        let mut command =
            place.meterd(&["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
        command.args(more);
        command
    };
    let refused = place.refusal(&mut create(&[]));
    assert!(refused.contains("contains no database of meterd") && refused.contains("--new-database"), "{refused}");
    // The way out that a server names for a directory without a database has the flag.
    let exposed = said(&run(place
        .meterd(&["serve", "--check", "--listen=0.0.0.0:0", "--http-listen=127.0.0.1:0"])
        .arg("--data-dir")
        .arg(place.data_dir())));
    assert!(exposed.contains("--direct --new-database --data-dir"), "{exposed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_key_on_a_database_without_tables_says_that_it_makes_them() {
    let place = Place::new();
    let mut command = place.meterd(&["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
    command.env("DATABASE_URL", empty_database().await).env_remove("METERD_DATA_DIR");
    let first = run(&mut command);
    assert!(
        first.status.success() && String::from_utf8_lossy(&first.stderr).contains("has no tables of meterd yet"),
        "{}",
        said(&first)
    );
    let second = run(&mut command);
    assert_eq!((second.status.success(), second.stderr.len()), (true, 0), "{}", said(&second));
}
