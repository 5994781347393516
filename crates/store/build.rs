//! Compiles the crate again when a migration is added: `sqlx::migrate!` does not tell Cargo what it has read.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
