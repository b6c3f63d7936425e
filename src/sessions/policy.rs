//! The options of [`Sessions`](crate::Sessions): their defaults and their validation.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::{
    backend::terms::Limit,
    clock::{Clock, millis},
    error::{Error, ErrorKind},
    events::Listener,
    record::{
        Contents, Serializer,
        codec::{Codec, Form},
        data::Data,
        id::{Owners, RecordId, Sid},
        keyring::{Keyring, Keys},
        token::SecretHash,
    },
};

/// Every option, under the name that the [`Builder`](crate::Builder) documents.
pub(crate) struct Policy {
    pub(crate) namespace: String,
    pub(crate) default_ttl: Option<Duration>,
    pub(crate) max_lifetime: Duration,
    pub(crate) anonymous_lifetime: Duration,
    pub(crate) touch_interval: Option<Duration>,
    pub(crate) sessions_per_key: Limit,
    pub(crate) rework_grace: Duration,
    pub(crate) request_time: Duration,
    pub(crate) watch_interval: Duration,
    pub(crate) unknown_after: Option<Duration>,
    pub(crate) id_factory: Option<IdFactory>,
    pub(crate) on_event: Listener,
    pub(crate) clock: Clock,
    /// The options from here on become the [`Codec`]. [`check`](Self::check) takes the secrets out, so that they are wiped.
    pub(crate) form: Form,
    pub(crate) max_size: usize,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    pub(crate) pepper: Option<Zeroizing<Vec<u8>>>,
    pub(crate) keyring: Option<Keyring>,
}

pub(crate) type IdFactory = Arc<dyn Fn() -> String + Send + Sync>;

impl Default for Policy {
    fn default() -> Self {
        Self {
            namespace: "sessions".to_owned(),
            default_ttl: Some(Duration::from_secs(3600)),
            max_lifetime: 30 * DAY,
            anonymous_lifetime: DAY,
            touch_interval: None,
            sessions_per_key: Limit::LeastRecent(100),
            rework_grace: Duration::from_secs(10),
            request_time: Duration::from_secs(1),
            watch_interval: Duration::from_secs(5),
            unknown_after: None,
            id_factory: None,
            on_event: Listener::default(),
            clock: Clock::system(),
            form: Form::default(),
            max_size: 1 << 20,
            serializer: None,
            pepper: None,
            keyring: None,
        }
    }
}

impl Policy {
    /// Validates the options. Returns them with the codec, and with the smallest payload that a new session can have.
    ///
    /// # Errors
    /// `Config` for an option that cannot work.
    pub(crate) fn check(mut self) -> Result<(Self, Codec, Bytes), Error> {
        let refuse = |message: &'static str| Err(Error::new(ErrorKind::Config, message));
        if self.namespace.is_empty() || self.namespace.len() > 256 {
            return refuse("namespace must have 1 to 256 bytes");
        }
        if self.namespace.contains(['{', '}']) {
            return refuse("namespace must not contain braces: they decide the slot in a Redis Cluster");
        }
        // Backends may count in whole milliseconds.
        let too_short = |time: Duration| time < Duration::from_millis(1);
        if self.default_ttl.is_some_and(too_short) {
            return refuse("default_ttl must not be zero: use None for no idle timeout");
        }
        if too_short(self.max_lifetime) || too_short(self.anonymous_lifetime) {
            return refuse("max_lifetime and anonymous_lifetime must not be zero");
        }
        if too_short(self.request_time) {
            return refuse("request_time must not be zero");
        }
        if let Limit::LeastRecent(0) | Limit::Refuse(0) = self.sessions_per_key {
            return refuse(
                "sessions_per_key must not be zero, or no user could sign in: use Limit::none() for no limit",
            );
        }
        if too_short(self.watch_interval) || self.unknown_after.is_some_and(too_short) {
            return refuse("watch_interval and unknown_after must not be zero");
        }
        if self.unknown_after.is_some_and(|time| self.default_ttl.is_some_and(|idle| time > idle)) {
            return refuse("unknown_after must not be longer than default_ttl: a stream would outlive its session");
        }
        let (pepper, keyring) = (self.pepper.take(), self.keyring.take());
        if pepper.as_ref().is_some_and(|pepper| pepper.len() < 16) {
            return refuse("the pepper must have at least 16 bytes");
        }
        let Some(sid) =
            self.id_factory.as_ref().map_or_else(|| Sid::from_random([0; 16]).ok(), |make| Sid::parse(&make()))
        else {
            return refuse("the id_factory must return 22 to 43 characters of A-Z, a-z, 0-9, _ and -");
        };
        let owners = Owners::new(&self.namespace, pepper.as_deref().map_or(&[], Vec::as_slice))?;
        let keys = keyring.map(|ring| Keys::new(&ring, &self.namespace)).transpose()?.map(Arc::new);
        let codec =
            Codec { form: self.form, owners, serializer: self.serializer.clone(), keys, max_size: self.max_size };
        // A visitor's session begins with its first value.
        let mut data = Data::default();
        data.set(&"".into(), "0".into());
        match codec.write(RecordId::new(None, sid), &self.contents(None, data, None)) {
            Ok(smallest) => Ok((self, codec, smallest)),
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                Err(Error::caused(ErrorKind::Config, "max_size is too small for any session: raise it", error))
            }
            // If the application's serializer refuses this value, later writes report it.
            Err(error) if error.kind() == ErrorKind::Data => Ok((self, codec, Bytes::new())),
            Err(error) => Err(error),
        }
    }

    /// Returns the initial contents of a new session, without its secret.
    pub(crate) fn contents(&self, key: Option<&str>, data: Data, idle: Option<u64>) -> Contents {
        let now = self.clock.now_ms();
        Contents {
            key: key.map(Arc::from),
            hash: SecretHash::none(),
            previous: Vec::new(),
            superseded: Vec::new(),
            logins: 0,
            issued: None,
            created: now,
            signed_in: key.map(|_| now),
            written: now,
            deadline: self.deadline(key.is_some(), now),
            idle,
            data,
        }
    }

    /// Returns how long a stream waits at least while the store fails, for a session with this idle timeout.
    pub(crate) fn unknown_after(&self, idle: Option<u64>) -> Duration {
        let idle = idle.map_or(Duration::MAX, Duration::from_millis);
        self.unknown_after.unwrap_or(UNKNOWN_AFTER).min(idle)
    }

    /// Returns the deadline of a session that begins at that time.
    pub(crate) fn deadline(&self, is_signed_in: bool, now: u64) -> u64 {
        now.saturating_add(millis(if is_signed_in { self.max_lifetime } else { self.anonymous_lifetime }))
    }
}

const UNKNOWN_AFTER: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
