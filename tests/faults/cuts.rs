//! Networks that are cut: dropped, stalled, half closed, reset, and down to a trickle.

use crate::proxy::{MODES, Mode, Proxy};
use crate::replica::Replica;
use crate::run::Run;
use crate::scenario;
use crate::world::World;
use rand::RngExt;
use std::time::Duration;

/// How long a cut lasts, and one in ten: longer than a connection's keepalive.
const CUT_MS: std::ops::Range<u64> = 20..400;
const LONG_CUT_MS: std::ops::Range<u64> = 1_000..5_000;
/// Between two cuts.
const PAUSE_MS: std::ops::Range<u64> = 20..300;

scenario! {
    a_cut_network_to_the_callers_loses_nothing_and_counts_nothing_twice =>
        |run| cuts(run, "of the callers", |replica| &replica.proxy);
    a_cut_network_to_the_database_loses_nothing_and_counts_nothing_twice =>
        |run| cuts(run, "of the database", |replica| replica.database_proxy.as_ref().expect("it has one"));
}

async fn cuts(run: Run, leg: &str, proxy: fn(&Replica) -> &Proxy) {
    let cuts = run.count(15, 200);
    let world = World::start(run).await;
    let (load, subscribers) = (world.load(), world.subscribers());
    let held = world.held().await;
    let mut dice = world.run.dice("cuts", 0);
    for number in 0..cuts {
        tokio::time::sleep(Duration::from_millis(dice.random_range(PAUSE_MS))).await;
        let replica = &world.replicas[dice.random_range(0..world.replicas.len())];
        let mode = Mode::of(number, &mut dice);
        let range = if dice.random_ratio(1, 10) { LONG_CUT_MS } else { CUT_MS };
        proxy(replica).apply(mode, Duration::from_millis(dice.random_range(range))).await;
    }
    let found = world.finish(load, subscribers, held).await;
    world.run.report(format!("network {leg} cut × {cuts} in {MODES} ways"), &found);
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    let retried: usize = world.replicas.iter().map(|replica| replica.said("is tried again with the same keys")).sum();
    assert!(found.tally.repeats + retried >= cuts / 2, "the cuts must have been in the middle of work");
    assert!(found.chains.length > cuts as i64, "and of alerts");
    world.stop().await;
}
