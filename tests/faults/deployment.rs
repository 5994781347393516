//! The system under test: a durable database and two replicas.

use crate::check::{Checked, check};
use crate::database::Database;
use crate::journal::Journal;
use crate::load::{Load, Tally};
use crate::replica::Replica;
use crate::resources::Resources;
use crate::run::Run;
use crate::scenario_dir::ScenarioDir;
use crate::subscribers::{FeedReport, Subscribers};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::{AlertPolicy, UpdateAlertPolicyRequest};
use prost_types::FieldMask;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// Flags of all replicas. With these, subscribers soon detect a dead stream, and generations of idempotency keys are small, so
/// that a repeated event often belongs to a closed generation.
const FLAGS: [&str; 5] = [
    "--alert-heartbeat-ms=500",
    "--log=warn,meterd=info",
    "--schedule-key-generations=* * * * * *",
    "--schedule-pending-usage=* * * * * *",
    "--key-generation-bytes=100000",
];

/// Returns these flags, and the flags of all replicas with other names.
fn all_flags<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    fn name(flag: &str) -> &str {
        flag.split('=').next().unwrap_or(flag)
    }
    let is_replaced = |default: &&str| flags.iter().any(|flag| name(flag) == name(default));
    FLAGS.into_iter().filter(|default| !is_replaced(default)).chain(flags.iter().copied()).collect()
}

/// After this time under load, a process has all the resources that it needs.
const WARM_UP: Duration = Duration::from_secs(1);
const SUBSCRIBERS: usize = 4;

/// The system under test.
pub struct Deployment {
    pub run: Run,
    pub replicas: Vec<Replica>,
    pub database: Database,
    pub journal: Arc<Journal>,
    /// Dropped last.
    pub scenario_dir: ScenarioDir,
}

/// The results of a scenario.
pub struct Found {
    pub tally: Tally,
    pub feed: FeedReport,
    pub checked: Checked,
}

impl Deployment {
    /// Starts both replicas on a database that the test runs, each through a proxy.
    pub async fn start(run: Run) -> Self {
        let scenario_dir = ScenarioDir::new();
        let database = match Database::given(&scenario_dir) {
            Some(given) => given,
            None => Database::start(&scenario_dir).await,
        };
        Self::start_on(run, scenario_dir, database, &[]).await
    }

    /// Starts both replicas on this database, each through a proxy.
    async fn start_on(run: Run, scenario_dir: ScenarioDir, database: Database, flags: &[&str]) -> Self {
        let (flags, mut replicas) = (all_flags(flags), vec![]);
        for number in 0..2 {
            replicas.push(Replica::on_database(&scenario_dir, number, &database, &flags).await);
        }
        Self::assemble(run, scenario_dir, database, replicas).await
    }

    /// Starts the first replica with its own database, and the second replica on the same database. A flag
    /// replaces the one of `FLAGS` with the same name.
    pub async fn start_with_embedded(run: Run, flags: &[&str]) -> Self {
        let scenario_dir = ScenarioDir::new();
        if let Some(given) = Database::given(&scenario_dir) {
            return Self::start_on(run, scenario_dir, given, flags).await;
        }
        let data_dir = scenario_dir.path("data");
        Self::start_in(run, scenario_dir, data_dir, flags).await
    }

    /// Like [`Self::start_with_embedded`], with this data directory.
    pub async fn start_in(run: Run, scenario_dir: ScenarioDir, data_dir: PathBuf, flags: &[&str]) -> Self {
        let flags = all_flags(flags);
        let first = Replica::with_data_dir(&scenario_dir, &data_dir, &flags).await;
        let database = Database::of_replica(data_dir);
        database.show_faults().await;
        let other = Replica::on_database(&scenario_dir, 1, &database, &flags).await;
        Self::assemble(run, scenario_dir, database, vec![first, other]).await
    }

    async fn assemble(run: Run, scenario_dir: ScenarioDir, database: Database, replicas: Vec<Replica>) -> Self {
        let journal = Arc::new(Journal::create(&scenario_dir.path("journal")));
        let deployment = Self { run, replicas, database, journal, scenario_dir };
        lower_thresholds(&deployment.addresses()[0]).await;
        deployment
    }

    /// Returns the addresses for callers.
    pub fn addresses(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::address).collect()
    }

    /// Starts callers of all kinds.
    pub fn load(&self) -> Load {
        Load::start(&self.run, self.addresses(), &self.journal)
    }

    /// Starts subscribers to all alerts.
    pub fn subscribers(&self) -> Subscribers {
        Subscribers::start(&self.run, self.addresses(), SUBSCRIBERS)
    }

    /// Returns the resources that each replica uses under load.
    pub async fn resources(&self) -> Vec<Resources> {
        tokio::time::sleep(WARM_UP).await;
        let mut baseline = vec![];
        for replica in &self.replicas {
            baseline.push(Resources::used_by(replica).await);
        }
        baseline
    }

    /// Ends the load and checks everything that must be true after every scenario.
    pub async fn finish(&self, load: Load, subscribers: Subscribers, baseline: Vec<Resources>) -> Found {
        let tally = load.finish().await;
        self.find(tally, subscribers, baseline).await
    }

    /// Checks everything that must be true after every scenario, once all callers are gone.
    pub async fn find(&self, tally: Tally, subscribers: Subscribers, baseline: Vec<Resources>) -> Found {
        assert_eq!(tally.wrong, Vec::<String>::new(), "callers got results that are not allowed");
        assert_eq!(tally.hung, 0, "calls did not return in time");
        let pool = self.database.pool().await;
        let feed = subscribers.finish(&pool).await;
        let checked = check(&pool, &self.journal).await;
        pool.close().await;
        let hitches = ["deadlock detected", "there is already a transaction in progress"]
            .map(|text| self.database.count_in_log(text));
        assert_eq!(hitches, [0; 2], "there were deadlocks or open transactions");
        assert_eq!(baseline.len(), self.replicas.len(), "the resources of a replica are unknown");
        for (replica, baseline) in self.replicas.iter().zip(baseline) {
            baseline.wait_until_released(replica).await;
        }
        Found { tally, feed, checked }
    }

    /// Stops both replicas normally.
    pub async fn stop(self) {
        for replica in self.replicas.iter().rev() {
            assert_eq!(replica.stop(&self.scenario_dir).await, Some(0), "the exit code of a normal stop is 0");
        }
    }
}

/// Sets thresholds that a few events reach.
pub async fn lower_thresholds(address: &str) {
    let policy = AlertPolicy {
        monthly_warning: Some("0.05".into()),
        monthly_critical: Some("0.1".into()),
        projection_enabled: Some(false),
        spike_enabled: Some(false),
        ..Default::default()
    };
    let paths = ["monthly_warning", "monthly_critical", "projection_enabled", "spike_enabled"].map(String::from).into();
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask: Some(FieldMask { paths }) };
    let channel = Channel::from_shared(address.to_string()).unwrap().connect_lazy();
    AlertServiceClient::new(channel).update_alert_policy(request).await.unwrap();
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tally, feed, checked } = self;
        write!(f, "{checked}, {} calls repeated, {} hung, 0 leaked, {feed}", tally.repeats, tally.hung)
    }
}
