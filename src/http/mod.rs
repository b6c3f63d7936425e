//! All that knows of HTTP: the layer, its service, the cookie, and the extractors of axum.

pub(crate) mod cookie;
#[cfg(feature = "axum")]
pub(crate) mod extract;
pub(crate) mod future;
pub(crate) mod guard;
pub(crate) mod layer;
pub(crate) mod service;
