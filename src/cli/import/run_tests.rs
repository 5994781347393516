//! Complete imports against a fake server that fails on request.

use clap::Parser;

use super::*;
use crate::cli::import;
use crate::cli::import::fake_server::{Fake, Fault};

#[derive(Parser)]
#[command(args_override_self = true)]
struct Command {
    #[command(flatten)]
    args: ImportArgs,
}

struct Outcome {
    tally: Tally,
    ended: anyhow::Result<FileEnd>,
}

/// Imports one file with two rows per call and one call at a time.
async fn import_file(server: &str, file: &Path, flags: &[&str]) -> Outcome {
    let file_name = file.to_str().unwrap();
    let base = ["import", file_name, "--server", server, "--quiet", "--batch", "2", "--concurrency", "1"];
    let args = Command::try_parse_from([&base[..], flags].concat()).unwrap().args;
    let sender = Sender::connect(&args).await.unwrap();
    let mut run = Run::new(&args, sender).unwrap();
    let ended = run.import_file(file).await;
    Outcome { tally: run.tally.clone(), ended }
}

/// Seven events, two of which are equal.
const FILE: &str = "client_id,service,event_time,units\r\n\
    a,s,2026-11-01,1\r\na,s,2026-11-01,1\r\na,s,2026-11-01,2\r\na,s,2026-11-02,1\r\n\
    a,s,2026-11-03,1\r\na,s,2026-11-04,1\r\na,s,2026-11-05,1\r\n";

struct Setup {
    dir: tempfile::TempDir,
    file: PathBuf,
    fake: Fake,
    server: String,
}

async fn setup(text: &str) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("usage.csv");
    std::fs::write(&file, text).unwrap();
    let fake = Fake::default();
    let server = fake.clone().start().await;
    Setup { dir, file, fake, server }
}

#[tokio::test]
async fn a_second_run_counts_nothing_twice() {
    let Setup { dir, file, fake, server } = setup(FILE).await;
    let first = import_file(&server, &file, &[]).await;
    assert_eq!((first.tally.accepted, first.tally.duplicates, fake.count()), (7, 0, 7));
    let second = import_file(&server, &file, &["--batch", "5", "--concurrency", "3"]).await;
    assert_eq!((second.tally.accepted, second.tally.duplicates, fake.count()), (0, 7, 7));
    let other = import_file(&server, &file, &["--key-prefix", "other"]).await;
    assert_eq!((other.tally.accepted, fake.count()), (7, 14));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the checkpoint is gone");
}

#[tokio::test]
async fn after_temporary_failures_each_row_is_recorded_once() {
    let Setup { dir: _dir, file, fake, server } = setup(FILE).await;
    fake.fail(&[
        Some(Fault::Full),
        Some(Fault::LostResponse),
        None,
        Some(Fault::HalfUnavailable),
        None,
        Some(Fault::Full),
    ]);
    let run = import_file(&server, &file, &[]).await;
    assert_eq!(run.ended.unwrap(), FileEnd::Complete);
    assert_eq!((run.tally.accepted + run.tally.duplicates, run.tally.bad(), fake.count()), (7, 0, 7));
}

#[tokio::test]
async fn a_lost_connection_is_reestablished() {
    let Setup { dir: _dir, file, .. } = setup(FILE).await;
    let fake = Fake::default();
    let server = fake.clone().start_after_lost_connection().await;
    let run = import_file(&server, &file, &[]).await;
    assert_eq!(run.ended.unwrap(), FileEnd::Complete);
    assert_eq!((run.tally.accepted + run.tally.duplicates, fake.count()), (7, 7));
}

