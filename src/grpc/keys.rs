//! KeyService.

use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::{Fields, unix_time};
use crate::grpc::wire::idempotent_create::{Begun, Create, check_request_id};
use crate::grpc::{Context, Handlers};
use crate::proto::key_service_server::KeyService;
use crate::proto::*;
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::access::{Clients, GRANTED_CLIENTS_MAX, Grants, Scope as Granted};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_engine::audit::{self, AuditQuery};
use meterd_engine::auth::Caller;
use meterd_engine::auth::keys::{self, KeySpec};
use meterd_engine::refusal::Refusal;
use meterd_store::api_keys;
use prost_types::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::{Request, Response, Status};

const NAME_BYTES_MAX: usize = 256;
const REQUESTS_PER_SECOND_MAX: i32 = 1_000_000;
const OVERLAP_DEFAULT: TimeDelta = TimeDelta::hours(24);
const OVERLAP_MAX: TimeDelta = TimeDelta::days(90);
const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;
const SCOPES: [(Granted, Scope); 3] =
    [(Granted::Ingest, Scope::Ingest), (Granted::Read, Scope::Read), (Granted::Admin, Scope::Admin)];

impl From<api_keys::ApiKey> for ApiKey {
    fn from(key: api_keys::ApiKey) -> Self {
        let grant = |(granted, scope): (Granted, Scope)| {
            let (client_ids, all_clients) = match key.grants.get(granted)? {
                Clients::All => (vec![], true),
                Clients::These(ids) => (ids.iter().cloned().collect(), false),
            };
            Some(Grant { scope: scope as i32, client_ids, all_clients })
        };
        Self {
            grants: SCOPES.into_iter().filter_map(grant).collect(),
            key_id: key.key_id,
            name: key.name,
            requests_per_second: key.requests_per_second,
            create_time: Some(timestamp(key.create_time)),
            expire_time: key.expire_time.map(timestamp),
            revoke_time: key.revoke_time.map(timestamp),
            last_used_time: key.last_used_time.map(timestamp),
            rotated_from: key.rotated_from.unwrap_or_default(),
        }
    }
}

fn grants(fields: &mut Fields, given: &[Grant]) -> Grants {
    let mut grants = Grants::default();
    if !(1..=SCOPES.len()).contains(&given.len()) {
        fields.wrong("api_key.grants", format!("must be 1 to {} grants, one a scope", SCOPES.len()));
    }
    let clients: BTreeSet<&String> = given.iter().flat_map(|grant| &grant.client_ids).collect();
    if clients.len() > GRANTED_CLIENTS_MAX {
        let description = format!("must name at most {GRANTED_CLIENTS_MAX} clients in all, name {}", clients.len());
        fields.wrong("api_key.grants", description);
    }
    for (index, grant) in given.iter().take(SCOPES.len()).enumerate() {
        let path = format!("api_key.grants[{index}]");
        let ids = &grant.client_ids;
        fields.at_most(&format!("{path}.client_ids"), ids.len(), GRANTED_CLIENTS_MAX);
        for (index, client_id) in ids.iter().take(GRANTED_CLIENTS_MAX).enumerate() {
            fields.required_identifier(&format!("{path}.client_ids[{index}]"), client_id, ID_BYTES_MAX);
        }
        if grant.all_clients != ids.is_empty() {
            fields.wrong(&path, "must have either client_ids or all_clients: whom the scope is for");
        }
        let clients = if grant.all_clients { Clients::All } else { Clients::These(ids.iter().cloned().collect()) };
        match SCOPES.iter().find(|(_, scope)| *scope as i32 == grant.scope) {
            None => fields.wrong(format!("{path}.scope"), "must be SCOPE_INGEST, SCOPE_READ or SCOPE_ADMIN"),
            Some((scope, _)) if grants.get(*scope).is_some() => {
                fields.wrong(format!("{path}.scope"), "is there already: name a scope once");
            }
            Some((scope, _)) => grants.set(*scope, clients),
        }
    }
    grants
}

impl Fields {
    /// An expire time that is still to come; nothing: never.
    fn expire_time(&mut self, field: &str, time: Option<&Timestamp>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let time = self.time(field, time?)?;
        if time <= now {
            self.wrong(field, "must be in the future");
        }
        Some(time)
    }
}

/// What a request asks for, or every wrong field.
pub fn spec(request: &CreateApiKeyRequest, now: DateTime<Utc>) -> Result<KeySpec, Refusal> {
    let key = request.api_key.clone().unwrap_or_default();
    let mut fields = Fields::default();
    fields.required("api_key.name", &key.name, NAME_BYTES_MAX);
    let grants = grants(&mut fields, &key.grants);
    fields.count("api_key.requests_per_second", key.requests_per_second.into(), REQUESTS_PER_SECOND_MAX.into());
    let expire_time = fields.expire_time("api_key.expire_time", key.expire_time.as_ref(), now);
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    Ok(KeySpec { name: key.name, grants, requests_per_second: key.requests_per_second, expire_time })
}

