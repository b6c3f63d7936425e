//! The configuration of a layer, which its services and their futures share.

use std::sync::Arc;

use crate::{http::cookie::CookieConfig, session::origin::Origin};

#[derive(Clone)]
pub(crate) struct HttpConfig {
    pub(crate) origin: Arc<Origin>,
    pub(crate) cookie: CookieConfig,
}
