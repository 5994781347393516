//! Which methods stream, and the maximum length of their messages.

use crate::grpc::MESSAGE_BYTES_MAX;
use crate::proto;
use prost::Message;
use std::collections::HashMap;

/// Path prefix of the standard services of gRPC, health and reflection. Callers may need no credentials for them.
pub(super) const STANDARD_SERVICES: &str = "/grpc.";
/// Path prefix of the health service.
pub(super) const HEALTH_SERVICE: &str = "/grpc.health.v1.Health/";

/// Maximum length of a message of StreamUsage, which keeps a buffer of this size. An event has at most about 10 KiB. Larger
/// messages up to this limit are rejected with the fields that are too long.
const STREAMED_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Maximum length of a message to a standard service of gRPC. Messages of this size do not use the request budget.
const STANDARD_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Maximum length of a message to any other method, except batches of events.
const OTHER_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Returns the maximum length of a message of a method.
pub(super) fn message_bytes_max(path: &str) -> usize {
    match path {
        path if path.starts_with(STANDARD_SERVICES) => STANDARD_MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/BatchTrackUsage" => MESSAGE_BYTES_MAX,
        "/metering.v1.UsageService/StreamUsage" => STREAMED_MESSAGE_BYTES_MAX,
        _ => OTHER_MESSAGE_BYTES_MAX,
    }
}

/// Which sides of a method are streams.
#[derive(Clone, Copy, Default)]
pub(super) struct Streaming {
    pub request: bool,
    pub response: bool,
}

/// The streaming methods of all services, by path.
pub(super) struct StreamingMethods(HashMap<String, Streaming>);

impl StreamingMethods {
    /// Reads the descriptors of all services.
    pub fn new() -> Self {
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
                    let streaming =
                        Streaming { request: method.client_streaming(), response: method.server_streaming() };
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    if streaming.request || streaming.response {
                        methods.insert(path, streaming);
                    }
                }
            }
        }
        Self(methods)
    }

    /// Returns which sides of a method are streams. An unknown method has none.
    pub fn get(&self, path: &str) -> Streaming {
        self.0.get(path).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streaming_methods_of_all_services_are_known() {
        let methods = StreamingMethods::new();
        let mut paths: Vec<_> = methods.0.keys().map(String::as_str).collect();
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
        assert!(methods.get("/metering.v1.UsageService/StreamUsage").request);
        assert!(!methods.get("/metering.v1.UsageService/ExportUsage").request);
    }
}
