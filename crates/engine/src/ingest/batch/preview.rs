//! Decides the outcomes of a batch without recording it: the same steps as [`super::record`], without the post.

use super::outcome;
use super::*;
use crate::catalog::CatalogCache;
use crate::ingest::{IngestConfig, KeyFilters, Preview, PreviewedClient};
use crate::ledger::Begun;
use crate::refusal::Refusal;
use meterd_domain::event::EventId;
use sqlx::PgPool;

/// Decides the outcomes of a batch without recording it. `client_ids` must be sorted, without duplicates, and contain every client
/// of the batch. It may contain others.
pub async fn preview(
    pool: &PgPool,
    cache: &CatalogCache,
    key_filters: &KeyFilters,
    ingest: &IngestConfig,
    client_ids: &[Arc<str>],
    batch: &[&Submission],
) -> meterd_store::Result<Preview> {
    let mut transaction = pool.begin().await?;
    let mut tx = Begun::new(&mut transaction).share_versions().await?;
    let catalog = tx.catalog(cache).await?;
    let mut settings = ClientSettings::default();
    let version = tx.versions.client_settings;
    settings.know(tx.conn(), version, &client_ids.iter().collect::<Vec<_>>()).await?;
    let clients = previewed_clients(&settings, ingest, client_ids);
    let is_unknown =
        |submission: &Submission| !ingest.create_clients && settings.zone(&submission.event.client_id).is_none();
    let (unknown, known): (Vec<&Submission>, Vec<&Submission>) = batch.iter().partition(|one| is_unknown(one));
    let unknown: HashSet<EventId> = unknown.into_iter().map(|submission| submission.id).collect();
    for client in clients.iter().filter(|client| !client.exists) {
        settings.assume(client.client_id.clone(), client.zone);
    }
    let of_clients = Clients::of(&known);
    let dated = date(&settings, &tx.versions, &of_clients, &known)?;
    let claims = Claims::of(&dated, &of_clients);
    let closed = key_filters.closed_before(tx.versions.key_generation);
    let mut holders = outcome::find_in_closed(tx.conn(), &closed, &dated, &claims).await?;
    outcome::find_in_current(tx.conn(), &dated, &claims, &mut holders).await?;
    let earlier = holders.known();
    let mut holders = holders.of;
    let pricing = Pricing { catalog: &catalog, plans: &settings.plans };
    let mut priced = price(pricing, &dated, &claims, &holders);
    if priced.is_tiered {
        let mut tiers = Tiers::read(tx.conn(), pricing, &priced.months(|_| true)).await?;
        priced.charge(&mut tiers, |_| true);
    }
    for (claim, new) in priced.claims.iter().zip(&priced.new) {
        let NewEvent { priced, payload_hash, .. } = new;
        holders[*claim] = Some(KeyHolder { payload_hash: **payload_hash, id: priced.id, charge: Some(priced.charge) });
    }
    let decided = outcome::decide(tx.conn(), &dated, &claims, &holders, &earlier).await?;
    transaction.rollback().await?;
    let mut decided = decided.into_iter();
    let outcomes = batch.iter().map(|submission| match unknown.contains(&submission.id) {
        true => Ok(Outcome::Rejected(Refusal::client_not_found(&submission.event.client_id))),
        false => decided.next().expect("an outcome for each event of a known client"),
    });
    Ok(Preview { outcomes: outcomes.collect::<meterd_store::Result<_>>()?, clients })
}

fn previewed_clients(
    settings: &ClientSettings,
    ingest: &IngestConfig,
    client_ids: &[Arc<str>],
) -> Vec<PreviewedClient> {
    let client = |client_id: &Arc<str>| {
        let zone = settings.zone(client_id);
        PreviewedClient {
            client_id: client_id.clone(),
            zone: zone.unwrap_or(ingest.default_zone),
            exists: zone.is_some(),
        }
    };
    client_ids.iter().map(client).collect()
}
