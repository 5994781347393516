//! Compiles `proto/` with protox, so that protoc need not be installed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "usage_service",
        "billing_service",
        "alert_service",
        "catalog_service",
        "client_service",
        "job_service",
        "key_service",
        "errors",
    ]
    .map(|name| format!("proto/metering/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Encoded by the compiler, because prost's types drop options that they do not know, such as `debug_redact`.
    std::fs::write(out.join("metering.v1.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".metering.v1.ExportUsageResponse.data")
        // Ordered, so that equal messages have equal bytes.
        .btree_map(".")
        // These messages contain secrets. src/redacted.rs has their `Debug`, which leaves the secrets out.
        .skip_debug([
            ".metering.v1.CreateApiKeyResponse",
            ".metering.v1.RotateApiKeyResponse",
            ".metering.v1.NotificationChannel",
        ])
        .codec_path("crate::grpc::wire::codec::SmallBuffers")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
