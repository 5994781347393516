//! The server's executable over a fresh database.

use crate::harness::fresh_database;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A server process. It ends with the test.
pub struct Server {
    child: Child,
    /// Such as "http://127.0.0.1:50051".
    pub address: String,
    pub database_url: String,
    /// The token of an admin of all clients, where the server asks for keys.
    pub first_token: Option<String>,
}

fn meterd(database_url: &str) -> Command {
    let executable = std::env::var_os("METERD_WIRE_SERVER").unwrap_or_else(|| env!("CARGO_BIN_EXE_meterd").into());
    let mut command = Command::new(executable);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METERD_")) {
        command.env_remove(name);
    }
    command.env("DATABASE_URL", database_url).stdin(Stdio::null());
    command
}

/// Makes the first key, as an operator does, and gives its token.
fn first_key(database_url: &str) -> String {
    let mut command = meterd(database_url);
    command.args(["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().into()
}

impl Server {
    /// With these flags. No job runs by itself, unless a flag says so.
    pub async fn start(flags: &[String]) -> Self {
        let database_url = fresh_database().await;
        // Without a key it would not start.
        let first_token = flags.iter().any(|flag| flag == "--auth=keys").then(|| first_key(&database_url));
        let mut command = meterd(&database_url);
        for job in meterd_engine::jobs::names() {
            command.env(format!("METERD_SCHEDULE_{}", job.to_uppercase()), "off");
        }
        command.args(["serve", "--allow-non-durable-database", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
        command.args(flags).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut greeting = BufReader::new(child.stdout.take().unwrap());
        // The first address that it greets with is the one of gRPC.
        let address = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            while !line.contains("127.0.0.1:") {
                line.clear();
                assert!(greeting.read_line(&mut line).unwrap() > 0, "the server does not greet");
            }
            // Whatever else it says is read, so that it can say it.
            std::thread::spawn(move || drop(std::io::copy(&mut greeting, &mut std::io::sink())));
            line.split_whitespace().find_map(|word| word.find("127.0.0.1:").map(|at| word[at..].to_string())).unwrap()
        });
        Self { address: format!("http://{}", address.await.unwrap()), child, database_url, first_token }
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let signal: Signal = format!("SIG{name}").parse().unwrap();
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
