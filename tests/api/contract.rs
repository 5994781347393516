//! The API as its descriptors define it: all RPCs and their documented errors; and a connection that sends any bytes.

use crate::raw_codec::Raw;
use hyper_util::rt::TokioIo;
use meterd::grpc::ERROR_DOMAIN;
use meterd::grpc::wire::status::code;
use meterd::proto::{
    self, BatchTrackUsageResponse, DESCRIPTORS, EventError, ImportPricesResponse, StreamUsageResponse,
    TrackUsageResponse, UsageResult, VoidUsageResponse,
};
use meterd_domain::adjustment::AdjustmentKind;
use meterd_domain::event::UnpricedReason;
use meterd_engine::refusal::Reason;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage};
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::layer::{Context, Layer};

const PACKAGE: &str = "metering.v1";
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Reasons that every call may return, in addition to its own list.
const ANY_CALL: [&str; 6] = [
    "INVALID_FIELD",
    "MESSAGE_INVALID",
    "DATABASE_UNAVAILABLE",
    "DATABASE_BROKEN",
    "SHUTTING_DOWN",
    "DEADLINE_EXCEEDED",
];

/// Returns the descriptors of the API.
pub fn contract() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).unwrap())
}

/// Returns all RPCs of meterd.
pub fn rpcs() -> Vec<MethodDescriptor> {
    let services = contract().services().filter(|service| service.package_name() == PACKAGE);
    services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// Returns the path of an RPC.
pub fn path_of(rpc: &MethodDescriptor) -> PathAndQuery {
    format!("/{}/{}", rpc.parent_service().full_name(), rpc.name()).parse().unwrap()
}

/// Parses a message from JSON.
pub fn from_json(descriptor: MessageDescriptor, text: &str) -> DynamicMessage {
    let mut json = serde_json::Deserializer::from_str(text);
    DynamicMessage::deserialize(descriptor, &mut json).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The documented errors of the API.
pub struct ErrorRules {
    codes: HashMap<String, Code>,
    /// The reasons in the comment of each RPC.
    of_rpc: HashMap<String, HashSet<String>>,
}

/// Returns the documented errors, read from the proto files.
pub fn error_rules() -> &'static ErrorRules {
    static RULES: OnceLock<ErrorRules> = OnceLock::new();
    RULES.get_or_init(|| ErrorRules::read(&FileDescriptorSet::decode(DESCRIPTORS).unwrap()))
}

/// Returns the comment of an element. `path` contains field numbers and indexes, as in descriptor.proto.
fn comment<'a>(file: &'a FileDescriptorProto, path: &[usize]) -> &'a str {
    let is_it = |found: &[i32]| found.iter().map(|step| *step as usize).eq(path.iter().copied());
    let mut locations = file.source_code_info.iter().flat_map(|info| &info.location);
    locations.find(|location| is_it(&location.path)).map_or("", |location| location.leading_comments())
}

/// Returns the code with this name in the specification, such as "INVALID_ARGUMENT".
fn code_named(name: &str) -> Option<Code> {
    let same = |code: &Code| format!("{code:?}").to_uppercase() == name.replace('_', "");
    (0..17).map(Code::from_i32).find(same)
}

impl ErrorRules {
    fn read(files: &FileDescriptorSet) -> Self {
        let (mut codes, mut of_rpc) = (HashMap::new(), HashMap::new());
        for file in files.file.iter().filter(|file| file.package() == PACKAGE) {
            for (number, list) in file.enum_type.iter().enumerate().filter(|(_, list)| list.name() == "ErrorReason") {
                for (index, value) in list.value.iter().enumerate() {
                    // "INVALID_ARGUMENT. One or more fields are wrong."
                    let first = comment(file, &[5, number, 2, index]).trim().split('.').next().unwrap_or_default();
                    let reason = value.name().trim_start_matches("ERROR_REASON_").to_string();
                    codes.extend(code_named(first).map(|code| (reason, code)));
                }
            }
        }
        let is_word = |letter: char| letter.is_ascii_uppercase() || letter == '_';
        for file in files.file.iter().filter(|file| file.package() == PACKAGE) {
            for (number, service) in file.service.iter().enumerate() {
                for (index, rpc) in service.method.iter().enumerate() {
                    let words = comment(file, &[6, number, 2, index]).split(|letter| !is_word(letter));
                    let reasons = words.filter(|word| codes.contains_key(*word)).map(String::from).collect();
                    of_rpc.insert(rpc.name().to_string(), reasons);
                }
            }
        }
        Self { codes, of_rpc }
    }

    /// Returns the code of a reason.
    pub fn code(&self, reason: &str) -> Option<Code> {
        self.codes.get(reason).copied()
    }

