//! The embedded server's life.
