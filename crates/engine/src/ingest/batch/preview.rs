//! What would become of a batch: the same decisions as in [`super::record`], in a transaction that writes nothing.

use super::*;
use crate::ingest::{IngestConfig, Preview, PreviewedClient};
use meterd_domain::event::EventId;
use sqlx::PgPool;

/// Decides about a batch without recording it. `client_ids` are sorted, have no client twice, and have every client of the
/// batch; others may be among them.
pub async fn preview(
    pool: &PgPool,
    cache: &CatalogCache,
    ingest: &IngestConfig,
    client_ids: &[Arc<str>],
    batch: &[&Submission],
) -> meterd_store::Result<Preview> {
    let mut tx = pool.begin().await?;
    let versions = locks::share_and_read_versions(&mut tx).await?;
    let mut catalog = cache.current();
    if versions.catalog != catalog.version {
        catalog = cache.adopt(catalog::load(&mut tx).await?);
    }
    let mut settings = ClientSettings::default();
    settings.know(&mut tx, versions.client_settings, &client_ids.iter().collect::<Vec<_>>()).await?;
    let clients: Vec<PreviewedClient> = client_ids
        .iter()
        .map(|client_id| {
            let zone = settings.zone(client_id);
            PreviewedClient {
                client_id: client_id.clone(),
                zone: zone.unwrap_or(ingest.default_zone),
                exists: zone.is_some(),
            }
        })
        .collect();
    let is_unknown =
        |submission: &Submission| !ingest.create_clients && settings.zone(&submission.event.client_id).is_none();
    let (unknown, known): (Vec<&Submission>, Vec<&Submission>) = batch.iter().partition(|one| is_unknown(one));
    let unknown: HashSet<EventId> = unknown.into_iter().map(|submission| submission.id).collect();
    for client in clients.iter().filter(|client| !client.exists) {
        settings.assume(client.client_id.clone(), client.zone);
    }
    let of_clients = Clients::of(&known);
    let dated = dated(&settings, &versions, &of_clients, &known)?;
    let order = Order::of(&dated, &of_clients);
    let mut holders = vec![None; order.leaders.len()];
    let earlier = repeats::find_earlier_holders(&mut tx, &dated, &order, &mut holders).await?;
    for (holder, &leader) in holders.iter_mut().zip(&order.leaders) {
        let Dated { submission: Submission { event, id, payload_hash, .. }, refusal, .. } = &dated[leader];
        if holder.is_none() && refusal.is_none() {
            *holder = Some(KeyHolder { payload_hash: *payload_hash, id: *id, charge: Some(catalog.charge(event)) });
        }
    }
    let conflicts = repeats::conflicts(&mut tx, &dated, &order, &holders).await?;
    tx.rollback().await?;
    let mut decided = dated.iter().zip(&order.leader_of).enumerate().map(|(index, (dated, &leader))| {
        let told = dated.is_of_closed_time() && !earlier.contains(&leader);
        repeats::outcome(dated, holders[leader].as_ref().filter(|_| !told), conflicts.get(&index))
    });
    let outcomes = batch.iter().map(|submission| match unknown.contains(&submission.id) {
        true => Ok(Outcome::Rejected(Refusal::client_not_found(&submission.event.client_id))),
        false => decided.next().expect("an outcome for each event of a known client"),
    });
    Ok(Preview { outcomes: outcomes.collect::<meterd_store::Result<_>>()?, clients })
}
