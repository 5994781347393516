//! The messages of each method: which sides are streams, and their maximum length.

use super::standard::is_standard;
use crate::grpc::MESSAGE_BYTES_MAX;
use crate::proto;
use prost::Message;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Maximum length of a message of StreamUsage, which keeps a buffer of this size. An event has at most about 10 KiB. Larger
/// messages up to this limit are rejected with the fields that are too long.
const STREAMED_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Maximum length of a message to a standard service of gRPC. Messages of this size do not use the request budget.
const STANDARD_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Maximum length of a message to any other method, except batches of events.
const OTHER_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// The messages of a method.
#[derive(Clone, Copy, Debug)]
pub struct Messages {
    /// Whether the request is a stream.
    pub request_stream: bool,
    /// Whether the response is a stream, which ends with the caller's key.
    pub response_stream: bool,
    /// Maximum length of a message of the request.
    pub bytes_max: usize,
}

/// Returns the messages of the method with this path. An unknown method has no stream.
pub fn messages(path: &str) -> Messages {
    static STREAMS: OnceLock<HashMap<String, (bool, bool)>> = OnceLock::new();
    let (request_stream, response_stream) =
        STREAMS.get_or_init(streaming_methods).get(path).copied().unwrap_or_default();
    let bytes_max = match path {
        path if is_standard(path) => STANDARD_MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/BatchTrackUsage" => MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/StreamUsage" => STREAMED_MESSAGE_BYTES_MAX,
        _ => OTHER_MESSAGE_BYTES_MAX,
    };
    Messages { request_stream, response_stream, bytes_max }
}

/// Reads from the descriptors of all services which sides of a method are streams: request and response, by path.
fn streaming_methods() -> HashMap<String, (bool, bool)> {
    let sets = [
        proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let sets = sets.map(|set| prost_types::FileDescriptorSet::decode(set).expect("descriptors made by the build"));
    let mut methods = HashMap::new();
    for file in sets.into_iter().flat_map(|set| set.file) {
        for service in &file.service {
            for method in &service.method {
                let streams = (method.client_streaming(), method.server_streaming());
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                if streams != (false, false) {
                    methods.insert(path, streams);
                }
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streaming_methods_of_all_services_are_known() {
        let methods = streaming_methods();
        let mut paths: Vec<_> = methods.keys().map(String::as_str).collect();
        paths.sort_unstable();
        assert_eq!(
            paths,
            [
                "/grpc.health.v1.Health/Watch",
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "/metering.v1.AlertService/SubscribeAlerts",
                "/metering.v1.UsageService/ExportUsage",
                "/metering.v1.UsageService/StreamUsage",
            ]
        );
        assert!(messages("/metering.v1.UsageService/StreamUsage").request_stream);
        assert!(!messages("/metering.v1.UsageService/ExportUsage").request_stream);
    }
}
