//! Reloads changed certificates and keys while the server runs.

use super::Tls;
use std::time::Duration;
use tokio::sync::watch;

/// Interval between two checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

impl Tls {
    /// Checks the files until the server stops. New connections use changed files as soon as they can be loaded. Until then, the
    /// previous configuration stays in use.
    pub async fn reload_on_change(mut self, mut stopping: watch::Receiver<bool>) {
        // An error is logged once, not after every check.
        let mut last_error = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            let reload = tokio::task::spawn_blocking(move || {
                let result = self.reload();
                (self, result)
            });
            let Ok((tls, result)) = reload.await else { return };
            self = tls;
            match result {
                Ok(has_changed) => {
                    last_error.clear();
                    if has_changed {
                        tracing::info!(cert = %self.files.cert.display(), "loaded the changed TLS files");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != last_error {
                        tracing::error!(error, "cannot load the changed TLS files; the previous ones stay in use");
                        metrics::counter!("meterd_tls_reload_failures_total").increment(1);
                        last_error = error;
                    }
                }
            }
        }
    }

    /// Loads the files if they have changed. Returns whether they have.
    fn reload(&mut self) -> anyhow::Result<bool> {
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
