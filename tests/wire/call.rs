//! Calls of any method, whose messages are bytes.

use crate::raw_codec::Raw;
use prost_reflect::{DynamicMessage, MethodDescriptor, SerializeOptions};
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::{ErrorDetail, StatusExt};

/// Longest wait for a message of an answer.
const PATIENCE: Duration = Duration::from_secs(40);
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Headers that every answer has; the request id is checked by itself.
const USUAL: [(&str, &str); 2] = [
    ("content-type", "application/grpc"),
    ("vary", "origin, access-control-request-method, access-control-request-headers"),
];

/// What comes of a call.
enum Part {
    Headers(MetadataMap),
    Message(Vec<u8>),
    End(Option<Status>, MetadataMap),
}

/// A call under way.
pub struct Call {
    method: Option<MethodDescriptor>,
    /// None once the caller has ended its side.
    requests: Option<mpsc::UnboundedSender<Vec<u8>>>,
    parts: mpsc::Receiver<Part>,
    begun: bool,
}

impl Call {
    /// Begins a call. The path is that of a method that need not exist.
    pub fn begin(channel: &Channel, full_name: &str, method: Option<MethodDescriptor>, headers: MetadataMap) -> Self {
        let (requests, sent) = mpsc::unbounded_channel();
        // No more is read than was asked for, but for two parts.
        let (sender, parts) = mpsc::channel(1);
        let path = format!("/{full_name}").parse().unwrap();
        let sent = tokio_stream::wrappers::UnboundedReceiverStream::new(sent);
        let request = Request::from_parts(headers, Default::default(), sent);
        let mut grpc = Grpc::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        tokio::spawn(async move {
            let exchange = async {
                grpc.ready().await.map_err(|error| Status::unavailable(format!("no connection: {error}")))?;
                let answer = grpc.streaming(request, path, Raw).await?;
                sender.send(Part::Headers(answer.metadata().clone())).await.ok();
                let mut messages = answer.into_inner();
                while let Some(message) = messages.message().await? {
                    // Whoever reads no more gives the call up.
                    if sender.send(Part::Message(message)).await.is_err() {
                        break;
                    }
                }
                Ok(messages.trailers().await?.unwrap_or_default())
            };
            let end = match exchange.await {
                Ok(trailers) => Part::End(None, trailers),
                Err(status) => Part::End(Some(Status::clone(&status)), status.metadata().clone()),
            };
            sender.send(end).await.ok();
        });
        Self { method, requests: Some(requests), parts, begun: false }
    }

    /// Sends messages.
    pub fn send(&self, messages: Vec<Vec<u8>>) {
        for message in messages {
            self.requests.as_ref().expect("the caller's side is open").send(message).ok();
        }
    }

    /// Ends the caller's side.
    pub fn end(&mut self) {
        self.requests = None;
    }

    /// What is answered, until there are `read` messages or the call has ended; and its request id.
    pub async fn read(&mut self, read: usize) -> (Value, Option<String>) {
        let (mut answer, mut messages, mut request_id) = (Map::new(), vec![], None);
        let ended = loop {
            if messages.len() >= read {
                break false;
            }
            let part = tokio::time::timeout(PATIENCE, self.parts.recv()).await;
            match part.expect("an answer in time").expect("an end") {
                Part::Headers(headers) => note_headers("headers", &headers, &mut answer, &mut request_id),
                Part::Message(bytes) => {
                    let message = self.message(&bytes);
                    // A later heartbeat comes of the time that passes.
                    if !self.begun || message.get("heartbeat").is_none() {
                        messages.push(message);
                    }
                    self.begun = true;
                }
                Part::End(status, metadata) => {
                    note_headers("trailers", &metadata, &mut answer, &mut request_id);
                    answer.extend(status.map(|status| ("error".to_string(), error(&status))));
                    break true;
                }
            }
        };
        if !ended {
            answer.insert("open".into(), true.into());
        }
        let is_stream = self.method.as_ref().is_some_and(|method| method.is_server_streaming());
        match messages.pop() {
            Some(message) if !is_stream && messages.is_empty() => drop(answer.insert("message".into(), message)),
            Some(message) => {
                messages.push(message);
                answer.insert("messages".into(), self.as_one(messages).into());
            }
            None => {}
        }
        (Value::Object(answer), request_id)
    }

    fn message(&self, bytes: &[u8]) -> Value {
        let output = self.method.as_ref().expect("only a method that is there answers").output();
        let message = DynamicMessage::decode(output, bytes).unwrap();
        assert!(message.unknown_fields().next().is_none(), "fields that the contract does not have: {message:?}");
        let options = SerializeOptions::new();
        let mut json = message.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
        if let Some(Value::String(data)) = json.get_mut("data") {
            // A file, as lines.
            use base64::Engine;
            let text = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap();
            json["data"] = text.lines().map(Value::from).collect();
        }
        json
    }

    /// How many acknowledgements the events of a stream are spread over is a matter of time.
    fn as_one(&self, messages: Vec<Value>) -> Vec<Value> {
        if self.method.as_ref().is_none_or(|method| method.name() != "StreamUsage") {
            return messages;
        }
        let results = messages.iter().filter_map(|message| message["results"].as_array()).flatten();
        let results: Vec<Value> = results.cloned().collect();
        vec![json!({ "settledCount": messages.last().unwrap()["settledCount"], "results": results })]
    }
}

/// Notes what is unusual.
fn note_headers(kind: &str, headers: &MetadataMap, answer: &mut Map<String, Value>, request_id: &mut Option<String>) {
    let mut unusual = Map::new();
    for header in headers.iter() {
        let (name, value) = match header {
            KeyAndValueRef::Ascii(name, value) => (name.as_str(), value.to_str().unwrap_or("?").to_string()),
            KeyAndValueRef::Binary(name, value) => (name.as_str(), format!("{value:?}")),
        };
        match name {
            "x-request-id" if request_id.is_none() => *request_id = Some(value),
            "date" | "grpc-status" | "grpc-message" | "grpc-status-details-bin" => {}
            _ if USUAL.contains(&(name, &*value)) => {}
            _ => drop(unusual.insert(name.into(), value.into())),
        }
    }
    if !unusual.is_empty() {
        answer.insert(kind.into(), unusual.into());
    }
}

fn error(status: &Status) -> Value {
    let mut error = json!({ "code": format!("{:?}", status.code()), "message": status.message() });
    if status.details().is_empty() {
        return error;
    }
    let details = status.check_error_details_vec().expect("details that can be decoded").into_iter();
    error["details"] = details.map(detail).collect();
    error
}

fn detail(detail: ErrorDetail) -> Value {
    match detail {
        ErrorDetail::ErrorInfo(info) => {
            json!({ "errorInfo": { "reason": info.reason, "domain": info.domain, "metadata": info.metadata } })
        }
        ErrorDetail::BadRequest(wrong) => {
            let violations = wrong.field_violations.into_iter();
            let violations = violations.map(|violation| format!("{}: {}", violation.field, violation.description));
            json!({ "badRequest": violations.collect::<Vec<_>>() })
        }
        ErrorDetail::RetryInfo(info) => {
            json!({ "retryInfo": { "retryDelay": info.retry_delay.map(|delay| format!("{delay:?}")) } })
        }
        other => json!({ "other": format!("{other:?}") }),
    }
}
