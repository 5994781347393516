//! Compiles the crate again when a migration is added: `sqlx::migrate!` does not tell Cargo which files it reads.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
