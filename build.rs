//! Compiles `proto/` with protox, so that no protoc has to be installed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["usage_service", "alert_service", "catalog_service", "client_service", "job_service", "key_service", "errors"]
            .map(|name| format!("proto/metering/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(files)?
        .file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("metering.v1.bin"), protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".metering.v1.ExportUsageResponse.data")
        // Messages with secrets: their Debug is written by hand.
        .skip_debug([
            ".metering.v1.CreateApiKeyResponse",
            ".metering.v1.RotateApiKeyResponse",
            ".metering.v1.NotificationChannel",
        ])
        .codec_path("crate::grpc::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    Ok(())
}