#[tokio::test]
async fn an_interrupted_import_is_resumed() {
    let Setup { dir, file, fake, server } = setup(FILE).await;
    fake.fail(&[None, None, Some(Fault::Denied)]);
    let cut = import_file(&server, &file, &[]).await;
    assert!(format!("{:#}", cut.ended.unwrap_err()).contains("PermissionDenied"));
    assert_eq!(fake.count(), 4);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let other = import_file(&server, &file, &["--resume", "--client", "b"]).await;
    assert!(other.ended.unwrap_err().to_string().contains("other flags"));
    let rest = import_file(&server, &file, &["--resume"]).await;
    assert_eq!((rest.tally.resumed_rows, rest.tally.accepted, rest.tally.duplicates), (4, 3, 0));
    assert_eq!((fake.count(), *fake.received.lock().unwrap()), (7, 7));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_interrupted_import_of_a_compressed_array_is_resumed() {
    let Setup { dir, file: _, fake, server } = setup(FILE).await;
    let rows: Vec<String> = (1..=7)
        .map(|day| format!(r#"{{"client_id":"a","service":"s","event_time":"2026-11-0{}","units":1}}"#, day.max(2)))
        .collect();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, format!("[\n{}\n]\n", rows.join(",\n")).as_bytes()).unwrap();
    let file = dir.path().join("usage.json.gz");
    std::fs::write(&file, packed.finish().unwrap()).unwrap();
    fake.fail(&[None, None, Some(Fault::Denied)]);
    import_file(&server, &file, &[]).await.ended.unwrap_err();
    assert_eq!(fake.count(), 4);
    let rest = import_file(&server, &file, &["--resume"]).await;
    assert_eq!((rest.tally.resumed_rows, rest.tally.accepted, rest.tally.duplicates, fake.count()), (4, 3, 0, 7));
    let again = import_file(&server, &file, &[]).await;
    assert_eq!((again.tally.accepted, again.tally.duplicates), (0, 7));
}

#[tokio::test]
async fn retries_have_a_time_limit() {
    let Setup { dir: _dir, file, fake, server } = setup(FILE).await;
    fake.fail(&[Some(Fault::Full); 100]);
    let run = import_file(&server, &file, &["--retry-seconds", "1"]).await;
    let error = format!("{:#}", run.ended.unwrap_err());
    assert!(error.contains("gave up after 1 s") && error.contains("full"), "{error}");
}

#[tokio::test]
async fn bad_rows_are_reported_and_the_others_recorded() {
    let text = FILE.replace("2026-11-02,1", "2026-11-02,x").replace("a,s,2026-11-03", "a,nothing,2026-11-03");
    let Setup { dir, file, fake, server } = setup(&text).await;
    let rejects = dir.path().join("rejects.csv");
    let run = import_file(&server, &file, &["--rejects", rejects.to_str().unwrap()]).await;
    assert_eq!(run.ended.unwrap(), FileEnd::Complete);
    assert_eq!((run.tally.accepted, run.tally.unreadable, run.tally.rejected, fake.count()), (5, 1, 1, 5));
    let written = std::fs::read_to_string(rejects).unwrap();
    let lines: Vec<_> =
        written.lines().skip(1).map(|line| line.split(',').skip(1).take(3).collect::<Vec<_>>()).collect();
    assert_eq!(lines, [["5", "units", "UNREADABLE"], ["6", "", "UNKNOWN_SERVICE"]]);
}

#[tokio::test]
async fn strict_stops_at_the_first_bad_row() {
    let Setup { dir: _dir, file, fake, server } = setup(&FILE.replace("2026-11-01,2", "2026-11-01,x")).await;
    let run = import_file(&server, &file, &["--strict"]).await;
    assert_eq!(run.ended.unwrap(), FileEnd::StoppedAtBadRow);
    assert_eq!(fake.count(), 2);
}

#[tokio::test]
async fn a_dry_run_records_nothing_and_considers_earlier_rows() {
    let text = "client_id,service,event_time,units,idempotency_key\n\
        a,s,2026-11-01,1,k1\na,s,2026-11-01,2,k2\na,nothing,2026-11-01,2,k3\n\
        a,s,2026-11-01,1,k1\na,s,2026-11-01,3,k2\na,s,2026-11-01,2,k2\n";
    let Setup { dir, file, fake, server } = setup(text).await;
    let dry = import_file(&server, &file, &["--dry-run"]).await;
    assert_eq!((fake.count(), *fake.received.lock().unwrap()), (0, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let real = import_file(&server, &file, &[]).await;
    let counts =
        |tally: &Tally| (tally.accepted, tally.duplicates, tally.conflicts, tally.rejected, tally.cost.clone());
    assert_eq!(counts(&dry.tally), counts(&real.tally));
    assert_eq!((dry.tally.accepted, dry.tally.duplicates, dry.tally.conflicts), (2, 2, 1));
}

#[tokio::test]
async fn an_import_fails_with_a_server_that_would_record_validated_events() {
    let Setup { dir: _dir, file, fake, server } = setup(FILE).await;
    *fake.is_old.lock().unwrap() = true;
    for flags in [&["--dry-run"][..], &[]] {
        let error = format!("{:#}", import_file(&server, &file, flags).await.ended.unwrap_err());
        assert!(error.contains("older than this meterd"), "{error}");
    }
    assert_eq!(fake.count(), 0);
}

#[tokio::test]
async fn a_day_is_in_the_time_zone_of_the_client_and_the_key_does_not_depend_on_it() {
    let Setup { dir: _dir, file, fake, server } = setup(FILE).await;
    let day = |fake: &Fake| {
        fake.recorded
            .lock()
            .unwrap()
            .values()
            .filter_map(|event| event.event_time)
            .map(|time| time.seconds)
            .min()
            .unwrap()
    };
    fake.zones.lock().unwrap().insert("a".into(), "America/Los_Angeles".into());
    let run = import_file(&server, &file, &[]).await;
    assert_eq!((run.tally.accepted, run.tally.notes.local_times), (7, 7));
    assert_eq!(run.tally.zones, ["America/Los_Angeles"].into());
    assert_eq!(day(&fake), 1_793_516_400, "2026-11-01T07:00:00Z");
    fake.zones.lock().unwrap().insert("a".into(), "Asia/Tokyo".into());
    let again = import_file(&server, &file, &[]).await;
    assert_eq!((again.tally.accepted, again.tally.conflicts, fake.count()), (0, 7, 7));
}

#[tokio::test]
async fn strict_reads_every_file_before_it_sends_a_row() {
    let Setup { dir: _dir, file, fake, server } = setup(&FILE.replace("2026-11-05,1", "2026-11-05,x")).await;
    let arguments = ["import", file.to_str().unwrap(), "--server", &server, "--quiet", "--strict", "--batch", "1"];
    let args = Command::try_parse_from(arguments).unwrap().args;
    let code = import::run(args).await.unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::FAILURE));
    assert_eq!((fake.count(), *fake.received.lock().unwrap()), (0, 0));
}

#[tokio::test]
async fn the_command_fails_if_a_row_is_not_recorded() {
    let Setup { dir: _dir, file, fake: _, server } = setup(&FILE.replace("2026-11-01,2", "2026-11-01,x")).await;
    let arguments = ["import", file.to_str().unwrap(), "--server", &server, "--quiet"];
    let args = Command::try_parse_from(arguments).unwrap().args;
    let code = import::run(args).await.unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::FAILURE));
}

