//! Takes up new certificates while the server runs.

use super::Tls;
use std::time::Duration;
use tokio::sync::watch;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Tls {
    /// Looks at the files until the server stops. New connections get what is in them, once it is whole and fits; until then
    /// the old stays in use.
    pub async fn keep_fresh(mut self, mut stopping: watch::Receiver<bool>) {
        // The last complaint, which is not made twice.
        let mut complaint = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            let looked = tokio::task::spawn_blocking(move || {
                let result = self.look();
                (self, result)
            });
            let Ok((tls, looked)) = looked.await else { return };
            self = tls;
            match looked {
                Ok(changed) => {
                    complaint.clear();
                    if changed {
                        tracing::info!(cert = %self.files.cert.display(), "new certificates are in use");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != complaint {
                        tracing::error!(error, "changed certificates cannot be used; the old ones stay in use");
                        metrics::counter!("meterd_tls_reload_failures_total").increment(1);
                        complaint = error;
                    }
                }
            }
        }
    }

    fn look(&mut self) -> anyhow::Result<bool> {
        let bytes = self.files.read()?;
        if bytes == self.bytes {
            return Ok(false);
        }
        let (grpc, http) = self.files.configs(&bytes)?;
        self.grpc.send_replace(grpc);
        self.http.send_replace(http);
        self.bytes = bytes;
        Ok(true)
    }
}
