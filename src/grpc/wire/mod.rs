//! Code that handlers share: the codec, conversions, statuses of errors, page tokens, and repeated creates.

pub mod batch_count;
pub mod codec;
pub mod convert;
pub mod idempotent_create;
pub mod json;
pub mod page_token;
pub mod paging;
pub mod status;
