//! The layers around every call, from the outside to the inside: `call`, `panics`, `shutdown`, `guard`, `admission`.

pub mod admission;
pub mod call;
pub mod ending_body;
pub mod guard;
pub mod messages;
pub mod panics;
pub mod request_body;
pub mod response_body;
pub mod shutdown;
pub mod slots;
pub mod waiting;
