use super::*;
use crate::cli::import::fields::MappingArgs;
use crate::cli::import::keys::content_hash;
use crate::cli::import::rows::{Format, Layout};

fn plan(header: &[String], batch_events_max: usize) -> ReadPlan {
    ReadPlan {
        mapping: Mapping::for_csv(&MappingArgs::default(), header).unwrap(),
        rules: EventRules::default(),
        keys: Keys { maker: Arc::new(Mutex::new(KeyMaker::new("import"))), others: None, file: 0 },
        batch_events_max,
        keep_text: true,
        source: None,
        resume: None,
    }
}

fn read(text: &str, change: impl FnOnce(&mut ReadPlan)) -> anyhow::Result<Vec<Batch>> {
    let mut reader = RowReader::new(
        text.as_bytes(),
        Layout { format: Format::Csv, delimiter: b',', skip_lines: 0, quotes: Default::default() },
    )?;
    let mut plan = plan(&reader.header(), 2);
    change(&mut plan);
    let mut batches = Vec::new();
    read_batches(&mut reader, &plan, |batch| {
        batches.push(batch);
        true
    })?;
    Ok(batches)
}

fn keys(batches: &[Batch]) -> Vec<String> {
    batches.iter().flat_map(|batch| &batch.events).map(|event| event.idempotency_key.clone()).collect()
}

const FILE: &str = "client_id,service,event_time,units\n\
    a,s,2026-11-01,1\na,s,2026-11-01,1\na,s,2026-11-01,x\na,s,2026-11-02,1\na,s,2026-11-01,1.0\na,s,2026-11-03,1\n";

#[test]
fn batches_contain_rows_with_their_lines_and_bad_rows() {
    let batches = read(FILE, |_| {}).unwrap();
    let sizes: Vec<_> = batches.iter().map(|batch| (batch.number, batch.events.len(), batch.bad_rows.len())).collect();
    assert_eq!(sizes, [(0, 2, 0), (1, 2, 1), (2, 1, 0)]);
    let bad = &batches[1].bad_rows[0];
    assert_eq!((bad.line, bad.column.as_str(), bad.text.as_str()), (4, "units", "a,s,2026-11-01,x"));
    assert_eq!(batches[2].origins[0].line, 7);
    assert_eq!(batches[2].end.offset, FILE.len() as u64);
}

#[test]
fn keys_do_not_depend_on_the_batch_size() {
    let small = keys(&read(FILE, |_| {}).unwrap());
    let large = keys(&read(FILE, |plan| plan.batch_events_max = 100).unwrap());
    assert_eq!(small, large);
    assert!(small[3].ends_with("-3"), "1 and 1.0 are equal: {small:?}");
    assert_eq!(small.iter().collect::<std::collections::HashSet<_>>().len(), small.len());
}

#[test]
fn strict_stops_at_the_first_bad_row() {
    let batches = read(FILE, |plan| plan.rules.strict = true).unwrap();
    assert_eq!(batches.last().unwrap().bad_rows.len(), 1);
    assert_eq!(keys(&batches).len(), 2);
}

#[test]
fn a_resumed_run_continues_with_the_same_keys() {
    let whole = read(FILE, |_| {}).unwrap();
    let checkpoint = Checkpoint::at(&whole[0].end, "m", 0);
    let rest = read(FILE, |plan| plan.resume = Some(checkpoint)).unwrap();
    assert_eq!(keys(&rest), keys(&whole)[2..]);
    assert_eq!(rest[0].bad_rows.len(), 1);
}

#[test]
fn an_import_is_not_resumed_if_the_file_changed_before_the_checkpoint() {
    let whole = read(FILE, |_| {}).unwrap();
    let checkpoint = Checkpoint::at(&whole[1].end, "m", 0);
    let changed = FILE.replacen("11-01", "11-09", 1);
    let error = read(&changed, |plan| plan.resume = Some(checkpoint)).unwrap_err();
    assert!(error.to_string().contains("differs from the file of the checkpoint"), "{error}");
}

