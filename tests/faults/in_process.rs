//! Replicas inside this process, on their own runtime, so that tests can set their clocks and count their tasks.

use clap::Parser;
use meterd::app;
use meterd::config::Settings;
use meterd::grpc::Context;
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Maximum time until tasks end after their callers are gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Replicas that share a runtime.
pub struct InProcess {
    runtime: Option<Runtime>,
    servers: Vec<Server>,
}

struct Server {
    address: String,
    context: Arc<Context>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

fn settings() -> Settings {
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }
    let ports =
        ["test", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--alert-heartbeat-ms=500"].map(String::from);
    // No job runs by schedule.
    let off = meterd_engine::jobs::names().into_iter().map(|job| format!("--schedule-{}=off", job.replace('_', "-")));
    Flags::parse_from(ports.into_iter().chain(off)).settings
}

impl InProcess {
    /// Starts a replica for each clock.
    pub async fn start(database_url: &str, clocks: &[Clock]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut servers = vec![];
        for clock in clocks {
            let (options, clock) = (connect::options(database_url).unwrap(), clock.clone());
            let handle = runtime.handle().clone();
            let start = async move || {
                let deployment = app::prepare(&options, &settings()).await.unwrap();
                let app = app::build(settings(), &options, deployment, clock).await.unwrap();
                let (address, context) = (format!("http://{}", app.grpc_address()), app.context().clone());
                let (stop, stopped) = oneshot::channel::<()>();
                let task = tokio::spawn(app.run(async { drop(stopped.await) }, None));
                Server { address, context, stop, task }
            };
            // Start it on this runtime, so that its tasks are spawned there.
            servers.push(tokio::task::spawn_blocking(move || handle.block_on(start())).await.unwrap());
        }
        Self { runtime: Some(runtime), servers }
    }

    /// Returns the addresses for callers.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.address.clone()).collect()
    }

    /// Returns the number of tasks of all replicas.
    pub fn tasks(&self) -> usize {
        self.runtime.as_ref().expect("the runtime is running").metrics().num_alive_tasks()
    }

    /// Waits until there are at most `tasks` tasks and no queued event.
    pub async fn wait_until_released(&self, tasks: usize) {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            let queued: usize = self.servers.iter().map(|server| server.context.engine.ingest.depth()).sum();
            if self.tasks() <= tasks && queued == 0 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "leaked: {} tasks instead of {tasks}, {queued} queued events",
                self.tasks()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops all replicas and checks that no task remains.
    pub async fn stop(mut self) {
        for Server { stop, task, context, .. } in self.servers.drain(..) {
            drop(stop);
            task.await.unwrap().unwrap();
            drop(context);
        }
        self.wait_until_released(0).await;
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