    /// Checks that an RPC may return this error. Returns a description of the problem.
    pub fn check(&self, rpc: &str, code: Code, reason: &str) -> Result<(), String> {
        match self.code(reason) {
            None => Err(format!("{rpc} gave the reason {reason:?}, which is not documented")),
            Some(_) if reason == "INTERNAL" => Err(format!("{rpc} failed inside")),
            Some(documented) if documented != code => Err(format!("{rpc} gave {reason} as {code:?}")),
            Some(_) if ANY_CALL.contains(&reason) || self.of_rpc[rpc].contains(reason) => Ok(()),
            Some(_) => Err(format!("{rpc} gave {reason}, which its comment does not list")),
        }
    }
}

/// An error, which is the status of a call or part of a result in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub code: Code,
    /// Empty if the error is from the gRPC library.
    pub reason: String,
    /// The wrong fields without duplicates.
    pub fields: Vec<String>,
    pub message: String,
}

impl ApiError {
    /// Reads the error of a status.
    pub fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map_or_else(String::new, |info| {
            assert_eq!(info.domain, ERROR_DOMAIN);
            assert!(info.metadata.get("request_id").is_some_and(|id| !id.is_empty()), "no request id in {info:?}");
            info.reason.clone()
        });
        let wrong = details.bad_request().map_or(&[][..], |wrong| &wrong.field_violations);
        let fields = wrong.iter().map(|violation| violation.field.clone()).collect();
        Self { code: status.code(), reason, fields, message: status.message().into() }.once_each()
    }

    /// Reads the error of a result in a batch or stream.
    pub fn of_event(error: EventError) -> Self {
        let fields = error.field_violations.into_iter().map(|violation| violation.field).collect();
        Self { code: Code::from_i32(error.code), reason: error.reason, fields, message: error.message }.once_each()
    }

    fn once_each(mut self) -> Self {
        self.fields.dedup();
        self
    }

    /// Returns whether the gRPC library returned the error because the bytes are not a message of the method.
    pub fn is_of_grpc(&self) -> bool {
        self.reason.is_empty() && matches!(self.code, Code::Internal | Code::OutOfRange | Code::Unimplemented)
    }
}

/// The messages of a call and its end.
pub struct Answer {
    pub messages: Vec<DynamicMessage>,
    pub end: Result<(), Status>,
}

impl Answer {
    /// Returns the results of the events that a call recorded.
    pub fn results(&self) -> Vec<UsageResult> {
        let results = |message: &DynamicMessage| match message.descriptor().name() {
            "TrackUsageResponse" => message.transcode_to::<TrackUsageResponse>().unwrap().result.into_iter().collect(),
            "BatchTrackUsageResponse" => message.transcode_to::<BatchTrackUsageResponse>().unwrap().results,
            "StreamUsageResponse" => {
                let results = message.transcode_to::<StreamUsageResponse>().unwrap().results;
                results.into_iter().filter_map(|result| result.result).collect()
            }
            _ => vec![],
        };
        self.messages.iter().flat_map(results).collect()
    }

    /// Returns all errors: that of the status, and those of events and of prices of a list.
    pub fn errors(&self) -> Vec<ApiError> {
        let of_events = self.results().into_iter().filter_map(|result| result.error);
        let lists = self.messages.iter().filter(|message| message.descriptor().name() == "ImportPricesResponse");
        let results = lists.flat_map(|message| message.transcode_to::<ImportPricesResponse>().unwrap().results);
        let of_prices = results.filter_map(|result| result.error);
        // Both responses of corrections have the same fields.
        let is_correction = |message: &&DynamicMessage| {
            matches!(message.descriptor().name(), "VoidUsageResponse" | "CorrectUsageResponse")
        };
        let of_corrections = self
            .messages
            .iter()
            .filter(is_correction)
            .flat_map(|message| VoidUsageResponse::decode(message.encode_to_vec().as_slice()).unwrap().results);
        let of_corrections = of_corrections.filter_map(|result| result.error);
        let of_results = of_events.chain(of_prices).chain(of_corrections).map(ApiError::of_event);
        self.end.as_ref().err().map(ApiError::of).into_iter().chain(of_results).collect()
    }
}

/// A connection to a server that counts how often it was lost.
#[derive(Clone)]
pub struct RawConnection {
    pub channel: Channel,
    connected: Arc<AtomicUsize>,
}

