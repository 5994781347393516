//! KeyService.

use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::convert::unix_time;
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::grpc::{Context, Handlers};
use crate::proto::key_service_server::KeyService;
use crate::proto::*;
use chrono::TimeDelta;
use meterd_domain::access::{Clients, Scope as Granted};
use meterd_engine::audit::{self, AuditQuery};
use meterd_engine::auth::Caller;
use meterd_engine::auth::keys::{self, CreatedKey, GrantInput, KeyQuery, NewKey, Rotated, Rotation};
use meterd_engine::refusal::Refusal;
use meterd_store::admin::api_keys as store;
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

const SCOPES: [(Granted, Scope); 3] =
    [(Granted::Ingest, Scope::Ingest), (Granted::Read, Scope::Read), (Granted::Admin, Scope::Admin)];

impl From<store::ApiKey> for ApiKey {
    fn from(key: store::ApiKey) -> Self {
        let grant = |(granted, scope): (Granted, Scope)| {
            let (client_ids, all_clients) = match key.grants.get(granted)? {
                Clients::All => (vec![], true),
                Clients::Only(ids) => (ids.iter().cloned().collect(), false),
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

impl From<Grant> for GrantInput {
    fn from(grant: Grant) -> Self {
        let scope = SCOPES.iter().find(|(_, scope)| *scope as i32 == grant.scope);
        Self { scope: scope.map(|(granted, _)| *granted), client_ids: grant.client_ids, all_clients: grant.all_clients }
    }
}

impl From<ApiKey> for NewKey {
    fn from(key: ApiKey) -> Self {
        Self {
            name: key.name,
            grants: key.grants.into_iter().map(GrantInput::from).collect(),
            requests_per_second: key.requests_per_second,
            expire_time: key.expire_time.as_ref().map(unix_time),
        }
    }
}

fn created(key: store::ApiKey, token: String) -> CreateApiKeyResponse {
    CreateApiKeyResponse { api_key: Some(key.into()), token }
}

async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateApiKeyRequest,
) -> Result<CreateApiKeyResponse, Refusal> {
    // The stored answer has no token.
    let encode = |key: &store::ApiKey| created(key.clone(), String::new()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let key = NewKey::from(request.api_key.unwrap_or_default());
    let result = keys::create(&context.engine, key, idempotency).await?;
    answer(result, |CreatedKey { key, token }| created(key, token))
}

async fn get(context: Arc<Context>, request: GetApiKeyRequest) -> Result<GetApiKeyResponse, Refusal> {
    let key = keys::get(&context.engine, &request.key_id).await?;
    Ok(GetApiKeyResponse { api_key: Some(key.into()) })
}

async fn list(context: Arc<Context>, mut request: ListApiKeysRequest) -> Result<ListApiKeysResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = keys::list(&context.engine, KeyQuery { live_only: request.live_only, page }).await?;
    Ok(ListApiKeysResponse {
        api_keys: found.rows.into_iter().map(ApiKey::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}

async fn revoke(context: Arc<Context>, request: RevokeApiKeyRequest) -> Result<RevokeApiKeyResponse, Refusal> {
    let key = keys::revoke(&context.engine, &request.key_id).await?;
    Ok(RevokeApiKeyResponse { api_key: Some(key.into()) })
}

fn rotated(key: store::ApiKey, old: store::ApiKey, token: String) -> RotateApiKeyResponse {
    RotateApiKeyResponse { api_key: Some(key.into()), token, old_api_key: Some(old.into()) }
}

/// Converts a duration. A duration out of range becomes the longest one, which the use case rejects.
fn duration(duration: &prost_types::Duration) -> TimeDelta {
    let nanos = duration.nanos.try_into().unwrap_or(u32::MAX);
    TimeDelta::new(duration.seconds, nanos).unwrap_or(TimeDelta::MAX)
}

async fn rotate(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: RotateApiKeyRequest,
) -> Result<RotateApiKeyResponse, Refusal> {
    // The stored answer has no token.
    let encode = |keys: &Rotated| rotated(keys.key.clone(), keys.old.clone(), String::new()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let overlap = request.overlap.as_ref().map(duration);
    let expire_time = request.expire_time.as_ref().map(unix_time);
    let rotation = Rotation { key_id: request.key_id, overlap, expire_time };
    let result = keys::rotate(&context.engine, rotation, idempotency).await?;
    answer(result, |(Rotated { key, old }, token)| rotated(key, old, token))
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
