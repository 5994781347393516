//! A server that requires API keys, and callers with keys.

use crate::harness::*;
use crate::raw_codec::Raw;
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

/// A server that requires keys. Its database has an admin key for all clients.
pub struct KeyServer {
    pub server: TestServer,
    pub admin: Token,
}

/// The token that a caller sends, and the id of the key.
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

/// A channel that sends a token.
pub type Authorized = InterceptedService<Channel, Token>;

/// Returns a grant of one scope, for all clients or for these.
pub fn grant(scope: Scope, client_ids: &[&str]) -> Grants {
    let mut grants = Grants::default();
    let clients = match client_ids {
        [] => Clients::All,
        these => Clients::Only(these.iter().map(ToString::to_string).collect()),
    };
    grants.set(scope, clients);
    grants
}

/// Returns a key with these grants and no other options.
pub fn spec(grants: Grants) -> KeySpec {
    KeySpec { name: "test".into(), grants, requests_per_second: 0, expire_time: None }
}

/// Creates a key directly in the database.
pub async fn create_key_in_database(database_url: &str, spec: &KeySpec) -> Token {
    let pool = sqlx::PgPool::connect(database_url).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let created = keys::create_in(&mut tx, spec, Clock::system().now()).await.unwrap();
    tx.commit().await.unwrap();
    pool.close().await;
    Token { key_id: created.key.key_id, token: created.token }
}

/// Creates a key for this server.
pub async fn key(server: &TestServer, scope: Scope, client_ids: &[&str]) -> Token {
    create_key_in_database(&server.database_url, &spec(grant(scope, client_ids))).await
}

impl KeyServer {
    pub async fn start() -> Self {
        Self::start_with(&[], Clock::system()).await
    }

    pub async fn start_with(flags: &[&str], clock: Clock) -> Self {
        let database_url = fresh_database().await;
        let admin = create_key_in_database(&database_url, &spec(Grants::all())).await;
        let server = replica_with_keys(&database_url, flags, clock).await;
        Self { server, admin }
    }

    /// Starts another replica that requires keys.
    pub async fn replica(&self) -> TestServer {
        replica_with_keys(&self.server.database_url, &[], self.server.clock.clone()).await
    }

    /// Starts another replica that does not require keys, for preparations of a test.
    pub async fn open(&self) -> TestServer {
        TestServer::replica(&self.server.database_url, &[], self.server.clock.clone()).await
    }

    /// Creates a key.
    pub async fn key(&self, scope: Scope, client_ids: &[&str]) -> Token {
        key(&self.server, scope, client_ids).await
    }

    /// Returns the key client of the admin.
    pub fn keys(&self) -> KeyServiceClient<Authorized> {
        keys_as(&self.server, &self.admin)
    }
}

async fn replica_with_keys(database_url: &str, flags: &[&str], clock: Clock) -> TestServer {
    let flags: Vec<&str> = ["--auth=keys"].into_iter().chain(flags.iter().copied()).collect();
    TestServer::replica(database_url, &flags, clock).await
}

pub fn keys_as(server: &TestServer, token: &Token) -> KeyServiceClient<Authorized> {
    KeyServiceClient::with_interceptor(server.channel(), token.clone())
}

pub fn usage_as(server: &TestServer, token: &Token) -> UsageServiceClient<Authorized> {
    UsageServiceClient::with_interceptor(server.channel(), token.clone())
}

pub fn alerts_as(server: &TestServer, token: &Token) -> AlertServiceClient<Authorized> {
    AlertServiceClient::with_interceptor(server.channel(), token.clone())
}

pub fn clients_as(server: &TestServer, token: &Token) -> ClientServiceClient<Authorized> {
    ClientServiceClient::with_interceptor(server.channel(), token.clone())
}

/// Returns the descriptors of the API.
pub fn contract() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(meterd::proto::DESCRIPTORS).unwrap())
}

/// Calls an RPC such as "UsageService/TrackUsage" with a request in the JSON format of protobuf, and returns the first
/// message of the response. `authorization` contains the values of that header.
pub async fn call(channel: &Channel, rpc: &str, request: &str, authorization: &[String]) -> Result<Vec<u8>, Status> {
    let (service, name) = rpc.split_once('/').unwrap();
    let service = contract().get_service_by_name(&format!("metering.v1.{service}")).unwrap();
    let input = service.methods().find(|method| method.name() == name).unwrap().input();
    let mut json = serde_json::Deserializer::from_str(request);
    let message = DynamicMessage::deserialize(input, &mut json).unwrap_or_else(|error| panic!("{rpc} {error}"));
    let path = format!("/metering.v1.{rpc}");
    call_path(channel, &path, prost::Message::encode_to_vec(&message), authorization).await
}

/// Calls any path.
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
