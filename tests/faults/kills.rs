//! Kills servers and PostgreSQL with SIGKILL under load.

use crate::deployment::Deployment;
use crate::run::Run;
use crate::scenario;
use rand::RngExt;
use std::time::Duration;

/// Time between two kills.
const PAUSE_MS: std::ops::Range<u64> = 100..500;

scenario! {
    a_killed_server_loses_no_acknowledged_event_and_counts_none_twice => server_kills;
    a_killed_postgres_loses_no_acknowledged_event_and_counts_none_twice => postgres_kills;
}

/// Kills either replica. The replica with the database finds PostgreSQL running when it restarts.
async fn server_kills(run: Run) {
    let kills = run.count(10, 200);
    let deployment = Deployment::start_with_embedded(run, &[]).await;
    let (load, subscribers) = (deployment.load(), deployment.subscribers());
    let mut rng = deployment.run.rng("kills", 0);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        let replica = &deployment.replicas[rng.random_range(0..deployment.replicas.len())];
        replica.kill();
        replica.launch(&deployment.scenario_dir).await;
    }
    let baseline = deployment.resources().await;
    let found = deployment.finish(load, subscribers, baseline).await;
    deployment.run.report(format!("kill -9 of the server × {kills}"), &found);
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    assert!(found.tally.repeats >= kills / 2, "too few kills happened during calls");
    assert!(found.feed.length > kills as i64, "too few kills happened during alerts");
    deployment.stop().await;
}

/// Kills PostgreSQL, which the first replica restarts.
async fn postgres_kills(run: Run) {
    let kills = run.count(6, 100);
    let deployment = Deployment::start_with_embedded(run, &[]).await;
    let (load, subscribers) = (deployment.load(), deployment.subscribers());
    let baseline = deployment.resources().await;
    let mut rng = deployment.run.rng("kills", 0);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        let before = deployment.database.postmaster();
        deployment.database.kill();
        // Wait for a new pid file and an answer.
        while deployment.database.postmaster() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(deployment.database.url().await);
        load.wait_for_progress(1, Duration::from_secs(30)).await;
    }
    let found = deployment.finish(load, subscribers, baseline).await;
    let retried: usize =
        deployment.replicas.iter().map(|replica| replica.count_in_log("will be retried with the same keys")).sum();
    deployment.run.report(format!("kill -9 of PostgreSQL × {kills}"), format!("{found}, {retried} batches retried"));
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    assert!(retried >= kills, "too few kills happened during batches");
    assert!(found.feed.length > kills as i64, "too few kills happened during alerts");
    deployment.stop().await;
}