#[tokio::test]
async fn an_export_is_imported_in_both_formats() {
    let text = "{\"client_id\":\"a\",\"service\":\"s\",\"event_time\":\"2026-11-01T00:00:00Z\",\"idempotency_key\":\"k1\",\"event_id\":\"e\"}\n";
    let Setup { dir, file: _, fake, server } = setup(FILE).await;
    let file = dir.path().join("usage.ndjson");
    std::fs::write(&file, text).unwrap();
    let run = import_file(&server, &file, &[]).await;
    assert_eq!((run.tally.accepted, fake.recorded.lock().unwrap().contains_key("k1")), (1, true));
}

#[tokio::test]
async fn parts_can_be_resumed_only_with_all_parts() {
    let Setup { dir, file: first, fake, server } = setup(FILE).await;
    let [second, third] = ["b.csv", "c.csv"].map(|name| dir.path().join(name));
    std::fs::write(&second, FILE).unwrap();
    let import = |files: Vec<PathBuf>, flags: &'static [&'static str]| {
        let server = server.clone();
        async move {
            let base =
                ["import", "--server", &server, "--quiet", "--batch", "2", "--concurrency", "1", "--split-files"];
            let files = files.iter().map(|file| file.to_str().unwrap());
            let args = base.into_iter().chain(flags.iter().copied()).chain(files).collect::<Vec<_>>();
            import::run(Command::try_parse_from(args).unwrap().args).await
        }
    };
    // The first file needs four calls; the second file is interrupted in its third call.
    fake.fail(&[None, None, None, None, None, None, Some(Fault::Denied)]);
    import(vec![first.clone(), second.clone()], &[]).await.unwrap_err();
    assert_eq!(fake.count(), 11);
    let error = import(vec![second.clone()], &["--resume"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("--split-files needs all parts in one run"), "{error:#}");
    std::fs::write(&third, FILE).unwrap();
    let error = import(vec![second.clone(), third], &["--resume"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("other flags or other parts"), "{error:#}");
    import(vec![first, second], &["--resume"]).await.unwrap();
    assert_eq!(fake.count(), 14);
}

#[tokio::test]
async fn a_file_that_changed_after_its_check_is_not_sent() {
    let Setup { dir: _dir, file, fake, server } = setup(FILE).await;
    let args = ["import", file.to_str().unwrap(), "--server", &server, "--quiet", "--strict"];
    let args = Command::try_parse_from(args).unwrap().args;
    let sender = Sender::connect(&args).await.unwrap();
    let mut run = Run::new(&args, sender).unwrap();
    assert!(run.check_files().await.unwrap());
    std::fs::write(&file, format!("{FILE}a,s,2026-11-06,1\r\n")).unwrap();
    let error = run.import_file(&file).await.unwrap_err().to_string();
    assert!(error.contains("changed after --strict had checked it") && fake.count() == 0, "{error}");
}