async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateApiKeyRequest,
) -> Result<CreateApiKeyResponse, Refusal> {
    let now = context.engine.clock.now();
    let spec = spec(&request, now)?;
    let mut create = match Create::begin(&context, &caller, "CreateApiKey", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    let made = keys::create(create.conn(), &spec, now).await?;
    // What is kept for a repeat has no token in it.
    let response = CreateApiKeyResponse { api_key: Some(made.key.into()), token: String::new() };
    let response = create.commit(response).await?;
    // The token must arrive, whatever becomes of this: who presents it makes the ring look again.
    drop(context.auth.keys.look().await);
    Ok(CreateApiKeyResponse { token: made.token, ..response })
}

async fn get(context: Arc<Context>, request: GetApiKeyRequest) -> Result<GetApiKeyResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("key_id", &request.key_id, ID_BYTES_MAX);
    fields.finish()?;
    let key = keys::existing(&mut *context.engine.pool.acquire().await?, &request.key_id).await?;
    Ok(GetApiKeyResponse { api_key: Some(key.into()) })
}

async fn list(context: Arc<Context>, request: ListApiKeysRequest) -> Result<ListApiKeysResponse, Refusal> {
    let mut fields = Fields::default();
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let bound = ListApiKeysRequest { live_only: request.live_only, ..Default::default() };
    let after: Option<(DateTime<Utc>, String)> =
        context.page_tokens.read("ListApiKeys", &bound, &request.page_token)?;
    let after = after.as_ref().map(|(time, key_id)| (*time, key_id.as_str()));
    let live_at = request.live_only.then(|| context.engine.clock.now());
    let mut rows = api_keys::list(&context.engine.pool, live_at, after, limit + 1).await?;
    let more = !rows.split_off(rows.len().min(limit as usize)).is_empty();
    let next_page_token = match rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => context.page_tokens.make("ListApiKeys", &bound, &(last.create_time, &last.key_id)),
    };
    Ok(ListApiKeysResponse { api_keys: rows.into_iter().map(ApiKey::from).collect(), next_page_token })
}

async fn revoke(context: Arc<Context>, request: RevokeApiKeyRequest) -> Result<RevokeApiKeyResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("key_id", &request.key_id, ID_BYTES_MAX);
    fields.finish()?;
    let mut tx = context.engine.pool.begin().await?;
    let key = keys::revoke(&mut tx, &request.key_id).await?;
    tx.commit().await?;
    // It is revoked, whether this replica knows already or in half a second.
    drop(context.auth.keys.look().await);
    Ok(RevokeApiKeyResponse { api_key: Some(key.into()) })
}

async fn rotate(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: RotateApiKeyRequest,
) -> Result<RotateApiKeyResponse, Refusal> {
    let now = context.engine.clock.now();
    let mut fields = Fields::default();
    fields.required("key_id", &request.key_id, ID_BYTES_MAX);
    let overlap = match &request.overlap {
        None => OVERLAP_DEFAULT,
        Some(given) => {
            let overlap = TimeDelta::new(given.seconds, given.nanos.try_into().unwrap_or(u32::MAX));
            let overlap = overlap.filter(|overlap| (TimeDelta::zero()..=OVERLAP_MAX).contains(overlap));
            if overlap.is_none() {
                fields.wrong("overlap", format!("must be from 0 to {} days", OVERLAP_MAX.num_days()));
            }
            overlap.unwrap_or_default()
        }
    };
    let expire_time = fields.expire_time("expire_time", request.expire_time.as_ref(), now);
    check_request_id(&mut fields, &request.request_id);
    fields.finish()?;
    let mut create = match Create::begin(&context, &caller, "RotateApiKey", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    let (made, old) = keys::rotate(create.conn(), &request.key_id, overlap, expire_time, now).await?;
    let response =
        RotateApiKeyResponse { api_key: Some(made.key.into()), token: String::new(), old_api_key: Some(old.into()) };
    let response = create.commit(response).await?;
    drop(context.auth.keys.look().await);
    Ok(RotateApiKeyResponse { token: made.token, ..response })
}

async fn list_audit_log(
    context: Arc<Context>,
    mut request: ListAuditLogRequest,
) -> Result<ListAuditLogResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let query = AuditQuery {
        actor_id: request.actor_id,
        method: request.method,
        start_time: request.start_time.as_ref().map(unix_time),
        end_time: request.end_time.as_ref().map(unix_time),
        page,
    };
    let found = audit::list(&context.engine, query).await?;
    Ok(ListAuditLogResponse {
        entries: found.rows.into_iter().map(AuditEntry::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}

#[tonic::async_trait]
impl KeyService for Handlers {
    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        self.run_as(request, create).await
    }

    async fn get_api_key(&self, request: Request<GetApiKeyRequest>) -> Result<Response<GetApiKeyResponse>, Status> {
        self.run(request, get).await
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        self.run(request, list).await
    }

    async fn revoke_api_key(
        &self,
        request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        self.run(request, revoke).await
    }

    async fn rotate_api_key(
        &self,
        request: Request<RotateApiKeyRequest>,
    ) -> Result<Response<RotateApiKeyResponse>, Status> {
        self.run_as(request, rotate).await
    }

    async fn list_audit_log(
        &self,
        request: Request<ListAuditLogRequest>,
    ) -> Result<Response<ListAuditLogResponse>, Status> {
        self.run(request, list_audit_log).await
    }
}
