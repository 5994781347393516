//! ClientService.

use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::{Fields, shown};
use crate::grpc::wire::idempotent_create::{Begun, Create, check_request_id};
use crate::grpc::{Context, Handlers};
use crate::proto::client_service_server::ClientService;
use crate::proto::{
    Client, CreateClientRequest, CreateClientResponse, GetClientRequest, GetClientResponse, ListClientsRequest,
    ListClientsResponse, UpdateClientRequest, UpdateClientResponse,
};
use chrono_tz::Tz;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_engine::auth::Caller;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::{clients, locks};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Longest name for people.
pub const DISPLAY_NAME_BYTES_MAX: usize = 256;
const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;

impl From<clients::Client> for Client {
    fn from(client: clients::Client) -> Self {
        Self {
            client_id: client.client_id,
            display_name: client.display_name,
            time_zone: client.time_zone,
            create_time: Some(timestamp(client.create_time)),
            update_time: Some(timestamp(client.update_time)),
        }
    }
}

fn zone(fields: &mut Fields, field: &str, name: &str) -> Option<Tz> {
    let zone = name.parse().ok();
    if zone.is_none() {
        fields.wrong(field, format!("must be an IANA time zone such as Europe/Berlin, got {}", shown(name)));
    }
    zone
}

/// The client, or the error that there is none.
pub async fn existing(context: &Context, client_id: &str) -> Result<clients::Client, Refusal> {
    clients::find(&context.engine.pool, client_id).await?.ok_or_else(|| Refusal::client_not_found(client_id))
}

async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateClientRequest,
) -> Result<CreateClientResponse, Refusal> {
    let client = request.client.clone().unwrap_or_default();
    let mut fields = Fields::default();
    fields.required_identifier("client.client_id", &client.client_id, ID_BYTES_MAX);
    fields.text("client.display_name", &client.display_name, DISPLAY_NAME_BYTES_MAX);
    check_request_id(&mut fields, &request.request_id);
    let zone = match client.time_zone.as_str() {
        "" => Some(context.engine.config.ingest.default_zone),
        name => zone(&mut fields, "client.time_zone", name),
    };
    fields.finish()?;
    let zone = zone.unwrap_or(Tz::UTC);
    let mut create = match Create::begin(&context, &caller, "CreateClient", &request.request_id, &request).await? {
        Begun::Repeat(response) => return Ok(response),
        Begun::New(create) => create,
    };
    let created = clients::insert(create.conn(), &client.client_id, &client.display_name, zone).await?;
    let created =
        created.ok_or_else(|| Refusal::new(Reason::ClientExists, format!("client {:?} exists", client.client_id)))?;
    create.commit(CreateClientResponse { client: Some(created.into()) }).await
}

async fn get(context: Arc<Context>, request: GetClientRequest) -> Result<GetClientResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &request.client_id, ID_BYTES_MAX);
    fields.finish()?;
    Ok(GetClientResponse { client: Some(existing(&context, &request.client_id).await?.into()) })
}

async fn update(context: Arc<Context>, request: UpdateClientRequest) -> Result<UpdateClientResponse, Refusal> {
    let client = request.client.unwrap_or_default();
    let paths = request.update_mask.unwrap_or_default().paths;
    let mut fields = Fields::default();
    fields.required("client.client_id", &client.client_id, ID_BYTES_MAX);
    if paths.is_empty() {
        fields.wrong("update_mask", "is required: name \"display_name\", \"time_zone\" or both");
    }
    let (mut display_name, mut time_zone) = (None, None);
    for path in &paths {
        match path.as_str() {
            "display_name" => {
                fields.text("client.display_name", &client.display_name, DISPLAY_NAME_BYTES_MAX);
                display_name = Some(client.display_name.as_str());
            }
            "time_zone" => time_zone = zone(&mut fields, "client.time_zone", &client.time_zone),
            other => {
                let description = format!("cannot change {}, only display_name and time_zone", shown(other));
                fields.wrong("update_mask", description);
            }
        }
    }
    fields.finish()?;
    let mut tx = context.engine.pool.begin().await?;
    if time_zone.is_some() {
        locks::change_versions(&mut tx).await?;
    }
    let updated = clients::update(&mut tx, &client.client_id, display_name, time_zone).await?;
    tx.commit().await?;
    let updated = updated.ok_or_else(|| Refusal::client_not_found(&client.client_id))?;
    Ok(UpdateClientResponse { client: Some(updated.into()) })
}

async fn list(context: Arc<Context>, request: ListClientsRequest) -> Result<ListClientsResponse, Refusal> {
    let mut fields = Fields::default();
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let query = ListClientsRequest::default();
    let after: Option<String> = context.page_tokens.read("ListClients", &query, &request.page_token)?;
    let mut clients = clients::list(&context.engine.pool, after.as_deref().unwrap_or_default(), limit + 1).await?;
    let next_page_token = match clients.split_off(clients.len().min(limit as usize)).is_empty() {
        true => String::new(),
        false => context.page_tokens.make("ListClients", &query, &clients.last().map(|last| &last.client_id)),
    };
    Ok(ListClientsResponse { clients: clients.into_iter().map(Client::from).collect(), next_page_token })
}

#[tonic::async_trait]
impl ClientService for Handlers {
    async fn create_client(
        &self,
        request: Request<CreateClientRequest>,
    ) -> Result<Response<CreateClientResponse>, Status> {
        self.run_as(request, create).await
    }

    async fn get_client(&self, request: Request<GetClientRequest>) -> Result<Response<GetClientResponse>, Status> {
        self.run(request, get).await
    }

    async fn update_client(
        &self,
        request: Request<UpdateClientRequest>,
    ) -> Result<Response<UpdateClientResponse>, Status> {
        self.run(request, update).await
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        self.run(request, list).await
    }
}
