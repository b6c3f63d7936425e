//! The HTTP side: the layer, its service, the cookie, and the extractors for axum.

mod config;
pub(crate) mod cookie;
mod cross_site;
#[cfg(feature = "axum")]
pub(crate) mod extract;
pub(crate) mod future;
pub(crate) mod layer;
mod on_early_drop;
mod respond;
pub(crate) mod service;