#[test]
fn keys_depend_on_the_text_of_the_row_and_not_on_the_time_zone_of_the_client() {
    let row = |row: &str| {
        let file = format!("client_id,service,operation,units,event_time\n{row}\n");
        keys(&read(&file, |plan| plan.rules.empty_units = Some("1".into())).unwrap())
    };
    let event = |operation: &str, units: &str| UsageEvent {
        client_id: "a".into(),
        service: "s".into(),
        operation: operation.into(),
        units: units.into(),
        event_time: Some(prost_types::Timestamp { seconds: 1_793_491_200, nanos: 0 }),
        ..UsageEvent::default()
    };
    let key = |event: UsageEvent| vec![format!("import-{}-1", hex(&content_hash(&event)))];
    assert_eq!(row("a,s,o,1,2026-11-01"), key(event("o", "1")));
    assert_eq!(row("a,s,o,1, 2026-11-01T00:00 "), key(event("o", "1")));
    assert_eq!(row("a,s, o,1,2026-11-01"), key(event(" o", "1")));
    assert_eq!(row("a,s,o,,2026-11-01"), key(event("o", "")));
}

#[test]
fn equal_rows_of_two_files_are_repeats_unless_the_files_are_parts() {
    let others = Some(Arc::default());
    let maker = Arc::new(Mutex::new(KeyMaker::new("import")));
    let repeats = |file, others: &Option<Arc<Mutex<OtherFiles>>>| {
        let batches = read(FILE, |plan| (plan.keys.others, plan.keys.file) = (others.clone(), file)).unwrap();
        let repeats: u64 = batches.iter().map(|batch| batch.notes.repeats_of_other_files).sum();
        (repeats, batches.iter().flat_map(|batch| batch.repeats_of.clone()).collect::<BTreeSet<u32>>())
    };
    assert_eq!(repeats(0, &others), (0, BTreeSet::new()));
    assert_eq!(repeats(1, &others), (5, BTreeSet::from([0])));
    let parts = || keys(&read(FILE, |plan| plan.keys.maker = maker.clone()).unwrap());
    let (first, second) = (parts(), parts());
    assert!(first.iter().all(|key| !second.contains(key)));
    let strict = read(FILE, |plan| (plan.keys.others, plan.keys.file, plan.rules.strict) = (others.clone(), 1, true));
    assert!(strict.unwrap()[0].bad_rows[0].message.contains("--split-files"));
}

const TEXTS: &str = "client_id,service,event_time,units,note\n";

#[test]
fn rows_inside_an_open_quote_are_reported() {
    let row = "a,s,2026-11-01,1";
    let batches = read(&format!("{TEXTS}{row},\"open\n{row},x\n{row},y\"\n{row},z\n"), |_| {}).unwrap();
    assert_eq!((batches[0].events.len(), batches[0].bad_rows.len()), (1, 1));
    let bad = &batches[0].bad_rows[0];
    assert!(
        bad.line == 2 && bad.message.contains("the first in line 3: a quote in line 2 may not be closed"),
        "{bad:?}"
    );
    // Lines of text are not mistaken for rows.
    let text = "\"dear, a, s, 1, x\nyours,a,s,2,y\"";
    let batches = read(&format!("{TEXTS}{row},{text}\n"), |_| {}).unwrap();
    assert_eq!((batches[0].events.len(), batches[0].bad_rows.len()), (1, 0));
}

#[test]
fn repeated_headers_are_counted() {
    let batches =
        read("client_id,service,event_time\na,s,2026-11-01\nclient_id,service,event_time\nb,s,2026-11-01\n", |_| {});
    let batch = &batches.unwrap()[0];
    assert_eq!((batch.events.len(), batch.bad_rows.len(), batch.notes.repeated_headers), (2, 0, 1));
}

#[test]
fn an_incomplete_row_of_a_file_that_is_being_written_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usage.csv");
    let text = "client_id,service,event_time,units\na,s,2026-11-01,10\na,s,2026-11-01,1";
    std::fs::write(&path, text).unwrap();
    let version = FileVersion::of(&path).unwrap();
    let rows = |version: FileVersion| read(text, |plan| plan.source = Some((path.clone(), version))).unwrap();
    assert_eq!(rows(version.clone())[0].events.len(), 2);
    std::fs::write(&path, format!("{text}5\n")).unwrap();
    let batch = &rows(version)[0];
    assert_eq!((batch.events.len(), batch.bad_rows.len()), (1, 1));
    assert!(batch.bad_rows[0].message.contains("is being written"), "{}", batch.bad_rows[0].message);
}
