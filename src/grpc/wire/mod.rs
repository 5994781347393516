//! What handlers share: messages to values and back, errors to statuses, page tokens, repeated creates.

pub mod batch_count;
pub mod codec;
pub mod convert;
pub mod idempotent_create;
pub mod json;
pub mod page_token;
pub mod paging;
pub mod status;
