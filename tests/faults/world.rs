//! A durable database and two replicas: what the faults happen to.

use crate::check::{Checked, check};
use crate::database::Database;
use crate::held::Held;
use crate::journal::Journal;
use crate::load::{Load, Tally};
use crate::place::Place;
use crate::replica::Replica;
use crate::run::Run;
use crate::subscribers::{Chains, Subscribers};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::{AlertPolicy, UpdateAlertPolicyRequest};
use prost_types::FieldMask;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// Flags of all replicas: subscribers notice soon that a stream is dead.
const FLAGS: [&str; 2] = ["--alert-heartbeat-ms=500", "--log=warn,meterd=info"];
/// After so long under load a process holds what it works with.
const WARM_UP: Duration = Duration::from_secs(1);
const SUBSCRIBERS: usize = 4;

/// What a scenario happens to.
pub struct World {
    pub run: Run,
    pub replicas: Vec<Replica>,
    pub database: Database,
    pub journal: Arc<Journal>,
    /// The last to go.
    pub place: Place,
}

/// What is found at the end.
pub struct Found {
    pub tally: Tally,
    pub chains: Chains,
    pub checked: Checked,
}

impl World {
    /// Both replicas on a database that this test keeps, each through a proxy.
    pub async fn start(run: Run) -> Self {
        let place = Place::new();
        let database = Database::ours(&place).await;
        let mut replicas = vec![];
        for number in 0..2 {
            replicas.push(Replica::on_socket(&place, number, database.socket(), &FLAGS).await);
        }
        Self::over(run, place, database, replicas).await
    }

    /// The first replica keeps the database, the second one uses it.
    pub async fn start_with_keeper(run: Run) -> Self {
        let place = Place::new();
        let data_dir = place.path("data");
        Self::start_in(run, place, data_dir, &[]).await
    }

    /// The same, with the data here and flags of the replicas.
    pub async fn start_in(run: Run, place: Place, data_dir: PathBuf, flags: &[&str]) -> Self {
        let flags: Vec<&str> = FLAGS.iter().chain(flags).copied().collect();
        let keeper = Replica::with_data_dir(&place, &data_dir, &flags).await;
        let database = Database::of_replica(data_dir);
        database.tell_deadlocks().await;
        let other = Replica::on_socket(&place, 1, database.socket(), &flags).await;
        Self::over(run, place, database, vec![keeper, other]).await
    }

    async fn over(run: Run, place: Place, database: Database, replicas: Vec<Replica>) -> Self {
        let journal = Arc::new(Journal::create(&place.path("journal")));
        let world = Self { run, replicas, database, journal, place };
        lower_the_lines(&world.addresses()[0]).await;
        world
    }

    /// Where callers call.
    pub fn addresses(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::address).collect()
    }

    /// Callers of all kinds.
    pub fn load(&self) -> Load {
        Load::start(&self.run, self.addresses(), &self.journal)
    }

    /// Subscribers to alerts, from the first one on.
    pub fn subscribers(&self) -> Subscribers {
        Subscribers::start(&self.run, self.addresses(), SUBSCRIBERS)
    }

    /// What each replica holds under load.
    pub async fn held(&self) -> Vec<Held> {
        tokio::time::sleep(WARM_UP).await;
        let mut held = vec![];
        for replica in &self.replicas {
            held.push(Held::by(replica).await);
        }
        held
    }

    /// Ends the load, and finds what must hold after every scenario.
    pub async fn finish(&self, load: Load, subscribers: Subscribers, held: Vec<Held>) -> Found {
        let tally = load.finish().await;
        self.find(tally, subscribers, held).await
    }

    /// Finds what must hold after every scenario, once all callers have gone.
    pub async fn find(&self, tally: Tally, subscribers: Subscribers, held: Vec<Held>) -> Found {
        assert_eq!(tally.wrong, Vec::<String>::new(), "answers that nobody should get");
        assert_eq!(tally.hung, 0, "calls that did not return within their bound");
        let pool = self.database.pool().await;
        let chains = subscribers.finish(&pool).await;
        let checked = check(&pool, &self.journal).await;
        pool.close().await;
        let hitches =
            ["deadlock detected", "there is already a transaction in progress"].map(|text| self.database.said(text));
        assert_eq!(hitches, [0; 2], "deadlocks, and transactions that a caller left open");
        assert_eq!(held.len(), self.replicas.len(), "what each replica held is known");
        for (replica, held) in self.replicas.iter().zip(held) {
            held.is_given_back(replica).await;
        }
        Found { tally, chains, checked }
    }

    /// Stops both replicas in order.
    pub async fn stop(self) {
        for replica in self.replicas.iter().rev() {
            assert_eq!(replica.stop(&self.place).await, Some(0), "an orderly stop ends with 0");
        }
    }
}

/// Lines that a few events cross.
pub async fn lower_the_lines(address: &str) {
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
        let Self { tally, chains, checked } = self;
        write!(f, "{checked}, {} calls repeated, {} hung, 0 leaked, {chains}", tally.repeats, tally.hung)
    }
}
