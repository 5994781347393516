//! Settings: wrong ones are rejected before anything starts. They can be checked and printed.

use crate::harness::*;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A directory with a settings file and a data directory that must not be created.
pub struct SettingsDir(TempDir);

impl SettingsDir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.0.path().join("data")
    }

    pub fn file(&self, text: &str) -> PathBuf {
        let file = self.0.path().join("meterd.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    pub fn meterd(&self, arguments: &[&str]) -> Command {
        let mut command = meterd(arguments);
        command.env("METERD_DATA_DIR", self.data_dir());
        command
    }

    /// Runs a server that must not start, and returns its error.
    pub fn start_error(&self, command: &mut Command) -> String {
        let output = run(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{command:?}: {error}");
        assert!(!self.data_dir().exists(), "something was started: {error}");
        error
    }

    pub fn serve_with(&self, text: &str) -> String {
        let file = self.file(text);
        self.start_error(self.meterd(&["serve"]).arg("--config").arg(file))
    }
}

fn meterd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METERD_")) {
        command.env_remove(name);
    }
    command.args(arguments).env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

pub fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn output_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

pub fn listen_on(port: u16) -> [String; 2] {
    [format!("--listen=127.0.0.1:{port}"), "--http-listen=127.0.0.1:0".into()]
}

#[test]
fn a_table_in_a_settings_file_is_rejected() {
    let dir = SettingsDir::new();
    for (file, line, key) in [
        ("[server]\nauth = \"keys\"\n", 1, "server"),
        ("writers = 2\n\n[server]\nauth = \"keys\"\n", 3, "server"),
        ("[auth]\nauth = \"keys\"\n", 1, "auth"),
        ("[meterd.server]\nauth = \"keys\"\n", 1, "meterd"),
        ("auth.mode = \"keys\"\n", 1, "auth"),
        ("auth = { mode = \"keys\" }\n", 1, "auth"),
        ("[[server]]\nauth = \"keys\"\n", 1, "server"),
        ("[client]\n", 1, "client"),
    ] {
        let rejected = dir.serve_with(file);
        assert!(rejected.contains(&format!("meterd.toml, line {line}: {key}: is a table")), "{file}: {rejected}");
    }
    assert!(dir.serve_with("[server]\nauth = \"keys\"\n").contains("such as `auth = …`"));
}

#[test]
fn every_wrong_line_of_a_settings_file_is_reported_with_a_similar_key() {
    let dir = SettingsDir::new();
    let wrong = [
        ("auht = \"keys\"", "auht: is not a setting of meterd; did you mean auth?"),
        ("METERD_REFLECTION = \"off\"", "METERD_REFLECTION: is not a setting of meterd; did you mean reflection?"),
        ("Health = \"off\"", "Health: is not a setting of meterd; did you mean health?"),
        ("writers = \"2\"", "writers: must be a whole number, without quotes, got a string"),
        ("calls_max = 2.5", "calls_max: must be a whole number, without quotes, got a number with a decimal point"),
        ("insecure_listen = \"true\"", "insecure_listen: must be true or false, without quotes, got a string"),
        ("listen = 50051", "listen: must be a string in quotes, got a whole number"),
        ("http-listen = [\"127.0.0.1:1\"]", "http-listen: must be a string in quotes, got a list"),
        ("currency = 2026-11-01", "currency: must be a string in quotes, got a time"),
        ("web_origins = \"https://a.example\"", "web_origins: must be a list of strings"),
        ("jwt_algorithms = [256]", "jwt_algorithms: must be a list of strings"),
        ("retry_seconds = 0", "retry_seconds: must be 1 to 3600, got \"0\""),
        ("unknown_client = \"refuse\"", "unknown_client: must be one of create, reject, got \"refuse\""),
        ("default_time_zone = \"Berlin\"", "default_time_zone: must be an IANA time zone such as Europe/Berlin"),
        ("schedule_partitions = \"never\"", "schedule_partitions: must be a cron expression"),
        ("log = \"nonsense\"", "log: must be a level"),
        ("config = \"other.toml\"", "config: a settings file cannot include another settings file"),
        ("month = \"2026-11\"", "month: is an argument of `meterd "),
        ("direct = true", "direct: is an argument of `meterd keys create`, not a setting"),
        ("smtp_url = 25", "smtp_url: must be a string in quotes, got a whole number"),
        ("stop-timeout-seconds = 5\nstop_timeout_seconds = 6", "stop_timeout_seconds: is already set on line 21"),
    ];
    let rejected = dir.serve_with(&wrong.map(|(line, _)| line).join("\n"));
    let lines: Vec<_> = rejected.lines().collect();
    assert_eq!(lines.len(), wrong.len(), "{rejected}");
    for (index, (line, expected)) in lines.iter().zip(wrong.map(|(_, expected)| expected)).enumerate() {
        let number = if index == wrong.len() - 1 { index + 2 } else { index + 1 };
        assert!(line.contains(&format!("meterd.toml, line {number}: {expected}")), "{line}");
    }
}

