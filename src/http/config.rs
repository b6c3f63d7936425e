//! The configuration of a layer, which its services and their futures share.

use std::sync::Arc;

use http::response::Parts;

use crate::{http::cookie::CookieConfig, session::origin::Origin};

#[derive(Clone)]
pub(crate) struct HttpConfig {
    pub(crate) origin: Arc<Origin>,
    pub(crate) cookie: CookieConfig,
    /// Which responses discard the handler's changes, if the application decides.
    pub(crate) failed_if: Option<FailedIf>,
}

pub(crate) type FailedIf = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
