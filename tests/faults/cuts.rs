//! Networks that are interrupted: connections are closed, stalled, half closed, reset, or slowed down to a trickle.

use crate::deployment::Deployment;
use crate::proxy::{MODES, Mode, Proxy};
use crate::replica::Replica;
use crate::run::Run;
use crate::scenario;
use rand::RngExt;
use std::time::Duration;

/// Duration of an interruption, and of one in ten interruptions. The latter is longer than the keepalive of a
/// connection.
const CUT_MS: std::ops::Range<u64> = 20..400;
const LONG_CUT_MS: std::ops::Range<u64> = 1_000..5_000;
/// Time between two interruptions.
const PAUSE_MS: std::ops::Range<u64> = 20..300;

scenario! {
    an_interrupted_network_to_callers_loses_no_event_and_counts_none_twice =>
        |run| cuts(run, "of the callers", |replica| &replica.proxy);
    an_interrupted_network_to_the_database_loses_no_event_and_counts_none_twice =>
        |run| cuts(run, "of the database", |replica| replica.database_proxy.as_ref().expect("the replica has a database proxy"));
}

async fn cuts(run: Run, leg: &str, proxy: fn(&Replica) -> &Proxy) {
    let cuts = run.count(15, 200);
    let deployment = Deployment::start(run).await;
    let (load, subscribers) = (deployment.load(), deployment.subscribers());
    let baseline = deployment.resources().await;
    let mut rng = deployment.run.rng("cuts", 0);
    for number in 0..cuts {
        tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        let replica = &deployment.replicas[rng.random_range(0..deployment.replicas.len())];
        let mode = Mode::of(number, &mut rng);
        let range = if rng.random_ratio(1, 10) { LONG_CUT_MS } else { CUT_MS };
        proxy(replica).apply(mode, Duration::from_millis(rng.random_range(range))).await;
    }
    let found = deployment.finish(load, subscribers, baseline).await;
    deployment.run.report(format!("network {leg} cut × {cuts} in {MODES} ways"), &found);
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    let retried: usize =
        deployment.replicas.iter().map(|replica| replica.count_in_log("will be retried with the same keys")).sum();
    assert!(found.tally.repeats + retried >= cuts / 2, "too few interruptions happened during calls");
    assert!(found.feed.length > cuts as i64, "too few interruptions happened during alerts");
    deployment.stop().await;
}