#[test]
fn settings_of_client_commands_are_rejected_by_the_server() {
    let dir = SettingsDir::new();
    let rejected = dir.serve_with("auth = \"keys\"\nserver = \"https://meterd.example\"\napi_key = \"mtr_hunter2\"\n");
    for key in ["line 2: server", "line 3: api_key"] {
        assert!(rejected.contains(&format!("{key}: is a setting of other commands")), "{rejected}");
    }
    assert!(!rejected.contains("hunter2"), "{rejected}");
    // A client may use the settings file of its server.
    let file = dir.file("auth = \"keys\"\nserver = \"127.0.0.1:1\"\n");
    let usage = run(dir.meterd(&["usage", "acme"]).arg("--config").arg(file));
    assert!(output_of(&usage).contains("http://127.0.0.1:1"), "{}", output_of(&usage));
}

#[test]
fn a_misspelled_variable_is_rejected_by_server_commands_and_a_warning_of_others() {
    let dir = SettingsDir::new();
    for (name, suggested) in [
        ("METERD_AUHT", "METERD_AUTH"),
        ("METERED_AUTH", "METERD_AUTH"),
        ("meterd_auth", "METERD_AUTH"),
        ("METERD_DATABASE_URL", "DATABASE_URL"),
    ] {
        for command in ["serve", "migrate", "verify"] {
            let rejected = dir.start_error(dir.meterd(&[command]).env(name, "keys"));
            assert!(rejected.contains(name) && rejected.contains(&format!("did you mean {suggested}?")), "{rejected}");
        }
        let warned = output_of(&run(dir.meterd(&["usage", "acme", "--server=127.0.0.1:1"]).env(name, "keys")));
        assert!(warned.starts_with(&format!("warning: {name}")) && warned.contains("no server answers"), "{warned}");
    }
    // Variables that Kubernetes sets for a service named meterd.
    let mut command = dir.meterd(&["serve", "--check", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
    command.envs([("METERD_SERVICE_HOST", "10.0.0.1"), ("METERD_PORT", "tcp://10.0.0.1:50051")]);
    assert!(run(&mut command).status.success());
}

#[test]
fn a_filter_that_logs_nothing_is_rejected() {
    for filter in ["nonsense", "infos", "metred=debug", "meterd=debgu"] {
        let rejected = run(&mut meterd(&["serve", "--check", "--log", filter]));
        assert!(
            !rejected.status.success() && output_of(&rejected).contains("must be a level"),
            "{}",
            output_of(&rejected)
        );
    }
}

#[test]
fn all_wrong_settings_are_reported_at_once_before_a_database_is_created() {
    let dir = SettingsDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let same = format!("127.0.0.1:{port}");
    let wrong: [(&[&str], &str); 16] = [
        (&["--listen=0.0.0.0:0"], "is not a loopback address"),
        (&["--listen=127.0.0.1:7001", "--http-listen=127.0.0.1:7001"], "use the same port"),
        (&["--listen=127.0.0.1:7001", "--http-listen=0.0.0.0:7001", "--insecure-listen"], "use the same port"),
        (&["--listen", &same], "cannot listen on this address (is another server running?)"),
        (&["--smtp-url=smtp://u:hunter2@localhost"], "--smtp-from"),
        (&["--smtp-url=u:hunter2@localhost", "--smtp-from=a@b.example"], "--smtp-url"),
        (&["--smtp-url=smtp://localhost", "--smtp-from=nobody"], "--smtp-from"),
        (&["--twilio-auth-token=hunter2"], "--twilio-from"),
        (&["--jwt-issuer=https://id.example.com", "--jwt-audience=meterd"], "--auth keys"),
        (
            &["--jwt-issuer=http://id.example.com", "--jwt-audience=meterd", "--auth=keys"],
            "must be a URL that begins with https://",
        ),
        (&["--tls-cert=/nonexistent/cert.pem", "--tls-key=/nonexistent/key.pem"], "--tls-cert /nonexistent/cert.pem"),
        (&["--key-retention-days=30"], "--key-retention-days 30"),
        (&["--postgres-download-url=nonsense"], "--postgres-download-url nonsense: must be a URL"),
        (&["--postgres-bin-dir=/tmp"], "--postgres-bin-dir /tmp contains no usable PostgreSQL"),
        (&["--database-url=postgres://localhost:99999/meterd"], "DATABASE_URL (--database-url): invalid port number\n"),
        (&["--database-url=mysql://u:hunter2@localhost/meterd"], "DATABASE_URL (--database-url): must be a URL"),
    ];
    for (flags, expected) in wrong {
        for check in [&["serve"][..], &["serve", "--check"]] {
            let mut command = dir.meterd(check);
            command.args(flags);
            for flag in ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"] {
                if !flags.iter().any(|given| given.starts_with(flag.split('=').next().unwrap())) {
                    command.arg(flag);
                }
            }
            let rejected = dir.start_error(&mut command);
            assert!(rejected.contains(expected) && !rejected.contains("hunter2"), "{flags:?}: {rejected}");
        }
    }
    let all = dir.start_error(dir.meterd(&["serve", "--check", "--smtp-from=x", "--tls-key=x"]).args(listen_on(0)));
    assert!(all.contains("2 settings are wrong") && all.contains("--smtp-from") && all.contains("--tls-key"), "{all}");
}

#[test]
fn a_check_starts_nothing_and_returns_an_exit_code() {
    let dir = SettingsDir::new();
    let fine = run(dir.meterd(&["serve", "--check"]).args(listen_on(0)));
    assert_eq!((fine.status.code(), output_of(&fine).as_str()), (Some(0), "the settings are valid\n"));
    assert!(!dir.data_dir().exists());
    for wrong in [&["--writers=0"][..], &["--wirters=2"], &["--auth=key"], &["--log=nonsense"]] {
        dir.start_error(dir.meterd(&["serve", "--check"]).args(wrong));
    }
    dir.start_error(dir.meterd(&["serve", "--check"]).env("METERD_WRITERS", "many"));
}

/// Returns the printed value of a setting and its origin.
fn printed<'a>(config: &'a str, id: &str) -> &'a str {
    let line = config.lines().find(|line| line.trim_start_matches("# ").split(' ').next() == Some(id));
    line.unwrap_or_else(|| panic!("no {id} in {config}"))
}

