//! ClientService.

use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::grpc::{Context, Handlers};
use crate::proto::client_service_server::ClientService;
use crate::proto::{
    Client, CreateClientRequest, CreateClientResponse, GetClientRequest, GetClientResponse, ListClientsRequest,
    ListClientsResponse, UpdateClientRequest, UpdateClientResponse,
};
use meterd_engine::auth::Caller;
use meterd_engine::clients::{self, ClientUpdate, NewClient};
use meterd_engine::refusal::Refusal;
use meterd_store::clients as store;
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

impl From<store::Client> for Client {
    fn from(client: store::Client) -> Self {
        Self {
            client_id: client.client_id,
            display_name: client.display_name,
            time_zone: client.time_zone,
            create_time: Some(timestamp(client.create_time)),
            update_time: Some(timestamp(client.update_time)),
        }
    }
}

fn created(client: store::Client) -> CreateClientResponse {
    CreateClientResponse { client: Some(client.into()) }
}

async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateClientRequest,
) -> Result<CreateClientResponse, Refusal> {
    let encode = |client: &store::Client| created(client.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let Client { client_id, display_name, time_zone, .. } = request.client.unwrap_or_default();
    let client = NewClient { client_id, display_name, time_zone };
    answer(clients::create(&context.engine, client, idempotency).await?, created)
}

async fn get(context: Arc<Context>, request: GetClientRequest) -> Result<GetClientResponse, Refusal> {
    let client = clients::get(&context.engine, &request.client_id).await?;
    Ok(GetClientResponse { client: Some(client.into()) })
}

async fn update(context: Arc<Context>, request: UpdateClientRequest) -> Result<UpdateClientResponse, Refusal> {
    let Client { client_id, display_name, time_zone, .. } = request.client.unwrap_or_default();
    let names = request.update_mask.unwrap_or_default().paths;
    let update = ClientUpdate { client_id, display_name, time_zone, names };
    let client = clients::update(&context.engine, update).await?;
    Ok(UpdateClientResponse { client: Some(client.into()) })
}

async fn list(context: Arc<Context>, mut request: ListClientsRequest) -> Result<ListClientsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = clients::list(&context.engine, page).await?;
    Ok(ListClientsResponse {
        clients: found.rows.into_iter().map(Client::from).collect(),
        next_page_token: next_token.of(found.next),
    })
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
