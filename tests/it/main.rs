//! What users of the crate notice, through the public API and over real sockets.
// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "axum")]
mod login;
mod manifest;
