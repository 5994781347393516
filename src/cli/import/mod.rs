pub mod event;
pub mod fields;
pub mod keys;
pub mod mapping;
pub mod rows;
pub mod time;