impl RawConnection {
    /// Connects to a server at an address such as "http://127.0.0.1:50051".
    pub fn to(address: &str) -> Self {
        let connected = Arc::new(AtomicUsize::new(0));
        let counter = connected.clone();
        let connector = tower::service_fn(move |uri: Uri| {
            counter.fetch_add(1, Ordering::Relaxed);
            async move {
                let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_shared(address.to_string()).unwrap();
        Self { channel: endpoint.connect_with_connector_lazy(connector), connected }
    }

    /// Returns how often the connection was lost and opened again.
    pub fn lost(&self) -> usize {
        self.connected.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Makes a call with any bytes as messages, and reads at most `read_max` messages of the response.
    pub async fn call(&self, rpc: &MethodDescriptor, messages: Vec<Vec<u8>>, read_max: usize) -> Answer {
        let mut answer = Answer { messages: vec![], end: Ok(()) };
        answer.end = self.exchange(rpc, messages, read_max, &mut answer.messages).await;
        answer
    }

    async fn exchange(
        &self,
        rpc: &MethodDescriptor,
        messages: Vec<Vec<u8>>,
        read_max: usize,
        read: &mut Vec<DynamicMessage>,
    ) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        // A unary call is a stream with one message in each direction.
        let request = Request::new(tokio_stream::iter(messages));
        let mut answers = grpc.streaming(request, path_of(rpc), Raw).await?.into_inner();
        while read.len() < read_max {
            let Some(bytes) = answers.message().await? else { break };
            read.push(DynamicMessage::decode(rpc.output(), &*bytes).unwrap());
        }
        Ok(())
    }
}

/// Records events that must not happen: panics, and errors in the log.
#[derive(Clone, Default)]
pub struct FailureWatch {
    log: Arc<Mutex<Vec<String>>>,
}

/// The panics of this process with their threads.
fn panics() -> &'static Mutex<Vec<(ThreadId, String)>> {
    static PANICS: OnceLock<Mutex<Vec<(ThreadId, String)>>> = OnceLock::new();
    PANICS.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            panics().lock().unwrap().push((std::thread::current().id(), panic.to_string()));
            before(panic);
        }));
        Mutex::default()
    })
}

impl FailureWatch {
    /// Starts recording.
    pub fn start() -> Self {
        drop(panics().lock().unwrap());
        Self::default()
    }

    /// Returns the panics of the process, or only those of this thread. In a test with a single-threaded runtime, the
    /// server runs on this thread.
    pub fn panics(&self, of_thread: bool) -> Vec<String> {
        let (here, panics) = (std::thread::current().id(), panics().lock().unwrap());
        panics.iter().filter(|(thread, _)| !of_thread || *thread == here).map(|(_, text)| text.clone()).collect()
    }

    /// Returns the log lines of the level ERROR.
    pub fn errors(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl<S: Subscriber> Layer<S> for FailureWatch {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::ERROR {
            let mut text = String::new();
            let mut write = |field: &Field, value: &dyn Debug| text += &format!("{field}={value:?} ");
            event.record(&mut write);
            self.log.lock().unwrap().push(text);
        }
    }
}

#[test]
fn the_comment_of_each_reason_contains_an_example_of_its_error_info() {
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let file = files.file.iter().find(|file| file.name() == "metering/v1/errors.proto").unwrap();
    for (index, value) in file.enum_type[0].value.iter().enumerate().skip(1) {
        let reason = value.name().trim_start_matches("ERROR_REASON_");
        let comment = comment(file, &[5, 0, 2, index]);
        assert!(comment.contains(&format!("Example: {{reason: \"{reason}\"")), "{reason}: {comment}");
    }
}

#[test]
fn the_engine_has_the_documented_reasons_with_their_codes() {
    let documented = &error_rules().codes;
    let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    let missing: Vec<_> = documented.keys().filter(|name| !names.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "documented, but not in the engine: {missing:?}");
    for reason in Reason::ALL {
        assert_eq!(error_rules().code(reason.name()), Some(code(*reason)), "{}", reason.name());
    }
}

#[test]
fn the_enums_of_the_domain_have_the_numbers_of_the_contract() {
    use meterd_domain::access::ActorKind::{self, Anybody, ApiKey, Database, Jwt};
    let kinds: [(ActorKind, proto::ActorKind); 4] = [
        (Anybody, proto::ActorKind::Anybody),
        (ApiKey, proto::ActorKind::ApiKey),
        (Jwt, proto::ActorKind::Jwt),
        (Database, proto::ActorKind::Database),
    ];
    for (kind, documented) in kinds {
        assert_eq!(kind as i32, documented as i32, "{documented:?}");
    }
    for kind in AdjustmentKind::ALL {
        let documented = proto::AdjustmentKind::try_from(i32::from(i16::from(*kind))).unwrap();
        assert_eq!(documented.as_str_name().replace('_', ""), format!("ADJUSTMENTKIND{kind:?}").to_uppercase());
    }
    for number in 1..=8 {
        let reason = UnpricedReason::from_number(number);
        let documented = proto::UnpricedReason::try_from(i32::from(number)).unwrap().as_str_name();
        assert_eq!((reason as i16, format!("UNPRICED_REASON_{}", reason.name())), (number, documented.to_string()));
    }
    assert!(proto::UnpricedReason::try_from(9).is_err());
}
