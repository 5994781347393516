//! Everything that the bench uses of meterd's library.

pub use meterd::cli::chart::{grouped, table};
pub use meterd::cli::connect::{MESSAGE_BYTES_MAX, status_error};
pub use meterd::cli::verify::{Verified, verify_all};
pub use meterd::cli::{Command as MeterdCommand, entry, help};
pub use meterd::database::command_pool;
pub use meterd::{print, proto};
pub use meterd_engine::catalog::CatalogCache;
pub use meterd_engine::clock::Clock;
