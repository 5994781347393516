//! Checks all files for `--strict` before anything is sent.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use anyhow::Context;

use super::batches::{Batch, read_batches};
use super::input::{FileVersion, display_name};
use super::keys::{KeyMaker, OtherFiles};
use super::open::{Opened, columns, keys, open_mapped, plan};
use super::progress::Progress;
use super::run::Run;

impl Run<'_> {
    /// Reads all files that can be read twice. Returns true if every row is an event of a valid client. Otherwise shows the
    /// first row that is not.
    pub async fn check_files(&mut self) -> anyhow::Result<bool> {
        let shared = self.args.split_files.then(|| Arc::new(Mutex::new(KeyMaker::new(&self.args.key_prefix))));
        let others: Option<Arc<Mutex<OtherFiles>>> = self.others.is_some().then(Arc::default);
        for (number, path) in self.args.files.iter().enumerate().filter(|(_, path)| path.is_file()) {
            let name = display_name(path);
            self.checked.extend(FileVersion::of(path).map(|version| (path.clone(), version)));
            let opened = open_mapped(self.args, path).with_context(|| name.clone())?;
            let Opened { mut reader, mapping, .. } = opened;
            let plan = plan(
                self.args,
                &mapping,
                opened.may_have_comma,
                keys(self.args, shared.clone(), others.clone(), number),
                None,
            );
            let only_known = self.args.no_new_clients;
            let read = tokio::task::spawn_blocking(move || {
                let mut checked = Batch::default();
                let mut clients = HashSet::new();
                read_batches(&mut reader, &plan, |batch| {
                    for (event, origin) in batch.events.into_iter().zip(batch.origins).filter(|_| only_known) {
                        if clients.insert(event.client_id.clone()) {
                            checked.events.push(event);
                            checked.origins.push(origin);
                        }
                    }
                    checked.bad_rows = batch.bad_rows;
                    checked.bad_rows.is_empty()
                })?;
                Ok::<Batch, anyhow::Error>(checked)
            });
            let mut checked = read.await?.with_context(|| name.clone())?;
            let progress = Progress::new(&name, None, true);
            if checked.bad_rows.is_empty() && only_known {
                self.sender.prepare(&mut checked, &progress.printer(), &columns(&mapping)).await?;
            }
            if !checked.bad_rows.is_empty() {
                self.show(&name, &progress, &checked.bad_rows);
                if let Some(rejects) = &mut self.rejects {
                    rejects.add(&name, &checked.bad_rows)?;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }
}
