//! The contract as its descriptor has it.

use meterd::proto::DESCRIPTORS;
use prost_reflect::{Cardinality, DescriptorPool, Kind, MessageDescriptor, MethodDescriptor};
use std::fmt::Write;
use std::sync::OnceLock;

const PACKAGE: &str = "metering.v1";

/// All descriptors: ours, and those of health and reflection.
fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let mut pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        for set in [tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET] {
            pool.decode_file_descriptor_set(set).unwrap();
        }
        pool
    })
}

/// A method by its full name, such as "metering.v1.UsageService/TrackUsage".
pub fn method(full_name: &str) -> Option<MethodDescriptor> {
    let (service, name) = full_name.split_once('/')?;
    pool().get_service_by_name(service)?.methods().find(|method| method.name() == name)
}

/// Full names of our RPCs, and of health and reflection.
pub fn methods() -> Vec<String> {
    let methods = pool().services().flat_map(|service| service.methods().collect::<Vec<_>>());
    methods.map(|method| format!("{}/{}", method.parent_service().full_name(), method.name())).collect()
}

/// Reasons that are sent.
pub fn reasons() -> Vec<String> {
    let reasons = pool().get_enum_by_name("metering.v1.ErrorReason").unwrap();
    let names = reasons.values().filter(|reason| reason.number() != 0);
    names.map(|reason| reason.name().trim_start_matches("ERROR_REASON_").to_string()).collect()
}

/// Whatever of the contract is on the wire, a line each.
pub fn listing() -> String {
    let mut lines = String::new();
    for service in pool().services().filter(|service| service.package_name() == PACKAGE) {
        for rpc in service.methods() {
            let stream = |is_stream| if is_stream { "stream " } else { "" };
            let (sends, answers) = (stream(rpc.is_client_streaming()), stream(rpc.is_server_streaming()));
            let (input, output) = (rpc.input(), rpc.output());
            let rpc = format!("{}/{}", service.full_name(), rpc.name());
            writeln!(lines, "rpc {rpc} {sends}{} {answers}{}", input.name(), output.name()).unwrap();
        }
    }
    for list in pool().all_enums().filter(|list| list.package_name() == PACKAGE) {
        for value in list.values() {
            writeln!(lines, "enum {} {} = {}", list.full_name(), value.name(), value.number()).unwrap();
        }
    }
    for message in pool().all_messages().filter(|message| message.package_name() == PACKAGE) {
        list_fields(&message, &mut lines);
    }
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    lines.join("\n") + "\n"
}

fn list_fields(message: &MessageDescriptor, lines: &mut String) {
    for field in message.fields() {
        let kind = match field.kind() {
            Kind::Message(inner) => inner.full_name().to_string(),
            Kind::Enum(list) => list.full_name().to_string(),
            scalar => format!("{scalar:?}").to_lowercase(),
        };
        let how = match field.cardinality() {
            Cardinality::Repeated => "repeated ",
            _ if field.containing_oneof().is_some() => "oneof ",
            _ => "",
        };
        let (owner, name, json) = (message.full_name(), field.name(), field.json_name());
        writeln!(lines, "field {owner} {name} {json} {how}{kind} = {}", field.number()).unwrap();
    }
}
