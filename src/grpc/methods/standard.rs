//! The standard services of gRPC: health and reflection.

/// A standard service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    Health,
    Reflection,
}

/// Path prefix of all standard services.
const PREFIX: &str = "/grpc.";
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: [&str; 2] = ["/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];
const METHODS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Returns the standard service that a path belongs to, if any.
pub fn standard(path: &str) -> Option<Standard> {
    if path.starts_with(HEALTH) {
        Some(Standard::Health)
    } else if REFLECTION.iter().any(|service| path.starts_with(service)) {
        Some(Standard::Reflection)
    } else {
        None
    }
}

/// Whether a path belongs to a standard service, even to one that meterd does not have. Callers may need no credentials for it.
pub fn is_standard(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Whether a path is a method of a standard service.
pub fn is_standard_method(path: &str) -> bool {
    METHODS.contains(&path)
}