#[test]
fn printed_settings_have_origins_and_no_secrets_and_can_be_read_again() {
    let dir = SettingsDir::new();
    let origins = "[\"https://a.example\", \"http://b.example:8080\"]";
    let file = dir.file(&format!(
        "writers = 3\nretry_seconds = 7\nweb_origins = {origins}\nsmtp_from = \"a \\\"b\\\" <c@d.example>\"\n"
    ));
    let print = |command: &mut Command| {
        let output = run(command);
        assert!(output.status.success(), "{}", output_of(&output));
        text(&output.stdout)
    };
    let mut command = dir.meterd(&["serve", "--print-config", "--config", file.to_str().unwrap()]);
    command.envs([("METERD_RETRY_SECONDS", "8"), ("METERD_SMTP_URL", "smtp://u:hunter2@localhost")]);
    command.env("DATABASE_URL", "postgres://u:hunter2@localhost/meterd");
    let config = print(command.args(["--twilio-api-url=https://u:hunter2@api.example", "--auth=keys"]));
    assert!(!config.contains("hunter2"), "{config}");
    let line = |number| format!("  # file {}, line {number}", file.display());
    for (id, expected) in [
        ("auth", "auth = \"keys\"  # flag --auth".to_owned()),
        ("retry_seconds", "retry_seconds = 8  # environment METERD_RETRY_SECONDS".into()),
        ("writers", format!("writers = 3{}", line(1))),
        ("web_origins", format!("web_origins = {origins}{}", line(3))),
        ("currency", "currency = \"USD\"  # default".into()),
        ("insecure_listen", "insecure_listen = false  # default".into()),
        ("jwt_issuer", "# jwt_issuer is not set".into()),
        ("smtp_url", "smtp_url = \"(not shown)\"  # environment METERD_SMTP_URL".into()),
        ("database_url", "database_url = \"(not shown)\"  # environment DATABASE_URL".into()),
        ("twilio_api_url", "twilio_api_url = \"(not shown)\"  # flag --twilio-api-url".into()),
    ] {
        assert_eq!(printed(&config, id), expected);
    }
    assert!(!dir.data_dir().exists());

    let again = dir.file(&config);
    let values = |config: &str| {
        let lines = config.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let reread = print(&mut dir.meterd(&["serve", "--print-config", "--config", again.to_str().unwrap()]));
    assert_eq!(values(&reread), values(&config));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settings_file_applies_to_subcommands() {
    let server = TestServer::start().await;
    let dir = SettingsDir::new();
    let file = dir.file(&format!("database_url = \"{}\"\n", server.database_url));
    let mut command = dir.meterd(&["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
    let created = run(command.arg("--config").arg(&file));
    assert!(created.status.success(), "{}", output_of(&created));
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM api_keys").fetch_one(&server.pool).await.unwrap();
    assert_eq!(keys, 1, "the key must be in the database of the settings file");
    assert!(!Path::new(&dir.data_dir()).exists());
    server.stop().await;
}
