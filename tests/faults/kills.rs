//! kill -9 of servers and of PostgreSQL, in the middle of load.

use crate::run::Run;
use crate::scenario;
use crate::world::World;
use rand::RngExt;
use std::time::Duration;

/// Between two kills.
const PAUSE_MS: std::ops::Range<u64> = 100..500;

scenario! {
    a_killed_server_loses_nothing_acknowledged_and_counts_nothing_twice => server_kills;
    a_killed_postgres_loses_nothing_acknowledged_and_counts_nothing_twice => postgres_kills;
}

/// Either replica: the one that keeps the database finds it running when it comes back.
async fn server_kills(run: Run) {
    let kills = run.count(10, 200);
    let world = World::start_with_keeper(run).await;
    let (load, subscribers) = (world.load(), world.subscribers());
    let mut dice = world.run.dice("kills", 0);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(dice.random_range(PAUSE_MS))).await;
        let replica = &world.replicas[dice.random_range(0..world.replicas.len())];
        replica.kill();
        replica.launch(&world.place).await;
    }
    let held = world.held().await;
    let found = world.finish(load, subscribers, held).await;
    world.run.report(format!("kill -9 of the server × {kills}"), &found);
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    assert!(found.tally.repeats >= kills / 2, "the kills must have been in the middle of calls");
    assert!(found.chains.length > kills as i64, "and of alerts");
    world.stop().await;
}

/// The first replica brings it back.
async fn postgres_kills(run: Run) {
    let kills = run.count(6, 100);
    let world = World::start_with_keeper(run).await;
    let (load, subscribers) = (world.load(), world.subscribers());
    let held = world.held().await;
    let mut dice = world.run.dice("kills", 0);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(dice.random_range(PAUSE_MS))).await;
        let before = world.database.postmaster();
        world.database.kill();
        // A pid file of its own, and an answer.
        while world.database.postmaster() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(world.database.url().await);
        load.goes_on(1, Duration::from_secs(30)).await;
    }
    let found = world.finish(load, subscribers, held).await;
    let retried: usize = world.replicas.iter().map(|replica| replica.said("is tried again with the same keys")).sum();
    world.run.report(format!("kill -9 of PostgreSQL × {kills}"), format!("{found}, {retried} batches retried"));
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    assert!(retried >= kills, "the kills must have been in the middle of batches");
    assert!(found.chains.length > kills as i64, "and of alerts");
    world.stop().await;
}
