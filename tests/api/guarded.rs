//! A server that asks for API keys, and what tests call it with.

use crate::contract::Raw;
use crate::harness::*;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::client_service_client::ClientServiceClient;
use meterd::proto::key_service_client::KeyServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd_domain::access::{Clients, Grants, Scope};
use meterd_engine::auth::keys::{self, KeySpec};
use meterd_engine::clock::Clock;
use prost_reflect::{DescriptorPool, DynamicMessage};
use std::sync::OnceLock;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A server that asks for keys, over a database with one, an admin's for all clients.
pub struct Guarded {
    pub server: TestServer,
    pub admin: Token,
}

/// What a caller presents, and the key's id.
#[derive(Clone)]
pub struct Token {
    pub key_id: String,
    pub token: String,
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value: AsciiMetadataValue = format!("Bearer {}", self.token).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A channel with credentials.
pub type As = InterceptedService<Channel, Token>;

/// One scope, for all clients or for these.
pub fn grant(scope: Scope, client_ids: &[&str]) -> Grants {
    let mut grants = Grants::default();
    let clients = match client_ids {
        [] => Clients::All,
        these => Clients::These(these.iter().map(ToString::to_string).collect()),
    };
    grants.set(scope, clients);
    grants
}

/// What a key without anything special is to be.
pub fn spec(grants: Grants) -> KeySpec {
    KeySpec { name: "test".into(), grants, requests_per_second: 0, expire_time: None }
}

/// Makes a key with the database at hand.
pub async fn make_key(database_url: &str, spec: &KeySpec) -> Token {
    let pool = sqlx::PgPool::connect(database_url).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let made = keys::create_in(&mut tx, spec, Clock::system().now()).await.unwrap();
    tx.commit().await.unwrap();
    pool.close().await;
    Token { key_id: made.key.key_id, token: made.token }
}

/// A key of this server's deployment.
pub async fn key(server: &TestServer, scope: Scope, client_ids: &[&str]) -> Token {
    make_key(&server.database_url, &spec(grant(scope, client_ids))).await
}

impl Guarded {
    pub async fn start() -> Self {
        Self::start_with(&[], Clock::system()).await
    }

    pub async fn start_with(flags: &[&str], clock: Clock) -> Self {
        let database_url = fresh_database().await;
        let admin = make_key(&database_url, &spec(Grants::everything())).await;
        let server = guarded_replica(&database_url, flags, clock).await;
        Self { server, admin }
    }

    /// Another replica that asks for keys.
    pub async fn replica(&self) -> TestServer {
        guarded_replica(&self.server.database_url, &[], self.server.clock.clone()).await
    }

    /// Another replica that asks nobody, for what a test sets up.
    pub async fn open(&self) -> TestServer {
        TestServer::replica(&self.server.database_url, &[], self.server.clock.clone()).await
    }

    /// A key.
    pub async fn key(&self, scope: Scope, client_ids: &[&str]) -> Token {
        key(&self.server, scope, client_ids).await
    }

    /// The key service, as the admin.
    pub fn keys(&self) -> KeyServiceClient<As> {
        keys_as(&self.server, &self.admin)
    }
}

async fn guarded_replica(database_url: &str, flags: &[&str], clock: Clock) -> TestServer {
    let flags: Vec<&str> = ["--auth=keys"].into_iter().chain(flags.iter().copied()).collect();
    TestServer::replica(database_url, &flags, clock).await
}

pub fn keys_as(server: &TestServer, token: &Token) -> KeyServiceClient<As> {
    KeyServiceClient::with_interceptor(server.channel(), token.clone())
}

pub fn usage_as(server: &TestServer, token: &Token) -> UsageServiceClient<As> {
    UsageServiceClient::with_interceptor(server.channel(), token.clone())
}

pub fn alerts_as(server: &TestServer, token: &Token) -> AlertServiceClient<As> {
    AlertServiceClient::with_interceptor(server.channel(), token.clone())
}

pub fn clients_as(server: &TestServer, token: &Token) -> ClientServiceClient<As> {
    ClientServiceClient::with_interceptor(server.channel(), token.clone())
}

/// The contract.
pub fn contract() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(meterd::proto::DESCRIPTORS).unwrap())
}

/// Calls an RPC such as "UsageService/TrackUsage" with a request in protobuf's JSON mapping, and gives the first message of
/// the answer. `authorization` are the headers of that name.
pub async fn call(channel: &Channel, rpc: &str, request: &str, authorization: &[String]) -> Result<Vec<u8>, Status> {
    let (service, name) = rpc.split_once('/').unwrap();
    let service = contract().get_service_by_name(&format!("metering.v1.{service}")).unwrap();
    let input = service.methods().find(|method| method.name() == name).unwrap().input();
    let mut json = serde_json::Deserializer::from_str(request);
    let message = DynamicMessage::deserialize(input, &mut json).unwrap_or_else(|error| panic!("{rpc} {error}"));
    let path = format!("/metering.v1.{rpc}");
    call_path(channel, &path, prost::Message::encode_to_vec(&message), authorization).await
}

/// Calls whatever is at a path.
pub async fn call_path(
    channel: &Channel,
    path: &str,
    message: Vec<u8>,
    authorization: &[String],
) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(message));
    for value in authorization {
        request.metadata_mut().append("authorization", value.parse().unwrap());
    }
    let answer = grpc.streaming(request, path.parse().unwrap(), Raw).await?;
    Ok(answer.into_inner().message().await?.unwrap_or_default())
}
